"""The host memory that is free, within the limits of the control groups of this process."""

from contextlib import suppress
from pathlib import Path

ROOT = Path("/")
"""Below it lie the files of the Linux kernel; a test replaces it."""

GROUP_FILES = (
    ("memory.max", "memory.current", ""),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
)
"""Files of a control group's limit and use, and the prefix of its cache counters: version 2, and 1.

Cached files count as used, but give way to whoever needs the memory.
"""


def free_bytes() -> int | None:
    """Return the host memory that is free, within the limits of its groups; None if unknown."""
    limits = []
    with suppress(OSError, KeyError):
        fields = dict(line.split(":") for line in (ROOT / "proc/meminfo").read_text().splitlines())
        limits.append(int(fields["MemAvailable"].split()[0]) * 1024)
    for folder in _groups():
        for limit, used, begin in GROUP_FILES:
            with suppress(OSError, KeyError, ValueError):  # it is not there, or says "max"
                most = int((folder / limit).read_text())
                lines = (folder / "memory.stat").read_text().splitlines()
                stat = dict(line.split() for line in lines)
                cached = int(stat[f"{begin}inactive_file"]) + int(stat[f"{begin}active_file"])
                limits.append(most - int((folder / used).read_text()) + cached)
    return min(limits, default=None)


def _groups() -> set[Path]:
    """Name the folders of the control groups that this process is in, as far as they show."""
    root = ROOT / "sys/fs/cgroup"
    folders = {root, root / "memory"}  # in a container they are its own
    with suppress(OSError):
        for line in (ROOT / "proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if "memory" in kinds.split(",") or not kinds:
                place = root / ("memory" if kinds else "") / path.strip("/")
                folders |= {place, *place.parents}
    return folders
