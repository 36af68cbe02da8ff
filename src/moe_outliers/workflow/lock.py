"""One owner a folder: a lock that dies with its process, in a file that says who holds it.

Who builds results signs the file and keeps the lock to its end; who only looks at them does not
sign, and is soon done: it is waited for.
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
"""How often a lock is tried whose holder has not signed; time enough to sign."""

QUIET_S = 2.0
"""After that long, the wait is said."""


def claim(path: Path, say: Callable[[str], None]) -> tuple[TextIO | None, str]:
    """Take the lock, unless someone holds it who has signed.

    Args:
        path: the file.
        say: takes a line if this has to wait.

    Returns:
        The open file, which holds the lock until it is closed or its process ends, however it ends;
        or None. And who holds it, or has signed it since it was last taken; empty if nobody.
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
    """Name a folder in which nothing can be written: one of these, or below them; None if none is.

    Of a folder that is not there yet the nearest one above it is looked at.
    """
    for top in folders:
        there = next(p for p in (top, *top.absolute().parents) if p.exists())
        for folder in [there, *(p for p in top.rglob("*") if p.is_dir())]:
            if not os.access(folder, os.W_OK | os.X_OK) or not folder.is_dir():
                return folder
    return None


def sign(file: TextIO) -> None:
    """Write into a claimed file who holds it: process, host, since when."""
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
    file.flush()


def _taken(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
