"""The folder of a job on its pod: what lies where, and how it is read and written."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

HOME = Path(os.environ.get("SNAKEMAKE_RUNPOD_HOME") or Path.home() / ".snakemake-runpod")

CONSOLE_HEAD = CONSOLE_TAIL = 8 << 20
"""Bytes of a console that stay on the disk, of its beginning and its end."""

Json = dict[str, Any]


def job(request: Json) -> Path:
    """Return the folder of the job that a request is about."""
    name = request["job"]
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,100}", name) or name.startswith("."):
        raise ValueError(f"no name of a job: {name!r}")
    folder: Path = HOME / "jobs" / name
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def work(folder: Path) -> Path:
    """Return the folder in which the job runs."""
    return Path(folder, "root", read_json(folder / "spec.json")["directory"])


def inside(root: Path, name: str) -> Path:
    """Return a path below a folder. Raises ValueError if the name leads out of it."""
    path = Path(os.path.normpath(root / name))
    if Path(name).is_absolute() or root not in path.parents:
        raise ValueError(f"{name!r} leads out of the job's folder")
    return path


def console(folder: Path) -> Path:
    """Return the file that holds what a job printed."""
    return folder / "console.log"


def is_alive(folder: Path) -> bool:
    """Tell whether the process that watches over a job lives."""
    try:
        pid, since = (folder / "pid").read_text().split()
        return born(int(pid)) == since
    except (OSError, ValueError):
        return False


def born(pid: int) -> str:
    """Return when a process started, in the kernel's ticks: its number alone may be used again."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def beat() -> None:
    """Tell the dead-man's switch that the controller is there."""
    HOME.mkdir(parents=True, exist_ok=True)
    (HOME / "heartbeat").touch()


def read_json(path: Path) -> Json:
    """Read a JSON object; empty if there is none."""
    try:
        value: Json = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value


def write_json(path: Path, value: Json) -> None:
    """Write JSON so that a reader sees the old or the new."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value))
    part.replace(path)
