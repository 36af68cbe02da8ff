"""Estimates the device and host memory that a pass needs, before it starts.

The estimates are upper bounds. Nothing that depends on them changes a number: with less memory
fewer layers are read ahead, and where one layer does not fit, the model is refused with figures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from moe_outliers.engine import host_memory
from moe_outliers.engine.slot_layout import Layout
from moe_outliers.recording.anatomy import Anatomy
from moe_outliers.recording.reducer import HELD_BYTES
from moe_outliers.recording.reduction import HEAD_SLICE

GB = 1e9
DEPTH = 1
"""Layers read ahead of the one in use: with one, reading waits for nothing but a free slot."""

RESERVE_BYTES = 500_000_000
"""Left free for the workspaces of matrix libraries, and for fragmentation."""

HOST_BYTES = 2_000_000_000
"""Host memory of Python and the libraries, beside what is computed here."""

REDUCTION_BYTES = 80
"""Temporaries of the reduction, in bytes for each value of one sequence's norm output."""

STORED_BYTES = 28
"""Bytes of statistics of a site, sequence and feature, beside four bytes for each threshold."""


@dataclass(frozen=True)
class Needs:
    """Bytes of device memory.

    Attributes:
        slot: one group of tensors as stored.
        work: what is computed from them.
        states: hidden states and unions of all sequences, statistics of two blocks.
        forward: the largest forward pass of one micro-batch, with its reduction.
        graph: what a CUDA graph needs beside: the memory of a forward pass of its own.
    """

    slot: int
    work: int
    states: int
    forward: int
    graph: int = 0

    def device(self, depth: int, graphs: bool = False) -> int:
        """Return all that is needed with so many groups read ahead, with graphs or without."""
        passes = self.forward + (self.graph if graphs else 0)
        return (depth + 1) * self.slot + self.work + self.states + passes + RESERVE_BYTES

    def line(self, depth: int, graphs: bool = False) -> str:
        """Describe the needs in words."""
        return (
            f"{depth + 1} slots of {self.slot / GB:.1f} GB, work area {self.work / GB:.1f}, "
            f"states {self.states / GB:.1f}, forward {self.forward / GB:.1f}"
            + (f", its graph {self.graph / GB:.1f}" if graphs else "")
        )


@dataclass(frozen=True)
class Choice:
    """How a pass uses the memory; nothing of it changes a number.

    Attributes:
        depth: layers read ahead of the one in use.
        graphs: whether layers are captured as CUDA graphs.
        line: the choice and the memory that it needs, in words.
        scarce: memory limited the choice.
    """

    depth: int
    graphs: bool
    line: str
    scarce: bool


def needs(
    model: Any,
    anatomy: Anatomy,
    layouts: Sequence[Layout],
    *,
    sequences: int,
    tokens: int,
    micro_batch: int,
    alphas: int,
    cuda: bool = False,
) -> Needs:
    """Compute the device memory that a pass needs.

    Args:
        model: the causal language model.
        anatomy: of the model.
        layouts: of all groups.
        sequences: how many.
        tokens: of a sequence.
        micro_batch: sequences in one forward pass.
        alphas: number of thresholds.
        cuda: the device is a GPU, which holds activations for a while, and captures graphs.
    """
    width, size = anatomy.width, model.dtype.itemsize
    states = sequences * tokens * width * (size + 2)
    held = min(HELD_BYTES, 4 * sequences * tokens * width * size) if cuda else 0
    stored = 4 * sequences * width * (4 * alphas + STORED_BYTES)
    rows = micro_batch * tokens
    eager = model.config._attn_implementation == "eager"
    mixer = max(
        rows * _position(model, anatomy, number, size) + micro_batch * pairs
        for number, block in enumerate(anatomy.blocks)
        for pairs in [block.pair_values * tokens * tokens * (4 * size + 8) if eager else 0]
    )
    head = HEAD_SLICE * anatomy.vocabulary * (size + 8)
    forward = max(mixer, head) + 4 * rows * width * size
    return Needs(
        slot=max(layout.slot_bytes for layout in layouts),
        work=max(layout.work_bytes for layout in layouts),
        states=states + stored + held,
        forward=forward + tokens * width * REDUCTION_BYTES,
        graph=forward if cuda else 0,
    )


def choose(needed: Needs, device: torch.device, depth: int | None, pinned: int) -> Choice:
    """Choose how many layers are read ahead, and whether there is room for CUDA graphs.

    Args:
        needed: as `needs` returns it.
        device: where the model runs.
        depth: layers to read ahead, if that was asked for, or None.
        pinned: bytes of the page-locked chunks.

    Raises:
        ValueError: if the model does not fit; the message has the figures.
    """
    host = host_memory.free_bytes()
    if host is not None and pinned + HOST_BYTES > host:
        raise ValueError(
            f"{(pinned + HOST_BYTES) / GB:.1f} GB of host memory are needed, {host / GB:.1f} GB "
            "are free: take a machine with more memory"
        )
    there = _free(device) if device.type == "cuda" else host
    most = DEPTH if depth is None else depth
    ways = [(most, needed.graph > 0), *((ahead, False) for ahead in range(most, -1, -1))]
    fits = (way for way in ways if there is None or needed.device(*way) <= there)
    chosen = next(fits, (0, False))
    what = f"prefetch depth {chosen[0]}" + ("" if chosen[1] or not needed.graph else ", no graphs")
    line = f"{what}: {needed.device(*chosen) / GB:.1f} GB ({needed.line(*chosen)})"
    if there is not None and needed.device(*chosen) > there:
        raise ValueError(
            f"{line} do not fit: {there / GB:.1f} GB of memory are free on {device}: take a device "
            f"with at least {needed.device(0) / GB:.0f} GB, or fewer sequences"
        )
    return Choice(*chosen, line, scarce=chosen != ways[0])


def _free(device: torch.device) -> int:
    """Return the memory that this process can still allocate on a CUDA device."""
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    idle = reserved - torch.cuda.memory_allocated(device)
    share = torch.cuda.get_per_process_memory_fraction(device)
    return min(free, int(share * total) - reserved) + idle


def _position(model: Any, anatomy: Anatomy, number: int, size: int) -> int:
    """Bytes of a block's forward pass for one position.

    Softmax attention has several tensors of the size of its queries; a dense MLP has them of its
    width. All picked experts have some of the stream's width each, and some of their own. Linear
    attention is computed in float32, in parts, beside several tensors of the size of its queries.
    """
    largest, width = anatomy.blocks[number].position_values, anatomy.width
    needed = 6 * size * largest
    for routing in anatomy.routing_of(number):
        needed = max(needed, size * (8 * routing.top_k * width + 3 * largest))
    for site in anatomy.sites_of(number):
        if "linear_attention" in site.mixer:
            shapes = (model.get_parameter(reader.parameter).shape for reader in site.readers)
            needed = max(needed, 8 * 4 * sum(math.prod(shape) for shape in shapes) // width)
    return needed
