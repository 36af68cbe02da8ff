"""Files that go to a pod, known by their sha256."""

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Item:
    """A file to be staged.

    Attributes:
        name: its path on the pod, below the job's root, with slashes.
        kind: file, program (executable) or link.
        digest: sha256, or what the link points at.
    """

    name: str
    kind: str
    size: int
    digest: str
    path: Path


class Digests:
    """Remembers the sha256 of files for as long as their size and time stay."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[int, int, str]] = {}

    def __call__(self, path: Path) -> str:
        """Return the sha256 of a file."""
        state = path.stat()
        known = self._known.get(path)
        if known and known[:2] == (state.st_size, state.st_mtime_ns):
            return known[2]
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._known[path] = (state.st_size, state.st_mtime_ns, digest)
        return digest


def item(name: str, path: Path, digests: Digests) -> Item:
    """Describe a file that is to be staged."""
    if path.is_symlink() and not path.is_file():  # to a folder, or to nothing
        return Item(name, "link", 0, str(path.readlink()), path)
    state = path.stat()
    kind = "program" if state.st_mode & 0o100 else "file"
    return Item(name, kind, state.st_size, digests(path), path)
