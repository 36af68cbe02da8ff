"""Reduces each activation as it comes, in plain torch: the reference, and the way of the CPU."""

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_outliers.recording import reduction
from moe_outliers.recording.reducer import Keep, Picks, Routing, total_of


class PlainReducer:
    """Reduces each activation when it comes, in plain torch: the reference."""

    def __init__(self, keep: Keep, delimiter: Tensor, alphas: Sequence[float]) -> None:
        self._keep, self._delimiter, self._alphas = keep, delimiter, alphas

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
        """Reduce the output of a norm."""
        z = reduction.normalised(h, eps=eps, layer_norm=layer_norm)
        values = reduction.site(x, z, self._delimiter[sequence], self._alphas)
        self._kept("site", number, sequence, values)
        hits[sequence] |= x.bfloat16().abs() >= reduction.OUTLIER

    def block(self, number: int, sequence: int, h: Tensor) -> None:
        """Reduce the output of a block."""
        self._kept("block", number, sequence, reduction.residual(h))

    def router(
        self, number: int, sequence: int, routing: Routing, steps: Sequence[str | Tensor]
    ) -> None:
        """Reduce what a router returned."""
        values = reduction.router(*routing, steps)
        self._kept("moe", number, sequence, values)

    def experts(self, picks: Picks, count: int, sequences: int) -> list[dict[str, Tensor]]:
        """Reduce the outputs of the experts."""
        raw = torch.empty_like(picks.raw).index_copy_(0, picks.order, picks.raw)
        raw = raw.view(*picks.picked.shape, -1)
        parts = (part.chunk(sequences) for part in (raw, picks.weights, picks.picked))
        return [
            reduction.experts(r, r * w[..., None], p, count) for r, w, p in zip(*parts, strict=True)
        ]

    def mlp(self, number: int, sequence: int, largest: dict[str, Tensor], total: Tensor) -> None:
        """Store each expert's largest output, and the whole MLP's output there."""
        self._kept("moe", number, sequence, largest | total_of(largest, total))

    def flush(self) -> None:
        """Do nothing: each activation is reduced as it comes."""

    def _kept(self, scope: str, number: int, sequence: int, values: dict[str, Tensor]) -> None:
        self._keep(scope, number, [sequence], {n: value[None] for n, value in values.items()})
