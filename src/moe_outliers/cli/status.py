"""The progress of a sweep, model by model, read from its files."""

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
"""The time stamp of a line of a log."""


def status(sweep: Sweep) -> dict[str, Any]:
    """Return the progress of a sweep.

    Returns:
        `models`: for each model batches_valid, batches_total, batches_invalid, and the state of
        each step: done, missing, damaged, or for verify valid or invalid, and `progress`, the last
        line of its extraction's log, here or on a pod; `sweep`: the state of the products of all
        models together; `pods`: a row for each job that has had a rented machine, with its dollars;
        null if none was ever rented here, and `error` if the ledger cannot be read.
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
    """Return the last line of a log without its time stamp; empty if there is none."""
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
    """Ask the executor for its pods, if any was ever rented from this folder."""
    if not Path(paths.LEDGER).is_file():
        return None
    command = [sys.executable, "-m", "snakemake_executor_plugin_runpod", "status", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return json.loads(done.stdout)
    except ValueError:
        told = done.stderr.strip().splitlines()
        return {"error": told[-1] if told else f"exit status {done.returncode}"}
