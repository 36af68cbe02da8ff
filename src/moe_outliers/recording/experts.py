"""Two ways to hear what each picked expert writes, before the routing weight.

Where transformers lets a norm follow each expert, `Tap` listens there, and the experts compute what
they always do. Elsewhere their forward is `Replaced` by one that runs each pick by itself.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Tap:
    """Takes each picked expert's output where transformers lets a norm follow it.

    The experts compute what they always do, once. Only grouped_mm has that place with the rows
    sorted by expert; transformers 5.17 has it nowhere.
    """

    def __init__(self, experts: Any) -> None:
        self._experts = experts
        self._raw: Tensor | None = None
        experts.has_post_expert_norm, experts.post_expert_norm = True, self._hear

    @staticmethod
    def fits(experts: Any) -> bool:
        """Tell whether these experts have the place, and nothing is there."""
        if experts.config._experts_implementation != "grouped_mm":
            return False
        return getattr(experts, "has_post_expert_norm", None) is False

    def _hear(self, raw: Tensor) -> Tensor:
        self._raw = raw  # in the place of what a pass left that ran out of memory
        return raw

    def take(self) -> Tensor:
        """Return what the experts wrote in their last forward pass, and forget it."""
        raw, self._raw = self._raw, None
        assert raw is not None, "the experts ran without the place that was tapped"
        return raw

    def remove(self) -> None:
        """Leave the place as it was."""
        self._experts.has_post_expert_norm = False
        del self._experts.post_expert_norm


class Replaced:
    """A module's forward, replaced until `remove` is called."""

    def __init__(self, module: nn.Module, forward: Callable[..., Tensor]) -> None:
        self.module = module
        self.before = module.__dict__.get("forward")  # accelerate puts one there
        module.forward = forward

    def remove(self) -> None:
        """Put back what was there."""
        del self.module.forward
        if self.before is not None:
            self.module.forward = self.before
