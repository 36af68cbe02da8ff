"""Counts what a model is, for its row of the table of models; refuses what cannot be measured."""

from typing import Any

import numpy as np

from moe_outliers.checkpoint import facts, headers
from moe_outliers.checkpoint.source import Source
from moe_outliers.engine.streamed import Streamed
from moe_outliers.recording.recorder import Recorder
from moe_outliers.run_model import refuse_other_sites
from moe_outliers.storage import files

ALPHAS = (3.0, 6.0)
POSITIONS = 8


def describe(source: Source) -> dict[str, Any]:
    """Count a model's parameters and name its shape, size and type; no weight is read.

    Everything is done that an extraction does before it reads weights, so what it would refuse is
    refused here.

    Args:
        source: where the checkpoint comes from; closed by whoever made it.

    Returns:
        The columns of the table of models, all but model, number, repo and revision: in 10^9 and
        rounded to three digits where they are counts.

    Raises:
        ValueError: with the reason, if the model cannot be measured.
    """
    running = Streamed(source, device="cpu", dtype="auto")
    nothing = np.zeros((1, POSITIONS))
    Recorder(running.model, nothing.astype("int32"), nothing.astype(bool), ALPHAS).close()
    refuse_other_sites(running.anatomy)
    config = files.read_json(source.folder / "config.json")
    size = sum(source.size(name) for name in source.names)
    found = facts.of_index(config, headers.index_of(source), size)
    share = (found.top_k or 0) / found.experts if found.experts else 1
    total, active = _parameters(running.model, share)
    return {
        "params_b": rounded(total / 1e9),
        "active_b": rounded(active / 1e9),
        "layers": len(running.anatomy.blocks),
        "width": running.anatomy.width,
        "experts": found.experts,
        "top_k": found.top_k,
        "weights_gb": rounded(found.weights_gb),
        "stored_dtype": found.stored_dtype or "",
    }


def rounded(number: float) -> float:
    """Round a number to three digits."""
    return float(f"{number:.3g}")


def _parameters(model: Any, share: float) -> tuple[int, float]:
    """Count all parameters of a model, and those that one token uses: of the experts a share."""
    total, active = 0, 0.0
    for name, parameter in model.named_parameters():  # tied ones come once
        total += parameter.numel()
        active += parameter.numel() * (share if ".experts." in name else 1)
    return total, active
