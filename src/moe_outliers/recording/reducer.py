"""What every way of reducing activations takes, and what it gives."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

Keep = Callable[[str, int, Sequence[int], dict[str, Tensor]], None]
"""Takes scope, number, sequences, and their values by name: (sequence, …)."""

Routing = tuple[Tensor, Tensor, Tensor]
"""Logits, weights and picks of a router, each (position, …)."""

HELD_BYTES = 1_000_000_000
"""Bytes of activations that a reducer may hold to reduce several sequences together."""


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


def total_of(found: dict[str, Tensor], total: Tensor) -> dict[str, Tensor]:
    """Return the module's output at the experts' places: 0 where nobody picked the expert."""
    unpicked = found["expert_max_feature"] < 0
    return {"expert_total": torch.where(unpicked, 0.0, total.float())}


def epsilon(norm: Any) -> float:
    """Return what a norm adds to the variance."""
    return getattr(norm, "variance_epsilon", None) or norm.eps
