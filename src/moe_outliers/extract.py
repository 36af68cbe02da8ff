"""Extracts the statistics of one model: every missing or invalid batch, with its receipt."""

import dataclasses
import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from moe_outliers import tokenization, versions
from moe_outliers.checkpoint.headers import digest
from moe_outliers.engine import engine
from moe_outliers.failpoints import Failpoint, reach
from moe_outliers.progress import Progress
from moe_outliers.recording import choose
from moe_outliers.recording.anatomy import Anatomy
from moe_outliers.recording.recorder import Recorder
from moe_outliers.stats import Array
from moe_outliers.storage import files, parquet, receipts, statistics_file
from moe_outliers.storage.receipts import Pair


@dataclass(frozen=True)
class Task:
    """What to extract, and how.

    Attributes:
        folder: a local checkpoint in the hub's layout; None: the repository that the batches name.
        tokens: the tokens file.
        device: cpu or cuda.
        dtype: auto, bfloat16 or float32.
        alphas: thresholds, ascending.
        engine: streamed or resident; changes no number.
        disk_bytes: disk that may be filled with shards of the hub; changes no number.
    """

    folder: Path | None
    tokens: Path
    batches: list[Pair]
    device: str
    dtype: str
    micro_batch: int
    alphas: list[float]
    engine: str = "streamed"
    disk_bytes: int = 1 << 62
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
    if task.device == "cpu":
        torch.set_num_threads(1)  # the order of sums, and so the last bits, depends on their number
    for batch in wanted:
        if reason := receipts.fault(*batch):
            progress(f"{batch.statistics}: {reason}: computing it")
            batch.receipt.unlink(missing_ok=True)
            batch.statistics.unlink(missing_ok=True)
    ids, delimiter = (np.array(tokens[name].to_pylist()) for name in ("ids", "delimiter"))
    rows = [row for batch in wanted for row in batch.expected.sequences]
    with engine.opened(
        str(task.folder or task.batches[0].expected.repo),
        task.batches[0].expected.revision,
        engine=task.engine,
        device=task.device,
        dtype=task.dtype,
        disk_bytes=task.disk_bytes,
        progress=progress,
    ) as running:
        _refuse_beyond_context(running.model.config, ids.shape[1])
        recorder = Recorder(running.model, ids, delimiter, task.alphas)
        _refuse_other_sites(recorder.anatomy)
        done = running.run(recorder, rows, micro_batch=task.micro_batch, progress=progress)
        failed = _write_finished(wanted, done, recorder, _Writer(task, running, recorder))
        recorder.close()
    if failed:
        raise ValueError("; ".join(f"batch {name}: {reason}" for name, reason in failed.items()))


def environment(device: str) -> dict[str, str]:
    """Return the versions of libraries that numbers depend on."""
    cuda = torch.version.cuda if device == "cuda" else None
    here = {
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "cuda": cuda or "none",
    }
    if device == "cuda":
        there = choose.usable(torch.device(device, 0))
        here["kernels"] = f"triton {import_module('triton').__version__}" if there else "none"
    return here


def _wanted(task: Task, ids_sha256: list[str], progress: Progress) -> list[Pair]:
    """Choose the batches to compute: the invalid ones, and with them those of other versions.

    All batches of a model must be computed with the same versions of the libraries. What costs is
    to read the model; so where one batch must be computed anyway, those of other versions are too.
    """
    invalid, others = [], []
    here = environment(task.device)
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


def _refuse_beyond_context(config: Any, tokens: int) -> None:
    """Refuse sequences that are longer than the model's context."""
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and tokens > longest:
        raise ValueError(
            f"sequences of {tokens} tokens, but the model's context is {longest} "
            "(max_position_embeddings in its config.json): lower `data.tokens`, or leave the model "
            "out"
        )


def _refuse_other_sites(anatomy: Anatomy) -> None:
    """Refuse a model whose blocks have other sites than the metrics are defined for."""
    for block in range(len(anatomy.blocks)):
        kinds = [site.kind for site in anatomy.sites_of(block)]
        if kinds != list(statistics_file.KINDS):
            raise ValueError(
                f"block {block} of {anatomy.model_type} has the sites {', '.join(kinds)}; metrics "
                "are defined for blocks that have an attn_in and then a mlp_in: leave the model out"
            )


def _write_finished(
    wanted: list[Pair], done: Iterator[int], recorder: Recorder, writer: "_Writer"
) -> dict[str, str]:
    """Write each batch when its last sequence is done; return which failed, and why."""
    results: dict[int, dict[str, Array]] = {}
    failed: dict[str, str] = {}
    for row in done:
        batch = next(batch for batch in wanted if row in batch.expected.sequences)
        try:
            results[row] = recorder.result(row)
        except ValueError as error:
            failed.setdefault(batch.expected.batch, f"sequence {row}: {error}")
        if all(sequence in results for sequence in batch.expected.sequences):
            writer.write(batch, [results.pop(sequence) for sequence in batch.expected.sequences])
    return failed


class _Writer:
    """Writes statistics files and receipts of one model."""

    def __init__(self, task: Task, running: engine.Engine, recorder: Recorder) -> None:
        self.task, self.running, self.recorder = task, running, recorder

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """The attributes that all batches share; only after the first forward pass."""
        return _attributes(self.task, self.running.model, self.recorder)

    def write(self, batch: Pair, parts: list[dict[str, Array]]) -> None:
        """Write the statistics file of a batch, then its receipt."""
        expected, recorder = batch.expected, self.recorder
        ids_sha256 = expected.ids_sha256 or []
        variables = {
            name: np.stack([part[name] for part in parts]) for name in parts[0]
        } | recorder.norms()
        attributes = self.attributes | {
            "model": expected.model,
            "repo": expected.repo,
            "revision": expected.revision,
            "ids_sha256": hashlib.sha256("".join(ids_sha256).encode()).hexdigest(),
        }
        coordinates = statistics_file.coordinates(
            sequences=expected.sequences,
            alphas=self.task.alphas,
            sites=[(site.block, site.kind, site.feeds) for site in recorder.sites],
            moe_blocks=recorder.moe_blocks,
        )
        reach(Failpoint.BEFORE_STATISTICS)
        dataset = statistics_file.assemble(variables, coordinates, attributes)
        statistics_file.write(dataset, batch.statistics)
        reach(Failpoint.BEFORE_RECEIPT)
        receipts.write(batch.receipt, **self._receipt(batch))
        reach(Failpoint.AFTER_RECEIPT)

    def _receipt(self, batch: Pair) -> dict[str, Any]:
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
            "versions": environment(self.task.device),
            "device": self.attributes["device"],
            "dtype": self.attributes["norm_dtype"],
            "attempt": files.ATTEMPT,
            "plan": self.running.plan,
            "pod": _pod(time.monotonic() - self.task.started),
        }


def _attributes(task: Task, model: Any, recorder: Recorder) -> dict[str, Any]:
    """Describe how the numbers were computed: the statistics file's global attributes."""
    config: Any = model.config
    here = environment(task.device)
    kernels = {
        getattr(mixer, "chunk_gated_delta_rule", mixer).__module__.split(".")[0]
        for mixer in _mixers(model, recorder, "linear_attention")
    }
    linear = {"transformers": "torch"}
    return {
        "format": versions.STATISTICS_FORMAT,
        "family": config.model_type,
        "engine": versions.EXTRACT,
        "weights_dtype": str(model.dtype).removeprefix("torch."),
        "norm_dtype": " ".join(sorted(recorder.norm_dtypes)),
        "attention": config._attn_implementation,
        "linear_attention": _joined(linear.get(kernel, kernel) for kernel in kernels),
        "experts": config._experts_implementation or "eager",
        "router_scores": _joined(routing.sorts for routing in recorder.anatomy.routings),
        "micro_batch": task.micro_batch,
        "torch": here["torch"],
        "transformers": here["transformers"],
        "cuda": here["cuda"],
        "device": torch.cuda.get_device_name() if task.device == "cuda" else "cpu",
    }


def _mixers(model: Any, recorder: Recorder, kind: str) -> Iterator[Any]:
    """Yield the modules of a kind that read a site."""
    for site in recorder.sites:
        for mixer in site.mixers:
            if mixer.kind == kind:
                yield model.get_submodule(mixer.module)


def _joined(names: Iterable[str]) -> str:
    return " ".join(sorted(set(names))) or "none"


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
