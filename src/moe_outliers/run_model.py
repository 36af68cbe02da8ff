"""Runs a model over token ids, and gives the statistics of its activations as datasets."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers
import xarray as xr

from moe_outliers import tokenization, versions
from moe_outliers.checkpoint.origin import origin_of, tokenize
from moe_outliers.engine import engine, resident
from moe_outliers.failpoints import Failpoint, reach
from moe_outliers.progress import Progress
from moe_outliers.recording import choose
from moe_outliers.recording.anatomy import Anatomy
from moe_outliers.recording.recorder import Recorder
from moe_outliers.stats import Array
from moe_outliers.storage import statistics_file

ALPHAS = (3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0)
"""Thresholds of config/config.yaml."""

NEEDED_ALPHAS = (3, 6)
"""Thresholds that the metrics read, whatever the settings are."""

Outcome = tuple[list[int], xr.Dataset | ValueError]
"""The sequences of a batch, and their statistics or why there are none."""


@dataclass(frozen=True)
class Options:
    """How a model is run.

    Attributes:
        device: cpu or cuda.
        dtype: to compute with: auto (as the checkpoint is stored), bfloat16 or float32.
        micro_batch: sequences in one forward pass; changes the last bits of every number.
        alphas: thresholds, ascending.
        engine: streamed or resident; changes no number.
        disk_bytes: disk that may be filled with shards of the hub; changes no number.
    """

    device: str
    dtype: str = "auto"
    micro_batch: int = 1
    alphas: Sequence[float] = ALPHAS
    engine: str = "streamed"
    disk_bytes: int = 1 << 62


class _Loaded:
    """A model that its owner has loaded, as an engine."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.plan: list[str] = []
        self.run = partial(resident.run, model)


def record(
    model: Any,
    texts: str | Sequence[str] | pa.Table,
    *,
    tokens: int = 2048,
    bos: str = "none",
    name: str | None = None,
    revision: str | None = None,
    tokenizer: Any = None,
    alphas: Sequence[float] = ALPHAS,
    device: str = "auto",
    dtype: str = "auto",
    micro_batch: int = 1,
    engine: str = "streamed",
    disk_gb: float = 40,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Run a model over texts and return the statistics of its activations: no sweep is needed.

    A model that is named, not loaded, is streamed: one layer after the other passes through the
    device, so that a small card is enough for a large model. The numbers are those of the sweep,
    bit for bit, for the same texts, settings and machine.

    Args:
        model: a repository of the hub; a folder with a checkpoint in the hub's layout; or a loaded
            causal language model of transformers, in eval mode, which is run as it is.
        texts: the texts, each of which gives one sequence; or a table of `mo.tokenize`, or of
            results/tokens/.
        tokens: positions of each sequence, 64 to 65,535: every text must have as many.
        bos: none for no special token, model for those that the tokenizer adds by itself.
        name: the attribute `model` of the dataset; None: the last part of the repository's name.
        revision: commit, branch or tag on the hub; None: its main branch as it is now.
        tokenizer: as for `mo.tokenize`.
        alphas: thresholds, ascending, among them 3 and 6.
        device: cpu, cuda, or auto: cuda where there is one. A loaded model stays where it is.
        dtype: to compute with: auto (as the checkpoint is stored), bfloat16 or float32.
        micro_batch: sequences in one forward pass; changes the last bits of every number.
        engine: streamed, or resident: the whole model on the device; changes no number.
        disk_gb: disk that may be filled with shards of the hub, in 10^9 bytes.
        progress: takes a line from time to time, such as `print`.

    Returns:
        The statistics that docs/statistics-file.md lists, and the digest of each sequence's token
        ids as the coordinate `ids_sha256`.

    Raises:
        ValueError: if an argument is not valid, a text is too short, the checkpoint cannot be had
            or run, or an activation was NaN or infinite; the message names the fix.
    """
    _refuse_invalid(alphas, device, micro_batch)
    loaded = not isinstance(model, str | Path)
    say = progress or _silent
    if loaded:
        origin = _origin_of_loaded(model, revision, dtype)
        device = model.get_input_embeddings().weight.device.type
    else:
        origin = origin_of(model, revision)
        device = _device(device)
    names = {"model": name or Path(origin[0]).name} | dict(
        zip(("repo", "revision"), origin, strict=True)
    )
    options = Options(device, dtype, micro_batch, alphas, engine, int(disk_gb * 10**9))
    if isinstance(texts, pa.Table) and texts.schema.equals(tokenization.SCHEMA):
        table = texts
    else:
        table = tokenize(
            model, texts, tokens=tokens, bos=bos, revision=origin[1], tokenizer=tokenizer
        )
    batch = [table["sequence"].to_pylist()]
    how: Any = {"options": options, "names": names, "progress": say}
    with one_thread(device):
        if loaded:
            ((_, result),) = run(_Loaded(model), table, batch, **how)
        else:
            with opened(origin, options, say) as running:
                ((_, result),) = run(running, table, batch, **how)
    if isinstance(result, ValueError):
        raise result
    return result


def opened(
    origin: tuple[str, str], options: Options, progress: Progress
) -> AbstractContextManager[engine.Engine]:
    """Open a model to run it.

    Args:
        origin: repository and commit; or a folder and `local`.
        options: how to run it.
        progress: takes a line from time to time.

    Raises:
        ValueError: on entering, if the checkpoint is not sound or cannot be had.
    """
    return engine.opened(
        *origin,
        engine=options.engine,
        device=options.device,
        dtype=options.dtype,
        disk_bytes=options.disk_bytes,
        progress=progress,
    )


def run(
    running: engine.Engine,
    tokens: pa.Table,
    batches: Sequence[Sequence[int]],
    *,
    options: Options,
    names: Mapping[str, str],
    progress: Progress,
) -> Iterator[Outcome]:
    """Run batches of sequences; yield each as soon as its last sequence is done.

    Args:
        running: an opened model.
        tokens: of tokenization.SCHEMA; rows that no batch names are not run, but count where
            sequences are grouped into forward passes.
        batches: the sequences of each batch, by their global index.
        options: how to run it.
        names: the attributes model, repo and revision.
        progress: takes a line from time to time.

    Yields:
        The sequences of a batch with their statistics; with a ValueError if a sequence has none.

    Raises:
        ValueError: if the sequences are longer than the model's context.
    """
    ids, delimiter = (np.array(tokens[name].to_pylist()) for name in ("ids", "delimiter"))
    _refuse_beyond_context(running.model.config, ids.shape[1])
    known = tokens["sequence"].to_pylist()
    row_of = {sequence: row for row, sequence in enumerate(known)}
    digests = tokens["ids_sha256"].to_pylist()
    batch_of = {sequence: list(batch) for batch in batches for sequence in batch}
    results: dict[int, dict[str, Array]] = {}
    failed: set[int] = set()
    recorder = Recorder(running.model, ids, delimiter, options.alphas)
    refuse_other_sites(recorder.anatomy)
    wanted = [row_of[sequence] for sequence in batch_of]
    with closing(recorder):
        for row in running.run(
            recorder, wanted, micro_batch=options.micro_batch, progress=progress
        ):
            sequence = known[row]
            batch = batch_of[sequence]
            try:
                results[sequence] = recorder.result(row)
            except ValueError as error:
                if batch[0] not in failed:
                    yield batch, ValueError(f"sequence {sequence}: {error}")
                failed.add(batch[0])
            if all(each in results for each in batch):
                reach(Failpoint.BEFORE_STATISTICS)
                parts = [results.pop(each) for each in batch]
                attributes = _attributes(options, running.model, recorder) | dict(names)
                dataset = _assemble(batch, parts, recorder, options.alphas, attributes)
                yield batch, statistics_file.with_ids(dataset, [digests[row_of[s]] for s in batch])


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


@contextmanager
def one_thread(device: str) -> Iterator[None]:
    """Compute with one thread on a CPU: the order of sums, and so the last bits, depends on it."""
    before = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _assemble(
    sequences: list[int],
    parts: list[dict[str, Array]],
    recorder: Recorder,
    alphas: Sequence[float],
    attributes: dict[str, Any],
) -> xr.Dataset:
    stacked = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
    coordinates = statistics_file.coordinates(
        sequences=sequences,
        alphas=alphas,
        sites=[(site.block, site.kind, site.feeds) for site in recorder.sites],
        moe_blocks=recorder.moe_blocks,
    )
    unnamed = attributes | {statistics_file.IDS: ""}  # with_ids fills it in
    return statistics_file.assemble(stacked | recorder.norms(), coordinates, unnamed)


def _attributes(options: Options, model: Any, recorder: Recorder) -> dict[str, Any]:
    """Describe how the numbers were computed: the statistics file's global attributes."""
    config: Any = model.config
    here = environment(options.device)
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
        "micro_batch": options.micro_batch,
        "torch": here["torch"],
        "transformers": here["transformers"],
        "cuda": here["cuda"],
        "device": torch.cuda.get_device_name() if options.device == "cuda" else options.device,
    }


def _mixers(model: Any, recorder: Recorder, kind: str) -> Iterator[Any]:
    """Yield the modules of a kind that read a site."""
    for site in recorder.sites:
        for mixer in site.mixers:
            if mixer.kind == kind:
                yield model.get_submodule(mixer.module)


def _joined(names: Iterable[str]) -> str:
    return " ".join(sorted(set(names))) or "none"


def _refuse_beyond_context(config: Any, tokens: int) -> None:
    """Refuse sequences that are longer than the model's context."""
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and tokens > longest:
        raise ValueError(
            f"sequences of {tokens} tokens, but the model's context is {longest} "
            "(max_position_embeddings in its config.json): take fewer tokens (`data.tokens`), or "
            "leave the model out"
        )


def refuse_other_sites(anatomy: Anatomy) -> None:
    """Refuse a model whose blocks have other sites than the metrics are defined for.

    Raises:
        ValueError: naming the first such block.
    """
    for block in range(len(anatomy.blocks)):
        kinds = [site.kind for site in anatomy.sites_of(block)]
        if kinds != list(statistics_file.KINDS):
            raise ValueError(
                f"block {block} of {anatomy.model_type} has the sites {', '.join(kinds)}; metrics "
                "are defined for blocks that have an attn_in and then a mlp_in: leave the model out"
            )


def _refuse_invalid(alphas: Sequence[float], device: str, micro_batch: int) -> None:
    if list(alphas) != sorted(alphas) or not {*NEEDED_ALPHAS} <= {*alphas}:
        raise ValueError(f"alphas must ascend and contain 3 and 6, got {list(alphas)}")
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device is {device!r}: it must be auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch finds none here: take auto or cpu")
    if micro_batch < 1:
        raise ValueError(f"micro_batch is {micro_batch}: it must be at least 1")


def _origin_of_loaded(model: Any, revision: str | None, dtype: str) -> tuple[str, str]:
    if not isinstance(model, transformers.PreTrainedModel):
        raise ValueError(
            f"model is a {type(model).__name__}: it must be a repository of the hub, a folder, or "
            "a causal language model of transformers"
        )
    if model.training:
        raise ValueError("the model is in training mode, with dropout: call model.eval() first")
    if revision or dtype != "auto":
        raise ValueError("a loaded model has its revision and dtype: leave these arguments out")
    return model.name_or_path or type(model).__name__, "loaded"


def _device(asked: str) -> str:
    return ("cuda" if torch.cuda.is_available() else "cpu") if asked == "auto" else asked


def _silent(line: str) -> None:
    """Say nothing."""
