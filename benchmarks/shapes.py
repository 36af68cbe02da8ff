"""Random checkpoints at the true shapes of the models, in the hub's own layout.

The numbers are random, the shapes, names and types are not: so times and bytes mean something, and
values do not. Gains are 1 but for every 97th feature, which is GAIN.
"""

import json
import math
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers

GAIN = 6.0
SHARD_BYTES = 5_000_000_000

QWEN = {"head_dim": 128, "vocab_size": 151936}
FULL: dict[str, dict[str, Any]] = {
    "olmoe-1b-7b": {
        "model_type": "olmoe", "hidden_size": 2048, "intermediate_size": 1024,
        "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 16,
        "num_experts": 64, "num_experts_per_tok": 8, "vocab_size": 50304, "dtype": "float32",
    },
    "gpt-oss-20b": {
        "model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880,
        "num_hidden_layers": 24, "num_attention_heads": 64, "num_key_value_heads": 8,
        "head_dim": 64, "num_local_experts": 32, "num_experts_per_tok": 4, "vocab_size": 201088,
        "sliding_window": 128,
    },
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144,
        "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_attention_heads": 32,
        "num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8,
        "norm_topk_prob": True, **QWEN,
    },
    "mixtral-8x7b": {
        "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 32000,
    },
    "qwen3-next-80b-a3b": {
        "model_type": "qwen3_next", "hidden_size": 2048, "intermediate_size": 5120,
        "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
        "num_hidden_layers": 48, "num_attention_heads": 16, "num_key_value_heads": 2,
        "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128,
        "linear_value_head_dim": 128, "num_experts": 512, "num_experts_per_tok": 10,
        **QWEN | {"head_dim": 256},
    },
    "glm-4.5-air": {
        "model_type": "glm4_moe", "hidden_size": 4096, "intermediate_size": 10944,
        "moe_intermediate_size": 1408, "num_hidden_layers": 46, "num_attention_heads": 96,
        "num_key_value_heads": 8, "head_dim": 128, "n_routed_experts": 128,
        "num_experts_per_tok": 8, "n_shared_experts": 1, "first_k_dense_replace": 1,
        "vocab_size": 151552, "attention_bias": True,
    },
    "gpt-oss-120b": {
        "model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880,
        "num_hidden_layers": 36, "num_attention_heads": 64, "num_key_value_heads": 8,
        "head_dim": 64, "num_local_experts": 128, "num_experts_per_tok": 4, "vocab_size": 201088,
        "sliding_window": 128,
    },
}  # fmt: skip
"""What config.json of each model says of its shape, and its type where that is not bfloat16."""

MINIATURE = {
    "hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "num_experts": 8, "num_local_experts": 8,
    "n_routed_experts": 8, "num_experts_per_tok": 2, "vocab_size": 512,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}  # fmt: skip
"""The same keys for a miniature."""


def shape(name: str, *, miniature: bool = False, layers: int | None = None) -> dict[str, Any]:
    """Return config.json of a model.

    Args:
        name: one of FULL.
        miniature: shrink it.
        layers: how many of its layers; None: all.
    """
    found = dict(FULL[name])
    if miniature:
        found |= {key: value for key, value in MINIATURE.items() if key in found}
    if layers is not None:
        found["num_hidden_layers"] = layers
    return found


def skeleton(config: dict[str, Any]) -> Any:
    """Make a model without memory."""
    config = dict(config)
    made = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    with accelerate.init_empty_weights(include_buffers=True):
        return transformers.AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16)


def write(folder: Path, config: dict[str, Any], threads: int = 16) -> int:
    """Write a random checkpoint; return its bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    model = skeleton(config)
    tensors = [entry for item in model.state_dict().items() for entry in stored(*item, config)]
    shards: list[list[tuple[str, str, tuple[int, ...]]]] = [[]]
    filled = 0
    for entry in tensors:
        if filled + nbytes(entry) > SHARD_BYTES and shards[-1]:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += nbytes(entry)
    random = torch.randn(32 << 20, generator=torch.Generator().manual_seed(0)) * 0.02
    noise = {
        "BF16": memoryview(random.bfloat16().view(torch.uint8).numpy()),
        "F32": memoryview(random[: 1 << 20].view(torch.uint8).numpy()),
        "U8": memoryview(torch.randint(0, 256, (64 << 20,), dtype=torch.uint8).numpy()),
    }
    where = {}
    with ThreadPoolExecutor(threads) as pool:
        jobs = []
        for number, entries in enumerate(shards):
            file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
            where |= dict.fromkeys((entry[0] for entry in entries), file)
            jobs.append(pool.submit(_write_shard, folder / file, entries, noise))
        total = sum(job.result() for job in jobs)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    described = json.loads(model.config.to_json_string(use_diff=False))
    if config["model_type"] == "gpt_oss":
        skipped = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"]
        skipped.append("model.embed_tokens")
        described["quantization_config"] = {
            "quant_method": "mxfp4", "modules_to_not_convert": skipped
        }  # fmt: skip
    kind = {"dtype": config.get("dtype", "bfloat16")}
    (folder / "config.json").write_text(json.dumps(described | kind))
    return total


def stored(
    name: str, tensor: torch.Tensor, config: dict[str, Any]
) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return name, type and shape of the tensors of the hub that make a parameter."""
    shape, family = tuple(tensor.shape), config["model_type"]
    plain = "F32" if config.get("dtype") == "float32" else "BF16"
    if family == "gpt_oss" and name.endswith(("gate_up_proj", "down_proj")):
        experts, columns, rows = shape
        groups = (experts, rows, columns // 32)
        return [(f"{name}_blocks", "U8", (*groups, 16)), (f"{name}_scales", "U8", groups)]
    if family in ("mixtral", "phimoe"):
        name = name.replace(".mlp.", ".block_sparse_moe.")
    if ".experts." not in name or len(shape) != 3:
        return [(name, "F32" if tensor.dtype == torch.float32 else plain, shape)]
    stem, _, kind = name.rpartition(".")
    old = family in ("mixtral", "phimoe")
    halves = {"gate_up_proj": ["w1", "w3"] if old else ["gate_proj", "up_proj"]}
    parts = halves.get(kind, ["w2" if old else "down_proj"])
    rows = shape[1] // len(parts)
    return [
        (f"{stem}.{expert}.{part}.weight", plain, (rows, shape[2]))
        for expert in range(shape[0])
        for part in parts
    ]


def nbytes(entry: tuple[str, str, tuple[int, ...]]) -> int:
    """Return the bytes of a stored tensor."""
    _, kind, shape = entry
    return math.prod(shape) * {"BF16": 2, "F32": 4, "U8": 1}[kind]


def flops(config: dict[str, Any], sequences: int, tokens: int) -> float:
    """Count the floating-point operations of a forward pass of the layers, and of the head."""
    model, rows = skeleton(config), sequences * tokens
    picks = model.config.num_experts_per_tok
    active = 0.0
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and "embed_tokens" not in name:
            of_experts = parameter.ndim == 3 and ".experts." in name
            share = picks / parameter.shape[0] if of_experts else 1
            active += parameter.numel() * share
    heads = model.config.num_attention_heads
    width = heads * (getattr(model.config, "head_dim", None) or model.config.hidden_size // heads)
    kinds = getattr(model.config, "layer_types", None)
    kinds = kinds or ["full_attention"] * model.config.num_hidden_layers
    window = getattr(model.config, "sliding_window", None) or 64
    seen = sum(tokens / 2 if kind == "full_attention" else window for kind in kinds)
    return 2 * active * rows + 4 * width * seen * rows


def _write_shard(path: Path, entries: list[Any], noise: dict[str, memoryview]) -> int:
    header, at = {}, 0
    for entry in entries:
        header[entry[0]] = {
            "dtype": entry[1], "shape": entry[2], "data_offsets": [at, at + nbytes(entry)]
        }  # fmt: skip
        at += nbytes(entry)
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for number, entry in enumerate(entries):
            _write_tensor(file, entry, noise[entry[1]], number)
    return at


def _write_tensor(file: Any, entry: Any, noise: memoryview, number: int) -> None:
    name, kind, shape = entry
    if re.search(r"norm\.weight$", name):
        gain = torch.ones(shape)
        gain[::97] = GAIN
        gain = gain if kind == "F32" else gain.bfloat16()
        file.write(memoryview(gain.view(torch.uint8).numpy()))
    elif name.endswith("_scales"):
        file.write(bytes([118]) * math.prod(shape))  # 2^-9: weights of a size as trained ones
    else:
        left, start = nbytes(entry), (number * 4096 * 7) % (len(noise) // 2)
        while left:
            took = min(left, len(noise) - start)
            file.write(noise[start : start + took])
            left, start = left - took, 0


def remove(folder: Path) -> None:
    """Remove a checkpoint, and give its memory back at once."""
    for path in folder.glob("*"):
        os.truncate(path, 0)
        path.unlink()
