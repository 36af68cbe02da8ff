"""Hooks on a model that know whose forward pass runs, and forwards that stand in for others."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from moe_outliers.recording import reduction
from moe_outliers.recording.anatomy import Place

NOBODY = ()
"""The sequences of a forward pass that is not recorded."""


class Replaced:
    """A module's forward, replaced until `remove` is called."""

    def __init__(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        self._module = module
        self._before = module.__dict__.get("forward")  # accelerate puts one there
        module.forward = forward

    def remove(self) -> None:
        """Put back what was there."""
        del self._module.forward
        if self._before is not None:
            self._module.forward = self._before


@contextmanager
def replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace a module's forward for a while."""
    handle = Replaced(module, forward)
    try:
        yield
    finally:
        handle.remove()


class Hooks:
    """Attaches to a model; engines say whose pass it is."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._sequences: Sequence[int] | None = None
        self._blocks = True
        self._handles: list[Any] = []

    def close(self) -> None:
        """Detach from the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def passing(self, sequences: Sequence[int], *, blocks: bool = True) -> Iterator[None]:
        """Say which sequences a forward pass holds.

        Args:
            sequences: rows of `ids`, in order of the pass; NOBODY: nothing of it is recorded.
            blocks: whether the blocks run; else only what lies before them is recorded.
        """
        before = self._sequences, self._blocks
        self._sequences, self._blocks = sequences, blocks
        try:
            yield
        finally:
            self._sequences, self._blocks = before

    @property
    def sequences(self) -> Sequence[int]:
        """Rows of `ids` that the current forward pass holds, in order.

        Raises:
            RuntimeError: outside of `passing`: the numbers would go to any sequence.
        """
        if self._sequences is None:
            raise RuntimeError("the model runs, but nobody said which sequences (`passing`)")
        return self._sequences

    @property
    def _watching(self) -> bool:
        """Whether blocks run whose activations are recorded."""
        return bool(self.sequences) and self._blocks

    def _by_row(self, tensor: Tensor) -> Tensor:
        return reduction.by_row(tensor, len(self.sequences))

    def _at(self, place: Place, take: Callable[[Tensor], None]) -> None:
        """Let something take a tensor in every forward pass that is recorded."""

        def before(module: Any, args: Any, kwargs: Any) -> None:
            if self._watching:
                take(place.take(args, kwargs))

        def after(module: Any, args: Any, output: Any) -> None:
            if self._watching:
                take(place.take((), {}, output))

        module = self._model.get_submodule(place.module)
        self._handles.append(
            module.register_forward_pre_hook(before, with_kwargs=True)
            if place.side == "input"
            else module.register_forward_hook(after)
        )
