"""Reads a checkpoint's config.json, and checks it before anything depends on it."""

from pathlib import Path
from typing import Any

from moe_outliers.storage import files

QUANTISED = ("mxfp4", "fp8")
"""Formats of quantised weights that can be read: quant_method in config.json."""

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


def quantisation(config: dict[str, Any], folder: Path) -> str | None:
    """Name how the weights of a checkpoint are quantised, or None if they are not.

    Raises:
        ValueError: if they are in a way that cannot be dequantised here.
    """
    settings = config.get("quantization_config")
    if settings is None:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else settings
    if method not in QUANTISED:
        raise ValueError(
            f"{folder}: weights quantised by {method!r}; {' and '.join(QUANTISED)} can be read: "
            "take the repository with the original weights"
        )
    return str(method)
