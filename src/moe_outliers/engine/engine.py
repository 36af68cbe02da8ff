"""Opens a model to run it: with its layers streamed, or resident on the device."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import constants

from moe_outliers.checkpoint import headers, hub
from moe_outliers.checkpoint.hub_source import from_hub
from moe_outliers.checkpoint.source import Folder, Source
from moe_outliers.engine import resident, streamed
from moe_outliers.progress import Progress
from moe_outliers.recording.recorder import Recorder

ENGINES = ("streamed", "resident")


class Engine(Protocol):
    """A model that is ready to run.

    Attributes:
        model: a causal language model of transformers.
        plan: what was given up for lack of memory, in words.
    """

    model: Any
    plan: list[str]

    def run(
        self, recorder: Recorder, wanted: list[int], *, micro_batch: int, progress: Progress
    ) -> Iterator[int]:
        """Run sequences; yield each as soon as the recorder holds all of it."""


class _Resident:
    """A model that is completely on the device."""

    def __init__(self, folder: Path, *, device: str, dtype: str) -> None:
        self.model = resident.load(folder, device=device, dtype=dtype)
        self.plan: list[str] = []
        self.run = partial(resident.run, self.model)


@contextmanager
def opened(
    repo: str,
    revision: str,
    *,
    engine: str,
    device: str,
    dtype: str,
    disk_bytes: int,
    progress: Progress,
) -> Iterator[Engine]:
    """Open a model to run it; shards that were downloaded are removed when all went well.

    Args:
        repo: a repository of the hub, or a folder where the revision is `local`.
        revision: a commit, or `local`.
        engine: streamed or resident; changes no number.
        device: cpu or cuda.
        dtype: auto, bfloat16 or float32.
        disk_bytes: disk that may be filled with shards.
        progress: takes a line from time to time.

    Raises:
        ValueError: if the checkpoint is not sound or cannot be had.
    """
    if engine not in ENGINES:
        raise ValueError(f"extract: engine {engine!r} is not one of {', '.join(ENGINES)}")
    if engine == "resident":
        folder = Path(repo) if revision == "local" else hub.snapshot(repo, revision)
        yield _Resident(folder, device=device, dtype=dtype)
        return
    if revision == "local" or constants.HF_HUB_OFFLINE:
        folder = Path(repo) if revision == "local" else hub.snapshot(repo, revision)
        source: Source = Folder(folder, headers.shards(folder))
    else:
        source = from_hub(repo, revision, disk_bytes=disk_bytes, progress=progress)
    with closing(source):
        yield streamed.Streamed(source, device=device, dtype=dtype)
        source.finished()
