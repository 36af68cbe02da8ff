"""From activations to kept statistics: what the hooks hand on, and the plain way to reduce it.

`batched` is the other way, for GPUs.
"""

import importlib.util
import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from moe_outliers.recording import reduction
from moe_outliers.recording.sites import Family

Keep = Callable[[str, int, Sequence[int], dict[str, Tensor]], None]
"""Takes scope, number, sequences, and their values by name: (sequence, …)."""

Routing = tuple[Tensor, Tensor, Tensor]
"""Logits, weights and picks of a router, each (position, …)."""


class Picks(NamedTuple):
    """What the picked experts wrote in a forward pass, its sequences one behind the other.

    Attributes:
        raw: (pick, feature), each picked expert's output before the routing weight.
        order: (pick,), the place of each row of raw in the flattened `picked`.
        weights: (position, k), the routing weights.
        picked: (position, k), which expert it is.
    """

    raw: Tensor
    order: Tensor
    weights: Tensor
    picked: Tensor


class Reducer(Protocol):
    """Takes the activations of one sequence at a time."""

    def site(
        self, number: int, sequence: int, x: Tensor, h: Tensor, hits: Tensor, *, norm: Any
    ) -> None:
        """Take a norm's output x, what it read, and the hits of its union, of all sequences."""

    def block(self, number: int, sequence: int, h: Tensor) -> None:
        """Take the output of a block, (position, feature)."""

    def router(self, number: int, sequence: int, routing: Routing, bias: Tensor | None) -> None:
        """Take what a router returned, and the correction that it adds before it sorts."""

    def experts(self, picks: Picks, count: int, sequences: int) -> list[dict[str, Tensor]]:
        """Reduce the experts, so many as `count`, of each sequence, as `reduction.experts`."""

    def mlp(self, number: int, sequence: int, found: dict[str, Tensor], total: Tensor) -> None:
        """Take what `experts` found, and the module's output, (expert,), at those places."""

    def flush(self) -> None:
        """Make sure that all that was taken is kept."""


def reducer(
    keep: Keep,
    delimiter: Tensor,
    alphas: Sequence[float],
    family: Family,
    kernels: bool | None,
) -> Reducer:
    """Choose how to reduce on the device where the delimiters are.

    Args:
        keep: takes the results.
        delimiter: (sequence, position), bool, the delimiter positions.
        alphas: thresholds, ascending.
        family: of the model.
        kernels: by kernels; None: where they can be used.
    """
    if kernels is None:
        kernels = len(alphas) <= MOST_ALPHAS and usable(delimiter.device)
    if not kernels:
        return Immediate(keep, delimiter, alphas, family)
    from moe_outliers.recording.gpu.batched import Batched

    return Batched(keep, delimiter, alphas, family)


def usable(device: torch.device) -> bool:
    """Tell whether kernels can be used on a device: a GPU with Triton, where they are right."""
    there = importlib.util.find_spec("triton") is not None
    return KERNELS and device.type == "cuda" and there and agree(str(device))


@cache
def agree(device: str) -> bool:
    """Reduce small random activations on a device by kernels and in plain torch, and compare.

    A driver or a Triton on which the kernels do not compile, or count wrongly, costs time, not a
    result: plain torch is used there.
    """
    random = torch.Generator().manual_seed(0)
    h = (torch.randn((80, 2048), generator=random) * 4).bfloat16().to(device)
    delimiter = torch.zeros((1, len(h)), dtype=torch.bool, device=device)
    delimiter[0, 4::7] = True
    z = reduction.normalised(h, eps=1e-6, layer_norm=False)
    alphas = [3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0]
    wanted = reduction.site(h, z, delimiter[0], alphas) | reduction.residual(h)
    try:
        from moe_outliers.recording.gpu import launch as fused

        hits, limits = [torch.zeros_like(h, dtype=torch.bool)], torch.tensor(alphas, device=device)
        how: Any = {"alphas": limits, "eps": 1e-6, "layer_norm": False}
        fused.compile_all(h, delimiter, limits, layer_norm=False)
        found = fused.sites([h], [h], fused.kinds(delimiter), hits, **how) | fused.residuals([h])
        for name, value in wanted.items():
            torch.testing.assert_close(found[name][0].to(value.dtype), value, rtol=1e-5, atol=1e-6)
    except Exception as error:  # whatever a compiler or a driver raises
        logging.warning("the GPU kernels are not used on this machine: %s", error)
        return False
    return True


KERNELS = True
"""Whether kernels are used where they can be."""

MOST_ALPHAS = 14
"""Thresholds that the kernels can count."""


class Immediate:
    """Reduces each activation when it comes, in plain torch: the reference."""

    def __init__(
        self, keep: Keep, delimiter: Tensor, alphas: Sequence[float], family: Family
    ) -> None:
        self._keep, self._delimiter, self._alphas, self._family = keep, delimiter, alphas, family

    def site(
        self, number: int, sequence: int, x: Tensor, h: Tensor, hits: Tensor, *, norm: Any
    ) -> None:
        """Take the output of a norm."""
        z = reduction.normalised(h, eps=epsilon(norm), layer_norm=self._family.layer_norm)
        found = reduction.site(x, z, self._delimiter[sequence], self._alphas)
        self._kept("site", number, sequence, found)
        hits[sequence] |= x.bfloat16().abs() >= reduction.OUTLIER

    def block(self, number: int, sequence: int, h: Tensor) -> None:
        """Take the output of a block."""
        self._kept("block", number, sequence, reduction.residual(h))

    def router(self, number: int, sequence: int, routing: Routing, bias: Tensor | None) -> None:
        """Take what a router returned."""
        found = reduction.router(*routing, bias, self._family.scores)
        self._kept("moe", number, sequence, found)

    def experts(self, picks: Picks, count: int, sequences: int) -> list[dict[str, Tensor]]:
        """Reduce the experts."""
        raw = torch.empty_like(picks.raw).index_copy_(0, picks.order, picks.raw)
        raw = raw.view(*picks.picked.shape, -1)
        parts = (part.chunk(sequences) for part in (raw, picks.weights, picks.picked))
        return [
            reduction.experts(r, r * w[..., None], p, count) for r, w, p in zip(*parts, strict=True)
        ]

    def mlp(self, number: int, sequence: int, found: dict[str, Tensor], total: Tensor) -> None:
        """Take what the experts wrote at most."""
        self._kept("moe", number, sequence, found | total_of(found, total))

    def flush(self) -> None:
        """Nothing is held."""

    def _kept(self, scope: str, number: int, sequence: int, values: dict[str, Tensor]) -> None:
        self._keep(scope, number, [sequence], {n: value[None] for n, value in values.items()})


def total_of(found: dict[str, Tensor], total: Tensor) -> dict[str, Tensor]:
    """Return the module's output at the experts' places: 0 where nobody picked the expert."""
    unpicked = found["expert_max_feature"] < 0
    return {"expert_total": torch.where(unpicked, 0.0, total.float())}


def epsilon(norm: Any) -> float:
    """Return what a norm adds to the variance."""
    found: float = getattr(norm, "variance_epsilon", None) or norm.eps
    return found
