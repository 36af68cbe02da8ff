"""How an attempt can fail, by what may help: another pod, another machine, a larger one."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from snakemake_executor_plugin_runpod.api.errors import printable

TAIL = 20
"""Lines of a failed job's console that are shown."""

SHORTAGES = {
    "vram": r"OutOfMemoryError|CUDA out of memory|CUBLAS_STATUS_ALLOC_FAILED",
    "disk": r"No space left on device|Disk quota exceeded",
    "memory": r"Cannot allocate memory|MemoryError|oom-kill"
    r"|non-zero exit status 137|died with <Signals\.SIGKILL",
}
"""What a console says when a pod was too small, by what there was too little of."""

KILLED = 137
"""The status of a process that was killed, mostly for lack of memory."""


class JobError(Exception):
    """A job failed; the text says why and what to do."""


class PodLostError(Exception):
    """The pod is gone, or cannot be reached any more."""


class BadHostError(Exception):
    """The machine is not what was asked for, or does not do what it should."""


@dataclass
class ShortageError(Exception):
    """The pod was too small.

    Attributes:
        what: vram, memory or disk.
        had: how many GB there were; None if nobody knows.
        tail: the end of the console.
    """

    what: str
    had: float | None
    tail: str

    def __str__(self) -> str:
        there = "" if self.had is None else f" (there were {self.had:.0f} GB)"
        return f"too little {self.what}{there}"


def shortage(texts: Iterable[str], code: int | None = None) -> str | None:
    """Say what there was too little of, from what a job printed and its exit status."""
    for text in texts:
        for what, pattern in SHORTAGES.items():
            if re.search(pattern, text):
                return what
    return "memory" if code == KILLED else None


def tail(text: str) -> str:
    """Return the end of a console, safe to print."""
    lines = [printable(line) for line in text.splitlines() if line.strip()]
    return "\n".join(f"    {line[:300]}" for line in lines[-TAIL:])


def available(what: str, facts: dict[str, Any]) -> float | None:
    """Return how many GB of vram, disk or memory a machine has; None if its agent does not know."""
    if what == "vram":
        sizes = [gpu["memory_mib"] for gpu in facts.get("gpus") or []]
        return min((size / 1024 for size in sizes if size is not None), default=None)
    gb = facts.get("memory_gb" if what == "memory" else "disk_free_gb")
    return None if gb is None else float(gb)
