"""Ways to see the output of each picked expert before it is multiplied by its routing weight.

Where transformers lets a norm follow each expert, `Tap` stands in for that norm, and the experts
compute what they always do. Where they are summed as grouped_mm does, their forward is `Replaced`
by one that runs each pick alone. All others are run a second time, each pick alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moe_outliers.recording.anatomy import Place, Routing


class Experts:
    """The module that runs the picked experts.

    Attributes:
        module: itself.
    """

    def __init__(self, model: nn.Module, routing: Routing) -> None:
        self.module = model.get_submodule(routing.experts)
        assert routing.called is not None, "refused before"
        self._called: tuple[Place, ...] = routing.called
        self._forward: Callable[..., Tensor] = self.module.forward

    def arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """Return hidden states, (token, feature), picks and weights, (token, k)."""
        return [place.take(args, kwargs) for place in self._called]

    def watch(self, take: Callable[..., None]) -> Any:
        """Let something take the arguments after each run; return what detaches it."""

        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            take(*self.arguments(args, kwargs))

        return self.module.register_forward_hook(hook, with_kwargs=True)

    @property
    def replaceable(self) -> bool:
        """Whether transformers' grouped_mm weighs and adds what the experts make."""
        return _implementation(self.module) == "grouped_mm"

    def apart(self, hidden: Tensor, picked: Tensor) -> tuple[Tensor, Tensor]:
        """Run each picked expert alone.

        Code of a model's own may not know what to do with one pick a token: it is given each twice,
        the second time with a weight of 0.

        Returns:
            (pick, feature), what it makes before its weight; (pick,), its place among the picks.
        """
        k = picked.shape[1]
        width = hidden.shape[-1]
        rows = hidden.reshape(-1, width).repeat_interleave(k, 0)
        picks = picked.reshape(-1, 1)
        weights = torch.ones((len(rows), 1), dtype=hidden.dtype, device=hidden.device)
        if not self.replaceable:
            picks = picks.repeat(1, 2)
            weights = torch.cat([weights, torch.zeros_like(weights)], 1)
        given = {
            place.key[0]: tensor
            for place, tensor in zip(self._called, (rows, picks, weights), strict=True)
        }
        args = [given[number] for number in range(len(given)) if number in given]
        named = {str(key): tensor for key, tensor in given.items() if isinstance(key, str)}
        raw = self._forward(*args, **named).reshape(-1, width)
        return raw, torch.arange(len(rows), device=raw.device)


def _implementation(experts: Any) -> str:
    """Name the function of transformers that runs experts; empty if they run their own code."""
    if not hasattr(experts, "is_transposed"):  # set where transformers chooses one
        return ""
    return str(experts.config._experts_implementation)


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
        if _implementation(experts) != "grouped_mm":
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
