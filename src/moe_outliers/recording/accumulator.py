"""Accumulates the statistics on the GPU and copies each finished block to the host."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe_outliers.stats import Array
from moe_outliers.storage.statistics_file import VARIABLES

Part = tuple[str, int]
"""Scope and number: ("site", 3), ("block", 1), ("moe", 1) or ("sequence", 0)."""


class Accumulator:
    """The statistics of all sequences, by part of the model: a site, a block, a router."""

    def __init__(self, sequences: int, numbers: dict[str, Sequence[int]]) -> None:
        """Start empty.

        Args:
            sequences: how many there are.
            numbers: numbers of the parts of each scope, ascending.
        """
        self._sequences, self._numbers = sequences, numbers
        self._parts: dict[Part, dict[str, Tensor]] = defaultdict(dict)
        self._whole: dict[str, Tensor] = {}
        self._copier = ThreadPoolExecutor(1)
        self._copies: list[Future[None]] = []

    def close(self) -> None:
        """End the thread that copies to the host."""
        self._copier.shutdown()

    def add(
        self, scope: str, number: int, sequences: Sequence[int], values: dict[str, Tensor]
    ) -> None:
        """Store values by name, (sequence, …); one copy if the sequences are consecutive."""
        part, first = self._parts[scope, number], sequences[0]
        consecutive = list(sequences) == list(range(first, first + len(sequences)))
        for name, value in values.items():
            if name not in part:
                dtype = getattr(torch, VARIABLES[name].dtype)
                shape = self._sequences, *value.shape[1:]
                part[name] = torch.zeros(shape, dtype=dtype, device=value.device)
            if consecutive:
                part[name][first : first + len(sequences)].copy_(value)
            else:
                for row, sequence in enumerate(sequences):
                    part[name][sequence].copy_(value[row])

    def settle(self, parts: Sequence[Part]) -> None:
        """Start to copy some parts to the host; nothing may be added to them any more."""
        for key in parts:
            if key in self._parts:
                copy = HostCopy(self._parts[key], partial(self._place, *key))
                if copy.under_way:
                    self._copies.append(self._copier.submit(copy.finish))

    def of(self, sequence: int) -> dict[str, Array]:
        """Return the variables of one sequence that has passed through the whole model.

        Each is stacked over the numbers of its scope.
        """
        while self._copies:
            self._copies.pop().result()
        parts: dict[str, list[Array]] = defaultdict(list)
        for _, part in sorted(self._parts.items(), key=lambda item: item[0][1]):
            for name in part.keys() - self._whole.keys():
                parts[name].append(part[name][sequence].cpu().numpy())
        stacked = {name: np.stack(values) for name, values in parts.items()}
        return stacked | {name: values[sequence].numpy() for name, values in self._whole.items()}

    def _place(self, scope: str, number: int, name: str, value: Tensor) -> Tensor:
        """Return the tensor on the host that a part of a variable is copied to."""
        numbers = self._numbers[scope]
        if name not in self._whole:
            shape = len(value), len(numbers), *value.shape[1:]
            self._whole[name] = torch.empty(shape, dtype=value.dtype)
        return self._whole[name][:, numbers.index(number)]


class HostCopy:
    """Copies tensors from a GPU to the host; those of the CPU stay where they are."""

    def __init__(self, store: dict[str, Tensor], place: Callable[[str, Tensor], Tensor]) -> None:
        """Queue the copies of all tensors of a store, behind the work that the device has queued.

        Args:
            store: tensors by name; when all is done it holds those of the host instead.
            place: gives the tensor, in pageable memory, that one of a name is copied to.
        """
        self._store, self._place = store, place
        self._parts = {name: part for name, part in store.items() if part.is_cuda}
        self._hosts: dict[str, Tensor] = {}
        if not self.under_way:
            return
        sizes = [-(-part.nbytes // 8) * 8 for part in self._parts.values()]
        locked = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=True)
        pieces = zip(self._parts.items(), torch.split(locked, sizes), strict=True)
        for (name, part), piece in pieces:
            host = piece[: part.nbytes].view(part.dtype).view(part.shape)
            self._hosts[name] = host.copy_(part, non_blocking=True)
        self._done: Any = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._done.record()

    @property
    def under_way(self) -> bool:
        """Whether there is something to finish."""
        return bool(self._parts)

    def finish(self) -> None:
        """Copy from page-locked to pageable memory, so that the locked memory can be used again.

        Fresh pageable memory can cost more time than the copy: let another thread do it.
        """
        if self.under_way:
            self._done.synchronize()
        self._store.update(
            {name: self._place(name, host).copy_(host) for name, host in self._hosts.items()}
        )
