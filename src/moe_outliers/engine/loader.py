"""Reads layers in order into slots on the device while the layers before them are computed.

Each reader thread fills two page-locked chunks in turn and queues their copies to the slot, on a
CUDA stream beside that of the computation. A reader waits for the device only before it fills a
chunk whose copy is not done: so reading, copying and computing overlap, and memory is bounded by
the slots and the chunks.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moe_outliers.checkpoint.source import Source
from moe_outliers.engine.slot_layout import Layout, Read

CHUNKS_PER_READER = 2


@dataclass
class _Group:
    """A group (the embeddings, one layer, or the head) that is being loaded.

    Attributes:
        pending: reads that are under way.
        taken: all its reads are done or under way.
        copied: CUDA event after the last copy to the slot.
    """

    slot: Tensor
    pending: int = 0
    taken: bool = False
    copied: Any = None

    @property
    def ready(self) -> bool:
        return self.taken and not self.pending


class Loader:
    """Loads groups one after the other; use it as a context manager, from one thread.

    Attributes:
        read_bytes: bytes of the checkpoint read so far.
        waited_s: seconds that `take` waited.
    """

    def __init__(
        self,
        source: Source,
        layouts: Sequence[Layout],
        slots: Sequence[Tensor],
        *,
        first: int,
        readers: int,
        chunk_bytes: int,
    ) -> None:
        """Start the reader threads.

        Args:
            source: where the bytes come from.
            layouts: of all groups.
            slots: uint8, as many as groups may be on the device at once.
            first: the group to begin with.
            readers: threads that read.
            chunk_bytes: largest read.
        """
        self.read_bytes, self.waited_s = 0, 0.0
        self._source, self._layouts, self._chunk_bytes = source, layouts, chunk_bytes
        self._cuda = slots[0].is_cuda
        self._stream: Any = _stream() if self._cuda else None
        self._free: deque[tuple[Tensor, Any]] = deque((slot, None) for slot in slots)
        self._groups: dict[int, _Group] = {}
        self._opening, self._next = first, first
        self._reads: Iterator[Read] = iter(())
        self._changed = threading.Condition()
        self._stopped = False
        self._error: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._read, name=f"reader {n}", daemon=True)
            for n in range(readers)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if kind is not None and not issubclass(kind, torch.OutOfMemoryError):
            self._source.close()  # nothing will be read again: do not wait for what is under way
        for thread in self._threads:
            thread.join()
        if self._stream is not None:
            self._stream.synchronize()  # nothing may write to the slots when they are let go

    def take(self, waiting: Callable[[], None], every_s: float) -> Tensor:
        """Wait until the next group is loaded.

        Args:
            waiting: called from time to time meanwhile.
            every_s: seconds between the calls.

        Returns:
            The slot that holds it, uint8; the current stream waits for its copies.
        """
        started = time.monotonic()
        with self._changed:
            while not (group := self._groups.get(self._next)) or not group.ready:
                if self._error is not None:
                    raise self._error
                if not self._changed.wait(every_s):
                    waiting()
        self.waited_s += time.monotonic() - started
        if self._cuda:
            torch.cuda.current_stream().wait_event(group.copied)
        return group.slot

    def release(self) -> None:
        """Free the slot of the group last taken, as soon as all work queued so far is done."""
        used = None
        if self._cuda:
            used = _event()
            used.record()
        with self._changed:
            self._free.append((self._groups.pop(self._next).slot, used))
            self._source.passed(self._next)
            self._next += 1
            self._changed.notify_all()

    # -- in the reader threads -----------------------------------------------------------------

    def _read(self) -> None:
        """Read until nothing is left; an error ends all readers and is raised by `take`."""
        try:
            chunks = [_Chunk(self._chunk_bytes, self._cuda) for _ in range(CHUNKS_PER_READER)]
            with torch.cuda.stream(self._stream) if self._stream else nullcontext():
                while True:
                    for chunk in chunks:
                        chunk.wait()
                        if (taken := self._take_read()) is None:
                            return
                        self._bring(*taken, chunk)
        except BaseException as error:
            with self._changed:
                self._error = self._error or error
                self._stopped = True
                self._changed.notify_all()

    def _take_read(self) -> tuple[_Group, Read] | None:
        """Return the next read in order; begin with the next group if a slot is free."""
        with self._changed:
            while not self._stopped:
                group = self._groups.get(self._opening - 1)
                if group is not None and not group.taken:
                    if (read := next(self._reads, None)) is not None:
                        group.pending += 1
                        return group, read
                    group.taken = True
                    self._mark_if_ready(group)
                elif self._opening == len(self._layouts):
                    return None
                elif self._free:
                    slot, used = self._free.popleft()
                    if used is not None:
                        self._stream.wait_event(used)
                    self._groups[self._opening] = _Group(slot)
                    self._reads = self._layouts[self._opening].reads(self._chunk_bytes)
                    self._opening += 1
                else:
                    self._changed.wait()
        return None

    def _bring(self, group: _Group, read: Read, chunk: "_Chunk") -> None:
        """Read some bytes and queue their copies to the slot."""
        length = read.stop - read.start
        self._source.read_into(read.shard, read.start, chunk.view[:length])
        for start, place, count in read.copies:
            group.slot[place : place + count].copy_(
                chunk.bytes[start : start + count], non_blocking=True
            )
        chunk.mark()
        with self._changed:
            group.pending -= 1
            self.read_bytes += sum(count for _, _, count in read.copies)
            self._mark_if_ready(group)

    def _mark_if_ready(self, group: _Group) -> None:
        if group.ready:
            if self._cuda:
                group.copied = _event()
                group.copied.record(self._stream)
            self._changed.notify_all()


class _Chunk:
    """A buffer for one read, page-locked if a GPU is to copy from it."""

    def __init__(self, nbytes: int, cuda: bool) -> None:
        self.bytes = torch.empty(nbytes, dtype=torch.uint8, pin_memory=cuda)
        self.view = memoryview(self.bytes.numpy())  # type: ignore[arg-type]
        self._copied = _event() if cuda else None

    def wait(self) -> None:
        """Wait until its content has been copied to the slot."""
        if self._copied is not None:
            self._copied.synchronize()

    def mark(self) -> None:
        """Record, in the current stream, after which copy it may be filled again."""
        if self._copied is not None:
            self._copied.record()


def _event() -> Any:
    return torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]


def _stream() -> Any:
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]
