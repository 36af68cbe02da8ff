"""Tiny checkpoints of every family, in the hub's own layout, with random weights."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

_COMMON = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts_per_tok": 2,
    "vocab_size": 128,
}
_LINEAR = {
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "shared_expert_intermediate_size": 32,
}
_GLM = {"n_routed_experts": 8, "n_shared_experts": 1, "first_k_dense_replace": 1}
FAMILIES = {
    "olmoe": {"num_experts": 8, "intermediate_size": 32},
    "gpt_oss": {"num_local_experts": 8, "intermediate_size": 64, "sliding_window": 16},
    "qwen3_moe": {"num_experts": 8, "moe_intermediate_size": 32, "intermediate_size": 128},
    "mixtral": {"num_local_experts": 4, "intermediate_size": 64},
    "qwen3_next": {"num_experts": 8, "moe_intermediate_size": 32, "intermediate_size": 64}
    | _LINEAR,
    "glm4_moe": {"moe_intermediate_size": 32, "intermediate_size": 64} | _GLM,
    "phimoe": {"num_local_experts": 4, "intermediate_size": 64},
}
QUANTISED = ("gpt_oss-mxfp4", "qwen3_moe-fp8", "glm4_moe-fp8")
ALL = (*FAMILIES, *QUANTISED)


def make(name: str, folder: Path) -> Path:
    """Write a checkpoint in several shards; tensors that the model's class ignores are among them.

    Args:
        name: one of ALL.
        folder: where to; made where it is missing.
    """
    family, _, stored = name.partition("-")
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **_COMMON | FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "layernorm" in key:
                parameter[::9] = 6.0
    if family == "glm4_moe":
        for layer in model.model.layers[1:]:
            layer.mlp.gate.e_score_correction_bias.uniform_(-0.1, 0.1)
    model.save_pretrained(folder, max_shard_size="100KB")
    if family == "qwen3_next":
        _add(folder, {"mtp.layers.0.mlp.gate.weight": torch.ones(3, 5)})
    if family == "glm4_moe":
        _add(folder, {"model.layers.46.enorm.weight": torch.ones(3, 5)})
    if stored:
        _quantise(folder, stored)
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Read every tensor of a checkpoint."""
    return {k: v for p in sorted(folder.glob("*.safetensors")) for k, v in load_file(p).items()}


def write(folder: Path, found: dict[str, torch.Tensor], shards: int = 8) -> None:
    """Write tensors as a checkpoint of so many shards, in order of their names."""
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    names = sorted(found)
    cut = [
        names[number * len(names) // shards :][: -(-len(names) // shards)]
        for number in range(shards)
    ]
    where = {}
    for number, keys in enumerate(cut):
        shard = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        mine = {key: found[key] for key in keys if key not in where}
        save_file(mine, folder / shard, metadata={"format": "pt"})
        where |= dict.fromkeys(mine, shard)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def change_config(folder: Path, **keys: object) -> None:
    """Change keys of config.json; None removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def dequantised(folder: Path, plain: Path, dtype: torch.dtype) -> Path:
    """Write a quantised checkpoint again, its weights dequantised by transformers' own code."""
    shutil.copytree(folder, plain)
    found, made = tensors(folder), {}
    for key, value in found.items():
        if key.endswith("_blocks"):
            name = key.removesuffix("_blocks")
            made[name] = convert_moe_packed_tensors(value, found[f"{name}_scales"], dtype=dtype)
        elif f"{key}_scale_inv" in found:
            scales = found[f"{key}_scale_inv"]
            made[key] = Fp8Dequantize(None)._dequantize_one(value, scales, dtype)
        elif not key.endswith(("_scales", "_scale_inv")):
            made[key] = value
    write(plain, made)
    change_config(plain, quantization_config=None)
    return plain


def _add(folder: Path, more: dict[str, torch.Tensor]) -> None:
    write(folder, tensors(folder) | more)


def _quantise(folder: Path, method: str) -> None:
    """Store weights as MXFP4 or FP8, with random values and scales."""
    random = torch.Generator().manual_seed(1)
    found = {}
    for key, value in tensors(folder).items():
        if method == "mxfp4" and key.endswith(("gate_up_proj", "down_proj")):
            experts, columns, rows = value.shape
            shape = (experts, rows, columns // 32)
            found[f"{key}_blocks"] = torch.randint(
                0, 256, (*shape, 16), generator=random, dtype=torch.uint8
            )
            found[f"{key}_scales"] = torch.randint(
                117, 123, shape, generator=random, dtype=torch.uint8
            )
        elif method == "fp8" and key.endswith("_proj.weight"):
            found[key] = (value.float() * 20).to(torch.float8_e4m3fn)
            shape = (value.shape[0] // 16, value.shape[1] // 32)
            found[f"{key}_scale_inv"] = torch.rand(shape, generator=random) / 20
        else:
            found[key] = value
    write(folder, found)
    more = {"modules_to_not_convert": ["lm_head"]}
    if method == "fp8":
        more |= {"activation_scheme": "dynamic", "weight_block_size": [16, 32]}
    change_config(folder, quantization_config={"quant_method": method} | more)
