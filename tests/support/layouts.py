"""Checkpoints laid out as the hub's repositories are, tensor by tensor, at reduced width.

Names, types, order, shards and what lies beside are those of the repository; sizes are not.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from support import tiny

B16, E4M3 = torch.bfloat16, torch.float8_e4m3fn
GLM = tiny.FAMILIES["glm4_moe"] | {"n_routed_experts": 4}
DEEPSEEK = {
    "num_hidden_layers": 3, "first_k_dense_replace": 1, "n_routed_experts": 8, "n_group": 2,
    "topk_group": 1, "n_shared_experts": 1, "moe_intermediate_size": 32, "intermediate_size": 72,
    "q_lora_rank": 16, "kv_lora_rank": 20, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
    "v_head_dim": 16, "num_key_value_heads": 4, "head_dim": 8,
}  # fmt: skip
EXIT = "raise SystemExit('remote code ran')"


def _save(kind: str, folder: Path, dtype: torch.dtype = B16, **sizes: Any) -> dict[str, Any]:
    """Make a model; return the tensors that transformers saves of it, under the hub's names."""
    known = AutoConfig.for_model(kind)
    known = known.to_dict().keys() | type(known).attribute_map.keys()
    common = {key: value for key, value in tiny._COMMON.items() if key in known}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **common | sizes), dtype=dtype
    )
    for buffer in (b for n, b in model.named_buffers() if "e_score" in n):
        buffer.uniform_(-0.1, 0.1)
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype")  # as transformers wrote it until version 5
    (folder / "config.json").write_text(json.dumps(config))
    return tiny.tensors(folder)


def _write(folder: Path, found: dict[str, Any], shards: int, first: int = 1) -> None:
    """Write shards that are counted from `first`; tensors keep their order."""
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    names, where = list(found), {}
    for number in range(shards):
        own = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        shard = f"model-{number + first:05d}-of-{shards + first - 1:05d}.safetensors"
        save_file({name: found[name] for name in own}, folder / shard, metadata={"format": "pt"})
        where |= dict.fromkeys(own, shard)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def olmoe(folder: Path) -> None:
    """allenai/OLMoE-1B-7B-0125: every tensor float32, six shards."""
    _write(folder, _save("olmoe", folder, torch.float32, **tiny.FAMILIES["olmoe"]), 6)


def gpt_oss(folder: Path) -> None:
    """openai/gpt-oss-20b: MXFP4, no type named, shards from 0, layers in order of the alphabet."""
    found = _save("gpt_oss", folder, **tiny.FAMILIES["gpt_oss"] | {"num_hidden_layers": 12})
    tiny.write(folder, found)
    tiny._quantise(folder, "mxfp4")
    tiny.change_config(folder, torch_dtype=None)
    packed = tiny.tensors(folder)
    _write(folder, {name: packed[name] for name in sorted(packed)}, 3, first=0)
    for name in ("original", "metal"):
        (folder / name).mkdir()
    save_file({"block.0.attn.norm.scale": torch.ones(3)}, folder / "original/model.safetensors")
    (folder / "metal/model.bin").write_bytes(b"x")


def qwen3(folder: Path) -> None:
    """Qwen/Qwen3-30B-A3B: sixteen shards."""
    _write(folder, _save("qwen3_moe", folder, **tiny.FAMILIES["qwen3_moe"]), 16)


def mixtral(folder: Path) -> None:
    """mistralai/Mixtral-8x7B-v0.1: nineteen shards, pickled weights beside them."""
    _write(folder, _save("mixtral", folder, **tiny.FAMILIES["mixtral"]), 19)
    (folder / "consolidated.00.pt").write_bytes(b"pickle")


def qwen3_next(folder: Path) -> None:
    """Qwen/Qwen3-Next-80B-A3B-Instruct: a layer that predicts further tokens, under `mtp.`."""
    found = _save("qwen3_next", folder, **tiny.FAMILIES["qwen3_next"])
    more = {name.replace("model.layers.3.", "mtp.layers.0."): found[name].clone() for name in found}
    more = {name: tensor for name, tensor in more.items() if name.startswith("mtp.")}
    more |= {"mtp.fc.weight": torch.ones(64, 128, dtype=B16)}
    _write(folder, dict(sorted((found | more).items())), 41)


def glm_air(folder: Path) -> None:
    """zai-org/GLM-4.5-Air: 46 layers and one more, with an embedding of its own."""
    _glm(folder, 46, 47)


def glm_46(folder: Path) -> None:
    """zai-org/GLM-4.6: 92 layers and one more; layer 46, which Air does not use, is used."""
    _glm(folder, 92, 93)


def _glm(folder: Path, layers: int, shards: int) -> None:
    found = _save("glm4_moe", folder, **GLM | {"num_hidden_layers": layers})
    extra = f"model.layers.{layers}."
    more = {n.replace("model.layers.5.", extra): found[n].clone() for n in found}
    more = {name: tensor for name, tensor in more.items() if name.startswith(extra)}
    more |= {f"{extra}{name}.weight": torch.ones(64, dtype=B16) for name in ("enorm", "hnorm")}
    if layers == 46:
        more |= {f"{extra}embed_tokens.weight": torch.ones(128, 64, dtype=B16)}
    assert {t.dtype for n, t in found.items() if "e_score" in n} == {torch.float32}
    _write(folder, found | more, shards)


def phi(folder: Path) -> None:
    """microsoft/Phi-3.5-MoE-instruct: biases, code beside, that must not run."""
    sizes = {"attention_bias": True, "lm_head_bias": True}
    _write(folder, _save("phimoe", folder, **tiny.FAMILIES["phimoe"] | sizes), 17)
    code = {"AutoConfig": "configuration_phimoe.PhiMoEConfig"}
    tiny.change_config(folder, auto_map=code)
    (folder / "configuration_phimoe.py").write_text(EXIT)


def deepseek(folder: Path) -> None:
    """deepseek-ai/DeepSeek-V3: FP8 whose last blocks are partial, and a layer 61 to ignore."""
    found, packed = _save("deepseek_v3", folder, **DEEPSEEK), {}
    random = torch.Generator().manual_seed(1)
    for name, tensor in found.items():
        packed[name] = tensor
        if name.endswith("proj.weight") or ("kv_a_proj" in name and tensor.ndim == 2):
            packed[name] = (tensor.float() * 20).to(E4M3)
            grid = [-(-n // 16) for n in tensor.shape]
            scales = torch.rand(grid, generator=random) / 20 + 0.01
            packed[f"{name}_scale_inv"] = scales
    packed["model.layers.61.enorm.weight"] = torch.ones(64, dtype=B16)
    _write(folder, packed, 5)
    method = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
    tiny.change_config(folder, quantization_config=method | {"weight_block_size": [16, 16]})


def qwen35(folder: Path) -> None:
    """Qwen/Qwen3.5-35B-A3B: the text model inside one that sees images, a layer under `mtp.`."""
    text = tiny._COMMON | tiny.FAMILIES["qwen3_next"] | {"vocab_size": 128}
    sight = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2}
    sight |= {"out_hidden_size": 64, "num_position_embeddings": 16}
    text.pop("intermediate_size")
    config = AutoConfig.for_model("qwen3_5_moe", text_config=text, vision_config=sight)
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config, dtype=B16).save_pretrained(folder)
    found = tiny.tensors(folder)
    assert any(name.startswith("model.visual.") for name in found)
    _write(folder, found | {"mtp.fc.weight": torch.ones(64, 128, dtype=B16)}, 14)


def gpt2(folder: Path) -> None:
    """openai-community/gpt2: one file, no prefix, the causal masks, no head."""
    found = _save("gpt2", folder, torch.float32, n_embd=64, n_layer=2, n_head=4, vocab_size=128)
    plain = {name.removeprefix("transformer."): tensor for name, tensor in found.items()}
    plain.pop("lm_head.weight", None)
    masks = {f"h.{n}.attn.bias": torch.ones(1, 1, 8, 8).tril() for n in range(2)}
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    save_file(plain | masks, folder / "model.safetensors", metadata={"format": "pt"})


LAYOUTS: dict[str, Callable[[Path], None]] = {
    layout.__name__: layout
    for layout in (
        olmoe, gpt_oss, qwen3, mixtral, qwen3_next, glm_air, phi, glm_46, deepseek, qwen35, gpt2,
    )
}  # fmt: skip
