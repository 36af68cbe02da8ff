"""What a machine needs to measure a model, computed from its row of the table of models."""

import math
from typing import Any

OVERHEAD_GB = 5
"""Device memory beside the weights: activations, statistics, CUDA itself."""

DISK_GB = 20
"""Disk beside the checkpoint: Python packages, results."""

SHARDS_GB = 40
"""Disk for shards of the checkpoint; they are dropped after use, so more is not needed."""

MEMORY_GB = 16
"""Host memory; the weights only pass through it."""


def needs(row: dict[str, Any]) -> dict[str, int | str]:
    """Return the resources of a model's extraction, with layers streamed through one GPU.

    Args:
        row: the model's row of config/models.tsv.

    Returns:
        vram_gb (two layers in bfloat16, or float32 if so stored, and the overhead), gpus, disk_gb,
        min_memory_gb, download_gb, and hub (the repository to download, as REPOSITORY@REVISION, or
        empty).
    """
    local = row["revision"] == "local"
    bytes_each = 4 if row.get("stored_dtype") == "float32" else 2
    layer_gb = bytes_each * row["params_b"] / row["layers"]
    return {
        "gpus": 1,
        "vram_gb": math.ceil(2 * layer_gb + OVERHEAD_GB),
        "min_memory_gb": MEMORY_GB,
        "disk_gb": math.ceil(min(row["weights_gb"] * 1.1, SHARDS_GB)) + DISK_GB,
        "download_gb": 0 if local else math.ceil(row["weights_gb"]),
        "hub": "" if local else f"{row['repo']}@{row['revision']}",
    }
