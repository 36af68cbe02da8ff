"""How far a sweep is: per model, batch by batch, from the files alone."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

from moe_outliers.storage import files, receipts
from moe_outliers.storage.digests import DigestCache
from moe_outliers.workflow import damage, paths
from moe_outliers.workflow.sweep import Sweep

STAMP = re.compile(r"^\d{4}-\d\d-\d\d [\d:,]+ ")
"""What stands before each line of a log."""


def status(sweep: Sweep) -> dict[str, Any]:
    """Say how far a sweep is.

    Returns:
        `models`: for each model batches_valid, batches_total, batches_invalid, and the state of
        each step: done, missing, damaged, or for verify valid or invalid, and `progress`, the last
        line that its extraction said, here or on a pod; `sweep`: the state of what all models
        share; `pods`: a row a job that has had a rented machine, with its dollars; null if none was
        ever rented here, and `error` where the ledger cannot be read.
    """
    with chdir(sweep.directory):
        hashes = DigestCache(paths.DIGEST_CACHE)
        models = {model: _model(sweep.pairs(model), model, hashes) for model in sweep.models}
        shared = {name: _state(Path(path), hashes) for name, path in paths.SHARED.items()}
        pods = _pods()
    for job in pods if isinstance(pods, list) else []:
        model = job["job"].removeprefix("extract ")
        if job["said"] and model in models:
            models[model]["progress"] = job["said"]
    return {"models": models, "sweep": shared, "pods": pods}


def _model(pairs: list[receipts.Pair], model: str, hashes: DigestCache) -> dict[str, Any]:
    faults = damage.model_faults(model, pairs, hashes, damage.token_ids)
    invalid = sum(pair.statistics in faults for pair in pairs)
    there = [pair for pair in pairs if pair.statistics.exists() or pair.receipt.exists()]
    steps = ((name, Path(path.format(model=model))) for name, path in paths.STEPS.items())
    states = {name: _state(path, hashes) for name, path in steps}
    if states["verify"] == "done":
        verdict = files.read_json(paths.VERDICT.format(model=model))
        states["verify"] = "valid" if verdict["valid"] else "invalid"
    return {
        "batches_total": len(pairs),
        "batches_valid": len(there) - invalid,
        "batches_invalid": invalid,
        **states,
        "progress": _last_line(Path(paths.EXTRACT_LOG.format(model=model))),
    }


def _last_line(log: Path, most: int = 4096) -> str:
    """Return the last line of a log, or nothing."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - most, 0))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return STAMP.sub("", lines[-1]) if lines else ""


def _state(product: Path, sha256: Callable[[Path], str]) -> str:
    if not product.exists():
        return "missing"
    return "damaged" if damage.product_fault(product, sha256) else "done"


def _pods() -> Any:
    """Ask the executor for its pods, if one was ever rented from this folder."""
    if not Path(paths.LEDGER).is_file():
        return None
    command = [sys.executable, "-m", "snakemake_executor_plugin_runpod", "status", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return json.loads(done.stdout)
    except ValueError:
        told = done.stderr.strip().splitlines()
        return {"error": told[-1] if told else f"exit status {done.returncode}"}
