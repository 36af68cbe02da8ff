"""Two ways to see the output of each picked expert before it is multiplied by its routing weight.

Where transformers lets a norm follow each expert, `Tap` stands in for that norm, and the experts
compute what they always do. Elsewhere their forward is `Replaced` by one that runs each pick alone.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Tap:
    """Records each picked expert's output where transformers lets a norm follow it.

    Only the implementation grouped_mm calls that norm with the rows sorted by expert; transformers
    5.17 never calls it.
    """

    def __init__(self, experts: Any) -> None:
        self._experts = experts
        self._raw: Tensor | None = None
        experts.has_post_expert_norm, experts.post_expert_norm = True, self._hear

    @staticmethod
    def fits(experts: Any) -> bool:
        """Tell whether these experts can be followed by a norm, and are not."""
        if experts.config._experts_implementation != "grouped_mm":
            return False
        return getattr(experts, "has_post_expert_norm", None) is False

    def _hear(self, raw: Tensor) -> Tensor:
        self._raw = raw  # replaces what a pass left behind that ran out of memory
        return raw

    def take(self) -> Tensor:
        """Return the experts' outputs of the last forward pass, and forget them."""
        raw, self._raw = self._raw, None
        assert raw is not None, "the experts ran without the norm that the tap stands in for"
        return raw

    def remove(self) -> None:
        """Leave the experts without a norm behind them, as they were."""
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
