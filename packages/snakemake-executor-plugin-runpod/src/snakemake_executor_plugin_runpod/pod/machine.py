"""What a pod is made of: its GPUs, disk and memory, and how fast it downloads.

Each fact is asked for in a form that is made for programs. None means unknown: the question had no
answer. That is a state of its own, and never the same as none or 0.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import time
import urllib.request
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from deadman import AGENT, variables

LEAST_BYTES = 1_000_000
"""From fewer bytes no speed can be told."""

NO_GPU = (6, 8, 9, 14, 15, 16, 18)
"""Exit statuses of nvidia-smi that say that no GPU works: none was found, one lacks power, the
driver is not loaded, the infoROM is corrupt, a device is lost, must be reset, or has a driver of
another version than this library (its manual, RETURN VALUE; NVML's codes of the same numbers)."""

FULL_GB = 0.02
"""A disk with less than that is full: what failed had no room for its next piece."""

CHUNK = 1 << 20

Json = dict[str, Any]


def gpus() -> list[Json] | None:
    """Ask the driver for the GPUs.

    Returns:
        For each its name, memory_mib (None if the driver does not know it) and driver. An empty
        list if none works, None if nobody can be asked or the answer is not understood.
    """
    query = "--query-gpu=name,memory.total,driver_version"
    text = output("nvidia-smi", query, "--format=csv,noheader,nounits", nothing=NO_GPU)
    if text is None:
        return None
    rows = [[part.strip() for part in line.split(",")] for line in text.splitlines()]
    if any(len(row) != 3 for row in rows):
        return None
    return [
        {"name": name, "memory_mib": int(mib) if mib.isdigit() else None, "driver": driver}
        for name, mib, driver in rows
    ]


def cuda() -> str | None:
    """Return the newest CUDA version that the driver supports, such as 12.8.

    The driver's own library says it, by a call that has been the same since CUDA 2.2; where it
    cannot be loaded, the XML of nvidia-smi does. Its table for people is not asked: it has said
    `CUDA Version`, and says `CUDA UMD Version` since driver 610.
    """
    version = ctypes.c_int(0)
    with suppress(OSError, AttributeError):
        asked = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
        if asked == 0 and version.value:
            return f"{version.value // 1000}.{version.value % 1000 // 10}"
    with suppress(ElementTree.ParseError):
        for entry in ElementTree.fromstring(output("nvidia-smi", "-q", "-x") or ""):
            named = entry.tag in ("cuda_version", "cuda_umd_version")
            if named and re.fullmatch(r"[0-9]+\.[0-9]+", (entry.text or "").strip()):
                return (entry.text or "").strip()
    return None


def disk_free_gb(folder: Path) -> float | None:
    """Return the free disk."""
    lines = (output("df", "-P", "-k", str(folder)) or "").splitlines()
    with suppress(IndexError, ValueError):
        return int(lines[1].split()[3]) * 1024 / 1e9
    return None


def is_full(folder: Path) -> bool:
    """Tell whether the disk is known to be full."""
    free = disk_free_gb(folder)
    return free is not None and free < FULL_GB


def oom_kills() -> int | None:
    """Return how many processes of this container were killed for lack of memory.

    The kernel counts them: `memory.events` of cgroup v2, `memory.oom_control` of v1.
    """
    root = Path(variables().get("SNAKEMAKE_RUNPOD_CGROUP", "/sys/fs/cgroup"))
    for name in ("memory.events", "memory/memory.oom_control"):
        with suppress(OSError, ValueError):
            for line in (root / name).read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return None


def memory_gb(known: dict[str, str]) -> float | None:
    """Return the memory of this container."""
    if known.get("RUNPOD_MEM_GB", "").isdigit():
        return float(known["RUNPOD_MEM_GB"])
    sizes = []
    with suppress(OSError, ValueError):
        sizes.append(int(Path("/proc/meminfo").read_text().split()[1]) * 1024)
        sizes.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(sizes) / 1e9 if sizes else None


def output(*words: str, nothing: tuple[int, ...] = ()) -> str | None:
    """Run a command and return what it prints; None if it is not there, fails or takes too long.

    Args:
        words: of the command line.
        nothing: exit statuses that are an answer too: that there is nothing to print.
    """
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    if done.returncode in nothing:
        return ""
    return done.stdout if done.returncode == 0 else None


def speed(request: Json) -> Json:
    """Download for some seconds and say how fast it went."""
    begun, size = time.monotonic(), 0
    try:
        asked = urllib.request.Request(request["url"], headers={"User-Agent": AGENT})
        with urllib.request.urlopen(asked, timeout=10) as answer:
            begun = time.monotonic()
            while time.monotonic() - begun < request["seconds"]:
                piece = answer.read1(CHUNK)
                if not piece:
                    break
                size += len(piece)
    except (OSError, ValueError, HTTPException) as error:
        return {"failed": str(error)}
    if size < LEAST_BYTES:
        return {"failed": f"only {size} bytes came"}
    return {"bytes": size, "seconds": max(time.monotonic() - begun, 1e-3)}
