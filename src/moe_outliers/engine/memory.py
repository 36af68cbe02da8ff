"""Estimates the device and host memory that a pass needs, before it starts.

The estimates are upper bounds. Nothing that depends on them changes a number: with less memory
fewer layers are read ahead, and where one layer does not fit, the model is refused with figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from moe_outliers.engine import host_memory
from moe_outliers.engine.slot_layout import Layout
from moe_outliers.recording.reducer import HELD_BYTES

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
        layouts: of all groups.
        sequences: how many.
        tokens: of a sequence.
        micro_batch: sequences in one forward pass.
        alphas: number of thresholds.
        cuda: the device is a GPU, which holds activations for a while, and captures graphs.
    """
    config = model.config
    width, size = config.hidden_size, model.dtype.itemsize
    states = sequences * tokens * width * (size + 2)
    held = min(HELD_BYTES, 4 * sequences * tokens * width * size) if cuda else 0
    stored = 4 * sequences * width * (4 * alphas + STORED_BYTES)
    rows = micro_batch * tokens
    mixer = max(_attention(config, size, tokens) * micro_batch, _linear(config) * rows)
    head = 256 * config.vocab_size * (size + 8)
    forward = max(mixer, _mlp(model, size) * rows, head) + 4 * rows * width * size
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


def _attention(config: Any, size: int, tokens: int) -> int:
    """Bytes of softmax attention for one sequence; the eager one makes the whole matrix."""
    heads: int = config.num_attention_heads
    head: int = getattr(config, "head_dim", None) or config.hidden_size // heads
    rows = tokens * heads * head * 6 * size
    eager = config._attn_implementation == "eager"
    return rows + (heads * tokens * tokens * (4 * size + 8) if eager else 0)


def _linear(config: Any) -> int:
    """Bytes of linear attention for one position, in float32."""
    heads: int = getattr(config, "linear_num_value_heads", 0)
    head: int = getattr(config, "linear_value_head_dim", 0)
    return 24 * 4 * heads * head


def _mlp(model: Any, size: int) -> int:
    """Bytes of the MLP for one position: of all picked experts, or of a dense one."""
    config = model.config
    inner: int = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
    experts: int = config.num_experts_per_tok * (8 * config.hidden_size + 5 * inner)
    dense: int = 4 * config.intermediate_size
    return size * max(experts, dense)
