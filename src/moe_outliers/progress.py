"""Reports the progress of a running model, as lines of text."""

import time
from collections.abc import Callable

Progress = Callable[[str], None]

REPORT_S = 5.0
"""Seconds between two lines."""


class Rate:
    """Reports every few seconds how many bytes have been read, how fast, and the time left."""

    def __init__(self, tell: Progress, total: int, blocks: int) -> None:
        """Start the clock.

        Args:
            tell: prints a line.
            total: bytes of the checkpoint.
            blocks: decoder blocks of the model.
        """
        self._tell, self._total, self._blocks = tell, total, blocks
        self._started = self._told = time.monotonic()

    def report(self, name: str, read: int) -> None:
        """Report the progress, unless that was done just now.

        Args:
            name: of the embeddings, block or head in use.
            read: bytes so far.
        """
        now = time.monotonic()
        if now - self._told < REPORT_S:
            return
        self._told = now
        rate = read / (now - self._started)
        left = (self._total - read) / rate if rate else float("inf")
        self._tell(
            f"{name} of {self._blocks}: {read / 1e9:.1f} of {self._total / 1e9:.1f} GB, "
            f"{rate / 1e9:.2f} GB/s, {left:.0f} s left"
        )

    def end(self, passes: int) -> None:
        """Report the end, after so many forward passes."""
        self._tell(
            f"forward passes: {passes}, each of {self._blocks} blocks; "
            f"{self._total / 1e9:.1f} GB in {time.monotonic() - self._started:.1f} s"
        )
