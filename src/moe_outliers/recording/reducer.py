"""The interface of a reducer, which turns activations into statistics, and what all of them use."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Keep = Callable[[str, int, Sequence[int], dict[str, Tensor]], None]
"""Stores statistics: takes scope, number, sequences, and their values by name, (sequence, …)."""

Routing = tuple[Tensor, Tensor, Tensor]
"""Logits, weights and picks of a router, each (position, …)."""

HELD_BYTES = 1_000_000_000
"""Bytes of activations that a reducer may hold to reduce several sequences together."""


class Picks(NamedTuple):
    """The outputs of the picked experts in a forward pass, its sequences concatenated.

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
    """Turns activations into statistics; takes those of one sequence at a time."""

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
        """Take a norm's output x and its input h.

        Args:
            number: of the site.
            sequence: of x and h.
            x: (position, feature).
            h: (position, feature).
            hits: (sequence, position, feature), bool: the outlier positions of all sites of this
                kind, to which those of x are added.
            eps: what the norm adds to the mean square.
            layer_norm: whether it subtracts the mean.
        """

    def block(self, number: int, sequence: int, h: Tensor) -> None:
        """Take the output of a block, (position, feature)."""

    def router(
        self, number: int, sequence: int, routing: Routing, steps: Sequence[str | Tensor]
    ) -> None:
        """Take what a router returned, and what its logits go through before they are sorted."""

    def experts(self, picks: Picks, count: int, sequences: int) -> list[dict[str, Tensor]]:
        """Reduce the outputs of all `count` experts, sequence by sequence."""

    def mlp(self, number: int, sequence: int, largest: dict[str, Tensor], total: Tensor) -> None:
        """Take what `experts` returned, and the whole MLP's output, (expert,), at those places."""

    def flush(self) -> None:
        """Reduce and store everything that was taken."""


def total_of(largest: dict[str, Tensor], total: Tensor) -> dict[str, Tensor]:
    """Return the whole MLP's output at each expert's largest value; 0 for an unpicked expert."""
    unpicked = largest["expert_max_feature"] < 0
    return {"expert_total": torch.where(unpicked, 0.0, total.float())}
