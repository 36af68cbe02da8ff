"""Extracts the statistics of one model: every missing or invalid batch, with its receipt."""

import dataclasses
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xarray as xr

from moe_outliers import run_model, tokenization, versions
from moe_outliers.checkpoint.headers import digest
from moe_outliers.engine.engine import Engine
from moe_outliers.failpoints import Failpoint, reach
from moe_outliers.progress import Progress
from moe_outliers.run_model import Options, environment
from moe_outliers.storage import files, parquet, receipts, statistics_file
from moe_outliers.storage.receipts import Pair


@dataclass(frozen=True)
class Task:
    """What to extract, and how.

    Attributes:
        folder: a local checkpoint in the hub's layout; None: the repository that the batches name.
        tokens: the tokens file.
        options: how the model is run.
    """

    folder: Path | None
    tokens: Path
    batches: list[Pair]
    options: Options
    started: float = field(default_factory=time.monotonic)


def extract(task: Task, progress: Progress) -> None:
    """Make every batch valid; batches that are valid already keep their bytes.

    If a batch fails, the others are finished and written first.

    Raises:
        ValueError: if a batch failed; the message names each, with its reason. If the sequences are
            longer than the model's context.
    """
    tokens = parquet.read(task.tokens, tokenization.SCHEMA)
    wanted = _wanted(task, tokens["ids_sha256"].to_pylist(), progress)
    if not wanted:
        progress("every batch is valid: nothing to do")
        return
    for batch in wanted:
        if reason := receipts.fault(*batch):
            progress(f"{batch.statistics}: {reason}: computing it")
            batch.receipt.unlink(missing_ok=True)
            batch.statistics.unlink(missing_ok=True)
    first = wanted[0].expected
    origin = (str(task.folder or first.repo), first.revision)
    names = {name: getattr(first, name) for name in ("model", "repo", "revision")}
    by_sequences = {tuple(batch.expected.sequences): batch for batch in wanted}
    failed = {}
    with (
        run_model.one_thread(task.options.device),
        run_model.opened(origin, task.options, progress) as running,
    ):
        done = run_model.run(
            running,
            tokens,
            list(by_sequences),
            options=task.options,
            names=names,
            progress=progress,
        )
        for sequences, result in done:
            batch = by_sequences[tuple(sequences)]
            if isinstance(result, ValueError):
                failed[batch.expected.batch] = str(result)
            else:
                _write(task, batch, result, running)
    if failed:
        raise ValueError("; ".join(f"batch {name}: {reason}" for name, reason in failed.items()))


def _wanted(task: Task, ids_sha256: list[str], progress: Progress) -> list[Pair]:
    """Choose the batches to compute: the invalid ones, and with them those of other versions.

    All batches of a model must be computed with the same versions of the libraries. What costs is
    to read the model; so where one batch must be computed anyway, those of other versions are too.
    """
    invalid, others = [], []
    here = environment(task.options.device)
    checkpoint = digest(task.folder) if task.folder else None
    for batch in task.batches:
        ids = [ids_sha256[sequence] for sequence in batch.expected.sequences]
        expected = dataclasses.replace(batch.expected, ids_sha256=ids, checkpoint=checkpoint)
        known = batch._replace(expected=expected)
        if receipts.fault(*known):
            invalid.append(known)
        elif receipts.read(known.receipt).versions != here:
            others.append(known)
    if invalid and others:
        progress(
            f"{len(others)} valid batches were made with other versions than {here}: "
            "computing them again"
        )
        return sorted([*invalid, *others], key=lambda batch: batch.expected.batch)
    return invalid


def _write(task: Task, batch: Pair, dataset: xr.Dataset, running: Engine) -> None:
    """Write the statistics file of a batch, then its receipt."""
    statistics_file.write(dataset, batch.statistics)
    reach(Failpoint.BEFORE_RECEIPT)
    receipts.write(batch.receipt, **_receipt(task, batch, dataset.attrs, running.plan))
    reach(Failpoint.AFTER_RECEIPT)


def _receipt(
    task: Task, batch: Pair, attributes: Mapping[str, Any], plan: list[str]
) -> dict[str, Any]:
    expected = batch.expected
    return {
        "format": 1,
        "file": batch.statistics.name,
        "size": batch.statistics.stat().st_size,
        "sha256": files.sha256(batch.statistics),
        "model": expected.model,
        "repo": expected.repo,
        "revision": expected.revision,
        "checkpoint": expected.checkpoint,
        "batch": expected.batch,
        "sequences": expected.sequences,
        "ids_sha256": expected.ids_sha256 or [],
        "settings": expected.settings,
        "engine": versions.EXTRACT,
        "versions": environment(task.options.device),
        "device": attributes["device"],
        "dtype": attributes["norm_dtype"],
        "attempt": files.ATTEMPT,
        "plan": plan,
        "pod": _pod(time.monotonic() - task.started),
    }


def _pod(seconds: float) -> dict[str, Any] | None:
    """Describe the rented machine that this runs on, from its environment."""
    if not (name := os.environ.get("RUNPOD_POD_ID")):
        return None
    price = os.environ.get("RUNPOD_PRICE_USD_PER_H")
    return {
        "id": name,
        "price_usd_per_h": float(price) if price else None,
        "seconds": round(seconds, 1),
    }
