"""Locks a folder: one process at a time builds results in it, or checks them.

The operating system releases the lock when its process ends, however it ends. A build writes its
name into the lock file; a reader does not, and we wait for it, since it is done within seconds.
"""

import fcntl
import os
import socket
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TextIO

LOOK_S = 0.1
"""Seconds between two attempts to take a lock: enough for a build to write its name."""

QUIET_S = 2.0
"""Seconds after which a message tells of the wait."""


def claim(path: Path, say: Callable[[str], None]) -> tuple[TextIO | None, str]:
    """Take the lock, unless a build holds it.

    Args:
        path: the lock file.
        say: prints a line, if this has to wait.

    Returns:
        The open file, which holds the lock until it is closed or the process ends; None if a build
        holds it. And the name of that build, or of one that has ended since the lock was last
        taken; empty if there is none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    looks = 0
    while not _taken(file):
        time.sleep(LOOK_S)
        file.seek(0)
        if who := file.read().strip():
            file.close()
            return None, who
        looks += 1
        if looks == QUIET_S / LOOK_S:
            say(f"another process checks the results here: waiting for it ({path})")
    file.seek(0)
    who = file.read().strip()
    file.truncate(0)
    return file, who


def unwritable(*folders: Path) -> Path | None:
    """Return the first folder, of these and those below them, that cannot be written to, or None.

    Of a folder that does not exist yet the nearest existing one above it counts.
    """
    for top in folders:
        there = next(p for p in (top, *top.absolute().parents) if p.exists())
        for folder in [there, *(p for p in top.rglob("*") if p.is_dir())]:
            if not os.access(folder, os.W_OK | os.X_OK) or not folder.is_dir():
                return folder
    return None


def sign(file: TextIO) -> None:
    """Write the name of this build into a lock file that it holds: process, host, since when."""
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
    file.flush()


def _taken(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
