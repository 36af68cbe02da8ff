"""A folder of verified shards, bounded in size."""

import fcntl
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from moe_outliers.checkpoint.hub import File
from moe_outliers.progress import Progress
from moe_outliers.storage.digests import DigestCache
from moe_outliers.storage.files import PART

RESERVE_BYTES = 1_000_000_000
"""Disk that is left free."""


class ShardCache:
    """The shards of one repository at one commit that lie on this machine.

    A shard gets its name in the cache only when its sha256 is the one that the hub lists. One
    process uses a cache at a time.

    Attributes:
        folder: the folder.
        budget: bytes that may lie in it.
    """

    def __init__(
        self,
        folder: Path,
        files: Mapping[str, File],
        *,
        budget: int,
        progress: Progress,
        elsewhere: Callable[[str], Path | None] = lambda _: None,
    ) -> None:
        """Lock the folder; wait while another process has it.

        Args:
            folder: made where it is missing.
            files: size and digest of each shard.
            budget: bytes that may lie in it; no more than the disk has.
            progress: takes a line from time to time.
            elsewhere: gives a copy of a shard that lies elsewhere on this machine, or None.
        """
        self.folder, self._files, self._elsewhere = folder, files, elsewhere
        self._progress = progress
        self._lock = _claim(folder, progress)
        self._hashes = DigestCache(folder / f"hashes-{_boot()}.json")
        free = shutil.disk_usage(folder).free - RESERVE_BYTES
        self.budget = min(budget, max(free, 0) + self.used())

    def close(self) -> None:
        """Unlock the folder."""
        os.close(self._lock)

    def part(self, name: str) -> Path:
        """Return the path of a shard that is not complete yet."""
        return self.folder / f".{name}{PART}"

    def held(self, name: str) -> int:
        """Return how many bytes of a shard lie in the cache."""
        paths = (self.folder / name, self.part(name))
        return sum(path.stat().st_size for path in paths if path.is_file())

    def used(self) -> int:
        """Return how many bytes lie in the cache."""
        return sum(map(self.held, self._files))

    def lacks(self, name: str) -> int:
        """Return how many bytes of a shard are missing in the cache."""
        return self._files[name].size - self.held(name)

    def drop(self, name: str) -> None:
        """Remove a shard, complete or not."""
        for path in (self.folder / name, self.part(name)):
            path.unlink(missing_ok=True)

    def find(self, name: str) -> Path | None:
        """Return a verified copy of a shard; remove a damaged one from the cache."""
        wanted = self._files[name]
        for path in filter(None, (self._elsewhere(name), self.folder / name)):
            if path.is_file():
                if path.stat().st_size == wanted.size and self._hashes(path) == wanted.sha256:
                    return path
                self._progress(f"{path}: the content differs from the hub's: fetching it again")
        (self.folder / name).unlink(missing_ok=True)
        return None

    def keep(self, name: str, digest: str) -> Path:
        """Give a downloaded shard its name if its digest is right; else remove it.

        Raises:
            ValueError: if it is not.
        """
        if digest != self._files[name].sha256:
            self.part(name).unlink()
            raise ValueError(f"its sha256 is {digest}, the hub lists {self._files[name].sha256}")
        path = self.folder / name
        self.part(name).replace(path)
        self._hashes.learn(path, digest)
        self._hashes.save()
        return path


def _claim(folder: Path, progress: Progress) -> int:
    """Lock a folder until this process ends; wait while another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        progress(f"{folder}: another process fetches the same model here: waiting for it to end")
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _boot() -> str:
    """Return an id of this boot of the machine: after a crash no cached digest is trusted."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text()[:8] if path.is_file() else "unknown"
