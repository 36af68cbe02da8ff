"""One owner a folder: a lock that dies with its process, in a file that says who holds it."""

import fcntl
import os
import socket
from datetime import datetime
from pathlib import Path
from typing import TextIO


def claim(path: Path) -> tuple[TextIO | None, str]:
    """Try to take the lock.

    Returns:
        The open file, which holds the lock until it is closed or its process ends, however it ends;
        or None, and who holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        who = file.read().strip()
        file.close()
        return None, who or "a process that is just starting"
    return file, ""


def sign(file: TextIO) -> None:
    """Write into a claimed file who holds it: process, host, since when."""
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
    file.flush()
