"""Downloads the shards of a model in the order of use; each is verified before it is read.

While one shard is read, the next ones are downloaded. Disk space is bounded: the shard that is
needed last is dropped first. An interrupted run continues with what it has on disk.
"""

import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from moe_outliers.checkpoint.http_ranges import Ranges
from moe_outliers.checkpoint.shard_cache import ShardCache
from moe_outliers.checkpoint.source import Stopped, read_at
from moe_outliers.failpoints import Failpoint, reach
from moe_outliers.progress import Progress

GB = 1e9
DAMAGED_ATTEMPTS = 3
"""How often a shard with a wrong digest is downloaded again."""

REPORT_S = 10.0
"""Seconds between two lines about one shard."""

NEVER = 1 << 30


class Shards:
    """The shards of a repository of the hub, as a source.

    Attributes:
        folder: holds the checkpoint's JSON files.
        names: names of the shards, sorted.
    """

    def __init__(
        self,
        ranges: Ranges,
        folder: Path,
        names: list[str],
        cache: ShardCache,
        *,
        progress: Progress,
        connections: int = 8,
        chunk_bytes: int = 16 << 20,
    ) -> None:
        """Prepare; before `expect` nothing is downloaded but the ranges that `read_into` asks for.

        Args:
            ranges: reads the repository.
            folder: holds its JSON files.
            names: the shards.
            cache: where they lie on this machine; closed with this source.
            progress: takes a line from time to time.
            connections: ranges that are fetched side by side.
            chunk_bytes: bytes of one range.

        Raises:
            ValueError: if the hub lists no digest of a shard.
        """
        self.folder, self.names = folder, names
        self._ranges, self._cache, self._progress = ranges, cache, progress
        self._connections, self._chunk_bytes = connections, chunk_bytes
        self._uses: dict[str, deque[int]] = {}
        self._there: dict[str, int] = {}  # verified shards, open
        self._peeked: dict[tuple[str, int, int], str] = {}
        self._changed, self._stopped = threading.Condition(), False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        for name in names:
            if ranges.files[name].sha256 is None:
                raise ValueError(f"{ranges.where}: the hub lists no sha256 of {name}")

    def size(self, name: str) -> int:
        """Return the bytes of a shard."""
        return self._ranges.files[name].size

    def read_into(self, name: str, offset: int, view: memoryview) -> None:
        """Fill a buffer with the bytes of a shard; wait until it is downloaded and verified.

        Before `expect` is called these are headers: they are read by range, and compared with the
        verified shard later.
        """
        if self._thread is None:
            self._ranges.read_into(name, offset, view)
            self._peeked[name, offset, len(view)] = hashlib.sha256(view).hexdigest()
            return
        with self._changed:
            while name not in self._there:
                if self._error is not None:
                    raise self._error
                self._wait()
            handle = os.dup(self._there[name])
        try:
            read_at(handle, offset, view, Path(name))
        finally:
            os.close(handle)

    def expect(self, order: Sequence[Sequence[str]]) -> None:
        """Start to download the shards, in the order in which groups of tensors need them.

        Raises:
            ValueError: if one group needs more than the budget; the message has the figures.
        """
        cache, least = self._cache, max(sum(map(self.size, group)) for group in order)
        if least > cache.budget:
            raise ValueError(
                f"{cache.folder}: {cache.budget / GB:.1f} GB of disk may be used, the shards of "
                f"one layer need {least / GB:.1f} GB: free some disk, or allow more with "
                "--set-resources extract:disk_gb=…"
            )
        for number, group in enumerate(order):
            for name in group:
                self._uses.setdefault(name, deque()).append(number)
        self._thread = threading.Thread(target=self._fetch_all, name="fetch", daemon=True)
        self._thread.start()

    def passed(self, group: int) -> None:
        """Announce that the groups up to this one will not be read again: drop their shards."""
        with self._changed:
            for uses in self._uses.values():
                while uses and uses[0] <= group:
                    uses.popleft()
            self._changed.notify_all()

    def check(self) -> None:
        """Do nothing: every shard was verified before it was read."""

    def finished(self) -> None:
        """Announce that the results are written: the cache is emptied."""
        for name in self.names:
            self._cache.drop(name)

    def close(self) -> None:
        """Stop downloading; verified shards stay in the cache."""
        with self._changed:
            if self._stopped:
                return
            self._stopped = True
            self._changed.notify_all()
        self._ranges.close()
        if self._thread is not None:
            self._thread.join()
        while self._there:
            os.close(self._there.popitem()[1])
        self._cache.close()

    # -- in the downloading thread -------------------------------------------------------------

    def _fetch_all(self) -> None:
        try:
            with ThreadPoolExecutor(self._connections + 1) as pool:  # one writes
                while (name := self._next()) is not None:
                    if (there := self._obtain(name, pool)) is not None:
                        with self._changed:
                            self._there[name] = there
                            self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _next(self) -> str | None:
        """Wait until a shard is missing; return the one that is needed first, None at the end."""
        with self._changed:
            while any(self._uses.values()):
                missing = [n for n, uses in self._uses.items() if uses and n not in self._there]
                if missing:
                    return min(missing, key=lambda name: (self._uses[name][0], name))
                self._wait()
        return None

    def _wait(self) -> None:
        if self._stopped:
            raise Stopped
        self._changed.wait()

    def _make_room(self, name: str) -> bool:
        """Drop other shards until one fits: those that are not needed again, or later than it.

        A shard that is needed again is dropped only for one that is needed now: to download twice
        costs more than to wait.
        """
        cache, now = self._cache, min(uses[0] for uses in self._uses.values() if uses)
        while cache.used() + cache.lacks(name) > cache.budget:
            others = [n for n in self.names if n != name and cache.held(n)]
            latest = max(others, key=self._when, default=name)
            # Not needed now: only what is never needed again may go. Needed now: all that is later.
            kept_until = NEVER if self._when(name) > now else self._when(name) + 1
            if self._when(latest) < kept_until:
                return False
            if latest in self._there:
                os.close(self._there.pop(latest))
            cache.drop(latest)
        return True

    def _when(self, name: str) -> int:
        return self._uses[name][0] if self._uses.get(name) else NEVER

    def _obtain(self, name: str, pool: ThreadPoolExecutor) -> int | None:
        """Return a verified shard, open: found on this machine, or downloaded.

        None if it is not needed any more by the time there is room: it was read before it was
        dropped.

        Raises:
            ValueError: if it comes damaged again and again, or the disk is full.
        """
        if (path := self._cache.find(name)) is not None:
            return self._opened(name, path)
        with self._changed:
            while self._uses[name] and not self._make_room(name):
                self._wait()
            if not self._uses[name]:
                return None
        for _ in range(DAMAGED_ATTEMPTS):
            digest = self._fetch(name, pool)
            try:
                path = self._cache.keep(name, digest)
            except ValueError as error:
                fault = f"{name} of {self._ranges.where} came damaged: {error}"
                self._progress(fault)
            else:
                reach(Failpoint.SHARD_VERIFIED)
                return self._opened(name, path)
        raise ValueError(f"{fault} ({DAMAGED_ATTEMPTS} attempts)")

    def _opened(self, name: str, path: Path) -> int:
        """Open a verified shard, and compare it with the header that was read before."""
        handle = os.open(path, os.O_RDONLY)
        for (peeked, offset, length), digest in self._peeked.items():
            if peeked == name:
                piece = bytearray(length)
                read_at(handle, offset, memoryview(piece), path)
                if hashlib.sha256(piece).hexdigest() != digest:
                    os.close(handle)
                    raise ValueError(
                        f"{name} of {self._ranges.where}: its header came damaged, or was changed "
                        "since: run again"
                    )
        return handle

    def _fetch(self, name: str, pool: ThreadPoolExecutor) -> str:
        """Download the missing rest of a shard; return the digest of the whole."""
        size, started = self.size(name), time.monotonic()
        digest, said = hashlib.sha256(), started
        try:
            with self._cache.part(name).open("ab+") as file:
                begun = got = file.tell() if file.tell() <= size else file.truncate(0)
                file.seek(0)
                while there := file.read(self._chunk_bytes):
                    digest.update(there)
                for piece in self._pieces(name, begun, pool):
                    written = pool.submit(file.write, piece)
                    digest.update(piece)
                    written.result()
                    got += len(piece)
                    reach(Failpoint.SHARD_GROWN)
                    if time.monotonic() - said > REPORT_S and got < size:
                        said = time.monotonic()
                        self._say(name, got, begun, started)
        except OSError as error:
            raise ValueError(f"{self._cache.folder}: cannot write {name}: {error}") from None
        self._say(name, size, begun, started)
        return digest.hexdigest()

    def _say(self, name: str, got: int, begun: int, started: float) -> None:
        """Report how much of a shard is on disk."""
        size, seconds = self.size(name), max(time.monotonic() - started, 1e-9)
        part = "" if got == size else f"{got / GB:.1f} of "
        self._progress(
            f"{name}: {part}{size / GB:.1f} GB, {(got - begun) / GB / seconds:.2f} GB/s"
            + (f", {begun / GB:.1f} GB were there" if begun else "")
        )

    def _pieces(self, name: str, begin: int, pool: ThreadPoolExecutor) -> Iterator[bytearray]:
        """Download the rest of a shard in parallel, and yield it in order."""
        size, under_way = self.size(name), deque[Future[bytearray]]()
        for start in range(begin, size, self._chunk_bytes):
            length = min(self._chunk_bytes, size - start)
            if len(under_way) == self._connections:
                yield under_way.popleft().result()
            under_way.append(pool.submit(self._piece, name, start, length))
        while under_way:
            yield under_way.popleft().result()

    def _piece(self, name: str, start: int, length: int) -> bytearray:
        piece = bytearray(length)
        self._ranges.read_into(name, start, memoryview(piece))
        return piece
