"""Reads a checkpoint's config.json, and checks it before anything depends on it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_outliers.storage import files

QUANTISED = ("mxfp4", "fp8")
"""Formats of quantised weights that can be read: quant_method in config.json."""

FP8_BLOCK = [128, 128]
"""Rows and columns that share a scale of FP8 where config.json does not say: as transformers."""

LIMITS = {
    "num_hidden_layers": 1000,
    "hidden_size": 65536,  # feature numbers are stored in 16 bits
    "vocab_size": 10_000_000,
    "num_attention_heads": 4096,
    "num_key_value_heads": 4096,
    "head_dim": 65536,
    "intermediate_size": 1_000_000,
    "moe_intermediate_size": 1_000_000,
    "num_experts": 65535,
    "num_local_experts": 65535,
    "n_routed_experts": 65535,
    "num_experts_per_tok": 4096,
}
"""Largest sensible sizes in config.json: a larger one would only exhaust memory."""

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Keys of config.json that say how many experts a router picks from, one for each family."""


def read_config(path: Path) -> dict[str, Any]:
    """Read config.json and check that this program can measure such a model.

    Raises:
        ValueError: if it is no JSON object, or a size is not sensible.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: no checkpoint in the hub's layout")
    config = files.read_json(path)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ValueError(f"{path}: not the config.json of a model: no model_type")
    for key, limit in LIMITS.items():
        value, least = config.get(key), 0 if key in EXPERTS else 1  # dense relatives have none
        if value is not None and not (isinstance(value, int) and least <= value <= limit):
            raise ValueError(
                f"{path}: {key} is {value!r}, must be a whole number from {least} to {limit}"
            )
    picked = config.get("num_experts_per_tok") or 0
    experts = max(config.get(key) or 0 for key in EXPERTS)
    if 0 < experts < picked:
        raise ValueError(f"{path}: num_experts_per_tok is {picked}, of {experts} experts")
    return config


@dataclass(frozen=True)
class Quantisation:
    """How the weights of a checkpoint are quantised.

    Attributes:
        method: one of QUANTISED.
        block: rows and columns of an FP8 weight that share one scale; None: all of it share one.
        exponents: scales that are stored as bytes are exponents of two, biased by 127.
    """

    method: str
    block: tuple[int, int] | None = None
    exponents: bool = False


def quantisation(config: dict[str, Any], folder: Path) -> Quantisation | None:
    """Return how the weights of a checkpoint are quantised, or None if they are not.

    Raises:
        ValueError: if they are in a way that cannot be dequantised here.
    """
    settings = config.get("quantization_config")
    if settings is None:
        return None
    named = settings.get("quant_method") if isinstance(settings, dict) else settings
    if named not in QUANTISED or not isinstance(settings, dict):
        said = f"by {named!r}" if named else "in a way that config.json does not name"
        raise ValueError(
            f"{folder}: weights quantised {said}; {' and '.join(QUANTISED)} can be read: "
            "take the repository with the original weights"
        )
    if named != "fp8":
        return Quantisation(named)
    block = settings.get("weight_block_size", FP8_BLOCK)  # stated as null: one scale a weight
    if block is not None and not (
        isinstance(block, list)
        and len(block) == 2
        and all(type(side) is int and side > 0 for side in block)
    ):
        raise ValueError(
            f"{folder / 'config.json'}: weight_block_size is {block!r}, must be two whole numbers "
            "from 1 on, or null"
        )
    exponents = settings.get("scale_fmt") == "ue8m0"
    return Quantisation(named, (block[0], block[1]) if block else None, exponents)
