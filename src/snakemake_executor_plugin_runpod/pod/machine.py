"""What a pod is made of: its GPUs, disk and memory, and how fast it downloads."""

from __future__ import annotations

import re
import subprocess
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

CHUNK = 1 << 20

Json = dict[str, Any]


def gpus() -> list[Json]:
    """Ask the driver for the GPUs; an empty list if there is none."""
    query = "--query-gpu=name,memory.total,driver_version"
    found = []
    for line in output("nvidia-smi", query, "--format=csv,noheader,nounits").splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 3 and parts[1].isdigit():
            found.append({"name": parts[0], "memory_mib": int(parts[1]), "driver": parts[2]})
    return found


def cuda() -> str | None:
    """Return the newest CUDA version that the driver supports."""
    match = re.search(r"CUDA Version:\s*([0-9]+\.[0-9]+)", output("nvidia-smi"))
    return match.group(1) if match else None


def disk_free_gb(folder: Path) -> float:
    """Return the free disk."""
    lines = output("df", "-P", "-k", str(folder)).splitlines()
    return int(lines[1].split()[3]) * 1024 / 1e9 if len(lines) > 1 else 0.0


def memory_gb(known: dict[str, str]) -> float:
    """Return the memory of this container."""
    if known.get("RUNPOD_MEM_GB", "").isdigit():
        return float(known["RUNPOD_MEM_GB"])
    sizes = []
    with suppress(OSError, ValueError):
        sizes.append(int(Path("/proc/meminfo").read_text().split()[1]) * 1024)
        sizes.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(sizes) / 1e9 if sizes else 0.0


def output(*words: str) -> str:
    """Run a command and return what it prints; nothing if it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def speed(request: Json) -> Json:
    """Download for some seconds and say how fast it went."""
    begun, size = time.monotonic(), 0
    try:
        with urllib.request.urlopen(request["url"], timeout=10) as answer:
            begun = time.monotonic()
            while time.monotonic() - begun < request["seconds"]:
                piece = answer.read(CHUNK)
                if not piece:
                    break
                size += len(piece)
    except (OSError, ValueError) as error:
        return {"failed": str(error)}
    return {"bytes": size, "seconds": max(time.monotonic() - begun, 1e-3)}
