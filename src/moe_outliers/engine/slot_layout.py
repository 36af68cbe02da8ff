"""Lays a layer's weights out in device memory, and lists the reads that fill it.

A slot is a piece of device memory for one group: the embeddings, one layer, or the head. Weights
that need no conversion are read straight to their final place in it. Others lie there as they are
stored; the parameters that are computed from them go to the work area.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from moe_outliers.checkpoint import headers
from moe_outliers.checkpoint.stored import Stored
from moe_outliers.engine import dequantise
from moe_outliers.engine.weight_map import Group, Parameter, torch_dtype

ALIGNMENT = 256
"""Bytes: parameters begin at multiples, as matrix kernels want it."""

BRIDGED_BYTES = 1 << 16
"""A gap up to this length between two tensors is read and thrown away, to save a read."""


@dataclass
class Read:
    """One read of consecutive bytes of a shard.

    Attributes:
        copies: place in the read, place in the slot and length of each run of bytes.
    """

    shard: str
    start: int
    stop: int
    copies: list[tuple[int, int, int]] = field(default_factory=list)


class Layout:
    """The layout of one group.

    Attributes:
        slot_bytes: what the group needs of a slot.
        work_bytes: what it needs of the work area.
        read_bytes: bytes of its tensors in the checkpoint.
    """

    def __init__(self, group: Group) -> None:
        """Assign a place to every tensor and every parameter."""
        self.group = group
        self.slot_bytes = self.work_bytes = 0
        self._places: dict[str, int] = {}
        self._raw: dict[headers.Tensor, int] = {}
        self._targets: list[tuple[headers.Tensor, int]] = []
        for parameter in group.parameters:
            if parameter.moved:
                self._move(parameter)
            else:
                self._make(parameter)
        self._targets.sort(key=lambda target: (target[0].shard, target[0].start))
        self.read_bytes = sum(tensor.stop - tensor.start for tensor, _ in self._targets)

    def reads(self, chunk_bytes: int) -> Iterator[Read]:
        """Cut the bytes of the group into reads of at most so many bytes, in order of the files."""
        for shard, targets in groupby(self._targets, key=lambda target: target[0].shard):
            read = Read(shard, 0, 0)
            for tensor, to in targets:
                at = tensor.start
                while at < tensor.stop:
                    if at - read.stop > BRIDGED_BYTES or at - read.start >= chunk_bytes:
                        if read.copies:
                            yield read
                        read = Read(shard, at, at)
                    stop = min(tensor.stop, read.start + chunk_bytes)
                    _add(read, at, to + at - tensor.start, stop - at)
                    at = stop
            yield read

    def parameters(self, slot: Tensor, work: Tensor) -> Iterator[tuple[Parameter, Tensor]]:
        """Yield every parameter of the group; compute those that need a conversion.

        Args:
            slot: uint8, all of the group's bytes are in it.
            work: uint8, the work area; what it held before is lost.
        """
        for parameter in self.group.parameters:
            area = slot if parameter.moved else work
            place = self._places[parameter.name]
            flat = area[place : place + parameter.nbytes].view(parameter.dtype)
            if not parameter.moved:
                self._compute(parameter, slot, flat)
            yield parameter, flat.view(parameter.shape)

    def _move(self, parameter: Parameter) -> None:
        self._places[parameter.name] = self.slot_bytes
        for piece in parameter.pieces:
            place = self.slot_bytes + piece.start * parameter.dtype.itemsize
            self._targets.append((piece.stored.values, place))
        self.slot_bytes += _aligned(parameter.nbytes)

    def _make(self, parameter: Parameter) -> None:
        self._places[parameter.name] = self.work_bytes
        self.work_bytes += _aligned(parameter.nbytes)
        for tensor in parameter.tensors:
            if tensor not in self._raw:  # several parameters may be computed from one tensor
                self._targets.append((tensor, self.slot_bytes))
                self._raw[tensor] = self.slot_bytes
                self.slot_bytes += _aligned(tensor.stop - tensor.start)

    def _compute(self, parameter: Parameter, slot: Tensor, flat: Tensor) -> None:
        if parameter.conversion is None:
            for piece in parameter.pieces:
                out = flat[piece.start : piece.start + math.prod(piece.shape)]
                self._weight(piece.stored, slot, out.view(piece.shape))
            return
        sources = []
        for piece in parameter.pieces:
            made = torch.empty(piece.shape, dtype=parameter.dtype, device=slot.device)
            self._weight(piece.stored, slot, made)
            sources.append(made)
        flat.view(parameter.shape).copy_(parameter.conversion(sources))

    def _weight(self, stored: Stored, slot: Tensor, out: Tensor) -> None:
        """Compute a weight from the bytes that are stored of it."""
        values = self._stored(stored.values, slot)
        if stored.scales is None:
            out.copy_(values)
        elif stored.block is None:
            dequantise.mxfp4(values, self._stored(stored.scales, slot), out)
        else:
            dequantise.fp8(values, self._stored(stored.scales, slot), stored.block, out)

    def _stored(self, tensor: headers.Tensor, slot: Tensor) -> Tensor:
        place = self._raw[tensor]
        raw = slot[place : place + tensor.stop - tensor.start]
        return raw.view(torch_dtype(tensor)).view(tensor.shape)


def _add(read: Read, at: int, to: int, length: int) -> None:
    """Add to a read the copy of bytes from `at` in the shard to `to` in the slot."""
    read.stop = at + length
    if read.copies:
        start, place, before = read.copies[-1]
        if read.start + start + before == at and place + before == to:
            read.copies[-1] = (start, place, before + length)
            return
    read.copies.append((at - read.start, to, length))


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
