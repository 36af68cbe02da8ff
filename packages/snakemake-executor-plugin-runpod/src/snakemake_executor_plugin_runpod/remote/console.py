"""What a job printed: kept here as a file, and its last line told from time to time."""

import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from snakemake_executor_plugin_runpod.api.errors import printable

LINE = 160
"""Characters of a line that are told."""

CHATTER = re.compile(
    r"\[\w{3} \w{3} |Execute \d+ jobs|Select jobs|Elapsed time|Complete log|Building DAG"
    r"|Using shell|Storing output in storage"
)
"""What Snakemake says on the pod whatever it is told; it is kept, not told."""

CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]")
"""Control characters but tabulators and line ends, those of UTF-8's second page too."""

MOST = 100_000
"""Characters of a file that are looked at when a job has failed."""


class Console:
    """Takes what a job printed, piece by piece.

    Attributes:
        path: of the file that keeps it.
    """

    def __init__(self, path: Path, say: Callable[[str], None], every_s: float) -> None:
        self.path, self._say, self._every_s = path, say, every_s
        self._last, self._said = "", 0.0

    def clear(self) -> None:
        """Begin anew: the pod sends everything again."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(b"")

    def add(self, text: str) -> None:
        """Keep a piece, and tell its last line if the last one was told long enough ago."""
        if not text:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)
        last = last_line(text)
        if last and last != self._last and time.monotonic() - self._said >= self._every_s:
            self._say(last)
            self._last, self._said = last, time.monotonic()


def last_line(text: str) -> str:
    """Return the last line that a job itself printed, safe to print; nothing if there is none."""
    lines = (printable(line) for line in reversed(text.splitlines()) if line.strip())
    return next((line[:LINE] for line in lines if not CHATTER.match(line)), "")


def read(path: Path) -> str:
    """Return the end of a file; nothing if there is none."""
    try:
        return path.read_text(errors="replace")[-MOST:]
    except OSError:
        return ""


def neutralise(path: Path) -> None:
    """Make the control characters of a log visible: Snakemake prints it as it is."""
    with suppress(OSError):
        raw = path.read_bytes()
        shown = CONTROL.sub(lambda found: b"^%c" % (found[0][-1] & 0x1F | 0x40), raw)
        if shown != raw:
            path.write_bytes(shown)
