"""Reduces the activations of several sequences together, by Triton kernels.

One sequence's activations are too few to keep a large GPU busy. So activations are held until they
take HELD_BYTES, and are then reduced together; the numbers of a sequence do not depend on which
others are held with it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from moe_outliers.recording import reducer, reduction
from moe_outliers.recording.gpu import launch
from moe_outliers.recording.reducer import Keep, Picks, Routing, total_of


@dataclass
class Held:
    """Activations that are reduced together.

    Attributes:
        fixed: arguments of the reduction that are the same for all of them.
        rows: number of each sequence (in a capture: row of the micro-batch), and its tensors.
    """

    fixed: tuple[Any, ...]
    rows: list[tuple[int, tuple[Tensor, ...]]] = field(default_factory=list)


Key = tuple[str, int, str]
"""Scope and number of the statistics, and the kind of activations that they are made from."""


class BatchedReducer:
    """Holds activations, and reduces those of several sequences together."""

    def __init__(self, keep: Keep, delimiter: Tensor, alphas: Sequence[float]) -> None:
        self._keep = keep
        self._delimiter, self._kinds = delimiter, launch.kinds(delimiter)
        self._compiled: set[bool] = set()
        self._alphas = torch.tensor(alphas, dtype=torch.float32, device=delimiter.device)
        self._held: dict[Key, Held] = {}
        self._captured: dict[Key, Held] | None = None
        self._bytes = 0
        device = delimiter.device
        self._on_device: Any = torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def site(
        self,
        number: int,
        sequence: int,
        x: Tensor,
        h: Tensor,
        hits: Tensor,
        *,
        eps: float,
        layer_norm: bool,
    ) -> None:
        """Hold the output of a norm."""
        if layer_norm not in self._compiled:
            with self._on_device:
                how = {"layer_norm": layer_norm}
                launch.compile_all(h, self._delimiter[:1], self._alphas, **how)
            self._compiled.add(layer_norm)
        fixed = hits, eps, layer_norm
        self._hold(("site", number, "norm"), sequence, (x.contiguous(), h.contiguous()), fixed)

    def block(self, number: int, sequence: int, h: Tensor) -> None:
        """Hold the output of a block."""
        self._hold(("block", number, "residual"), sequence, (h.contiguous(),), ())

    def router(
        self, number: int, sequence: int, routing: Routing, steps: Sequence[str | Tensor]
    ) -> None:
        """Hold what a router returned."""
        self._hold(("moe", number, "router"), sequence, routing, tuple(steps))

    def experts(self, picks: Picks, count: int, sequences: int) -> list[dict[str, Tensor]]:
        """Reduce the outputs of the experts at once: they are too large to be held."""
        with self._on_device:
            return launch.experts(picks, count, sequences)

    def mlp(self, number: int, sequence: int, largest: dict[str, Tensor], total: Tensor) -> None:
        """Hold each expert's largest output, and the whole MLP's output there."""
        key, fixed = ("moe", number, "experts"), (tuple(largest),)
        self._hold(key, sequence, (*largest.values(), total), fixed)

    def flush(self) -> None:
        """Reduce all that is held; if memory runs out, the rest stays held for another try."""
        for key, held in list(self._held.items()):
            sequences, rows = zip(*held.rows, strict=True)
            parts = list(zip(*rows, strict=True))
            with self._on_device:
                values = self._reduce(key[2], held.fixed, sequences, parts)
            self._keep(key[0], key[1], sequences, values)
            del self._held[key]
        self._bytes = 0

    @contextmanager
    def capturing(self) -> Iterator[dict[Key, Held]]:
        """While a CUDA graph is captured, record which tensors the hooks saw, row by row."""
        self._captured = {}
        try:
            yield self._captured
        finally:
            self._captured = None

    def replayed(
        self, captured: dict[Key, Held], sequences: Sequence[int], copy: Callable[[Tensor], Tensor]
    ) -> None:
        """After a replay, hold the recorded tensors' new contents, as those of these sequences.

        Args:
            captured: as `capturing` gave it.
            sequences: of the rows.
            copy: copies a tensor to memory that the next replay does not overwrite.
        """
        for key, held in captured.items():
            for row, tensors in held.rows:
                self._hold(key, sequences[row], tuple(map(copy, tensors)), held.fixed)

    def _hold(
        self, key: Key, sequence: int, tensors: tuple[Tensor, ...], fixed: tuple[Any, ...]
    ) -> None:
        held = self._held if self._captured is None else self._captured
        if key not in held:
            # The next layer's parameters will lie where those of this router lie now.
            if key[2] == "router" and self._captured is None:
                fixed = tuple(part.clone() if isinstance(part, Tensor) else part for part in fixed)
            held[key] = Held(fixed)
        held[key].rows.append((sequence, tensors))
        if self._captured is None:
            self._bytes += sum(tensor.nbytes for tensor in tensors)
            if self._bytes >= reducer.HELD_BYTES:
                self.flush()

    def _reduce(
        self, kind: str, fixed: tuple[Any, ...], sequences: Sequence[int], parts: Sequence[Any]
    ) -> dict[str, Tensor]:
        if kind == "residual":
            return launch.residuals(parts[0])
        if kind == "router":
            return launch.routers(list(zip(*parts, strict=True)), fixed)
        if kind == "experts":
            *values, total = map(torch.stack, parts)
            largest = dict(zip(*fixed, values, strict=True))
            return largest | total_of(largest, total)
        hits, eps, layer_norm = fixed
        xs, hs = parts
        return launch.sites(
            xs,
            hs,
            torch.stack([self._kinds[sequence] for sequence in sequences]),
            [hits[sequence] for sequence in sequences],
            alphas=self._alphas,
            eps=eps,
            layer_norm=layer_norm,
        )


def compare_with_plain(device: str) -> None:
    """Reduce small random activations on a device by kernels and in plain torch, and compare.

    Raises:
        Exception: whatever a compiler or a driver raises; AssertionError where numbers differ.
    """
    random = torch.Generator().manual_seed(0)
    h = (torch.randn((80, 2048), generator=random) * 4).bfloat16().to(device)
    delimiter = torch.zeros((1, len(h)), dtype=torch.bool, device=device)
    delimiter[0, 4::7] = True
    z = reduction.normalised(h, eps=1e-6, layer_norm=False)
    alphas = [3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0]
    wanted = reduction.site(h, z, delimiter[0], alphas) | reduction.residual(h)
    hits, limits = [torch.zeros_like(h, dtype=torch.bool)], torch.tensor(alphas, device=device)
    how: Any = {"alphas": limits, "eps": 1e-6, "layer_norm": False}
    launch.compile_all(h, delimiter, limits, layer_norm=False)
    computed = launch.sites([h], [h], launch.kinds(delimiter), hits, **how)
    computed |= launch.residuals([h])
    for name, value in wanted.items():
        torch.testing.assert_close(computed[name][0].to(value.dtype), value, rtol=1e-5, atol=1e-6)
