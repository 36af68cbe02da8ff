"""File systems of their own, for tests of full disks."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small(place: Path) -> Iterator[Path]:
    """Mount a file system of 64 MB at a new folder; the test is skipped where that is forbidden."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={64 << 20}", "tmpfs", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
