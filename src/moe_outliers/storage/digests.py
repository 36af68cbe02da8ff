"""Digests of files and folders, and a cache of them."""

from collections.abc import Callable
from pathlib import Path

from moe_outliers.storage import files

LEFT_OUT = frozenset({".snakemake_timestamp"})
"""Files that Snakemake adds to a directory after the job: they do not count."""


class DigestCache:
    """Digests of files, remembered until a file's size or time of change is another."""

    def __init__(
        self, cache: Path, *, full: bool = False, read: Callable[[Path], str] = files.sha256
    ) -> None:
        """Read the cache.

        Args:
            cache: JSON file; a missing or damaged one counts as empty.
            full: ignore the cache, and hash every file again.
            read: computes what is cached of a file.
        """
        self.cache, self._read = cache, read
        try:
            known = files.read_json(cache) if cache.is_file() and not full else {}
        except ValueError:
            known = {}
        self._known: dict[str, list[object]] = known if isinstance(known, dict) else {}
        self._seen: dict[str, list[object]] = {}

    def __call__(self, path: Path) -> str:
        """Return the sha256 of a file, or what else `read` computes."""
        stat = path.stat()
        key = [stat.st_size, stat.st_mtime_ns]
        known = self._seen.get(str(path)) or self._known.get(str(path))
        if isinstance(known, list) and known[:2] == key and len(known) == 3:
            digest = str(known[2])
        else:
            digest = self._read(path)
        self._seen[str(path)] = [*key, digest]
        return digest

    def learn(self, path: Path, digest: str) -> None:
        """Store the digest of a file that was hashed while it was written."""
        stat = path.stat()
        self._seen[str(path)] = [stat.st_size, stat.st_mtime_ns, digest]

    def save(self) -> None:
        """Write the digests of all files that were asked for, and forget the others."""
        if self._seen != self._known:
            files.write_json(self.cache, self._seen)


def digest(product: str | Path, sha256: Callable[[Path], str] = files.sha256) -> str:
    """Hash a file, or a directory by the files in it."""
    path = Path(product)
    return files.tree_sha256(path, LEFT_OUT, sha256) if path.is_dir() else sha256(path)
