"""Where the bytes of a checkpoint come from: the interface, and a folder on this machine."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """Raised in a thread that waits for bytes when its source is closed."""


class Source(Protocol):
    """The shards of one checkpoint; several threads may read from it at once.

    Attributes:
        folder: holds the checkpoint's JSON files.
        names: names of the shards, sorted.
    """

    folder: Path
    names: list[str]

    def size(self, name: str) -> int:
        """Return the bytes of a shard."""

    def read_into(self, name: str, offset: int, view: memoryview) -> None:
        """Fill a buffer with the bytes of a shard from an offset on.

        Raises:
            ValueError: if they cannot be read; the message names the shard.
        """

    def expect(self, order: Sequence[Sequence[str]]) -> None:
        """Announce, once, in which shards each group of tensors lies, in the order of reading."""

    def passed(self, group: int) -> None:
        """Announce that the groups up to this one will not be read again."""

    def check(self) -> None:
        """Make sure that everything that was read belongs to one checkpoint.

        Raises:
            ValueError: if a shard changed while it was read.
        """

    def finished(self) -> None:
        """Announce that the results are written."""

    def close(self) -> None:
        """Stop every read that is under way, and close all files; a second call does nothing."""


class Folder:
    """A complete checkpoint on this machine; each shard is opened once."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        """Open the shards.

        Raises:
            ValueError: if one is missing or may not be read.
        """
        self.folder, self.names = folder, names
        self._handles: dict[str, int] = {}
        try:
            for name in names:
                self._handles[name] = os.open(folder / name, os.O_RDONLY)
        except OSError as error:
            self.close()
            raise ValueError(f"{folder}: cannot read {name}: {error.strerror}") from None
        self._opened = {name: self._state(name) for name in names}

    def size(self, name: str) -> int:
        """Return the bytes of a shard."""
        return self._opened[name][0]

    def read_into(self, name: str, offset: int, view: memoryview) -> None:
        """Fill a buffer with the bytes of a shard from an offset on."""
        read_at(self._handles[name], offset, view, self.folder / name)

    def expect(self, order: Sequence[Sequence[str]]) -> None:
        """Do nothing: the shards are here."""

    def passed(self, group: int) -> None:
        """Do nothing: the shards stay here."""

    def check(self) -> None:
        """Make sure that no shard changed since it was opened."""
        for name in self.names:
            try:
                same = self._state(name) == self._opened[name]
            except OSError:
                same = False
            if not same:
                raise ValueError(
                    f"{self.folder / name}: the shard was changed while it was read: run again"
                )

    def finished(self) -> None:
        """Do nothing: nothing was downloaded."""

    def close(self) -> None:
        """Close the shards."""
        while self._handles:
            os.close(self._handles.popitem()[1])

    def _state(self, name: str) -> tuple[int, int, int, int]:
        """Return size, time of change, inode and device of the file of that name."""
        stat = (self.folder / name).stat()
        return stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_dev


def read_at(handle: int, offset: int, view: memoryview, path: Path) -> None:
    """Fill a buffer from an open file.

    Raises:
        ValueError: if the file ends before the buffer is full, or cannot be read.
    """
    done = 0
    while done < len(view):
        try:
            got = os.preadv(handle, [view[done:]], offset + done)
        except OSError as error:
            raise ValueError(f"{path}: cannot be read at byte {offset + done}: {error}") from None
        if not got:
            raise ValueError(f"{path}: ends at byte {offset + done}: the shard was truncated")
        done += got
