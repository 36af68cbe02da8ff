"""How an attempt can fail, by what may help: another pod, another machine, a larger one."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from snakemake_executor_plugin_runpod.api.errors import printable

TAIL = 20
"""Lines of a failed job's console that are shown."""

OUT_OF_VRAM = re.compile(
    r"([\w.]*OutOfMemoryError: |RuntimeError: ).*"
    r"(CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|HIP out of memory)"
)
"""The line of a Python exception that says that a GPU has too little memory."""

SNAKEMAKE = re.compile(
    r"RuleException:|Error in (group|rule) |\[\w{3} \w{3} .*\]$|CalledProcessError"
)
"""Where Snakemake begins to speak of a job that has failed."""

FULL = re.compile(r"\[Errno (28|122)\]")
"""What the agent says when the pod's disk, or its quota, has no room: ENOSPC, EDQUOT."""

UNKNOWN_PACKAGE = re.compile(
    r"No matching distribution|HASHES|hash(es)? .*(mismatch|match)|conflict"
)
NO_NETWORK = re.compile(r"Retrying \(|[Cc]onnection|[Tt]imed? ?out|Temporary failure")


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
        more: what the job said last, and where the rest is.
    """

    what: str
    had: float | None
    more: str = ""

    def __str__(self) -> str:
        there = "" if self.had is None else f" (there were {self.had:.0f} GB)"
        return f"too little {self.what}{there}"


def shortage(evidence: dict[str, Any], texts: Iterable[str]) -> str | None:
    """Say what there was too little of, if that is proven.

    What a job prints proves nothing: it may have met with a shortage and gone on. Only the
    exception that ended it does, the kernel's count of processes killed for lack of memory, and a
    disk that was seen to be full.

    Args:
        evidence: of this attempt, from the agent.
        texts: what the job printed, and its logs.
    """
    if evidence.get("oom_kills"):
        return "memory"
    if evidence.get("full") is True:
        return "disk"
    return "vram" if any(map(is_out_of_vram, texts)) else None


def is_out_of_vram(text: str) -> bool:
    """Tell whether the last thing that a text tells is an exception for lack of GPU memory."""
    lines = [line for line in text.splitlines() if line.strip()]
    frames = [number for number, line in enumerate(lines) if line.startswith("Traceback ")]
    behind = lines[frames[-1] + 1 :] if frames else []
    last = takewhile(lambda line: not SNAKEMAKE.match(line), behind)
    said = [line for line in last if not line.startswith(" ")]
    return len(said) == 1 and OUT_OF_VRAM.match(said[0]) is not None


def is_of_requirements(text: str) -> bool:
    """Tell whether pip failed for what it was asked for, and not for want of a network."""
    return bool(UNKNOWN_PACKAGE.search(text)) and not NO_NETWORK.search(text)


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
