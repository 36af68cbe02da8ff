"""Answers for meta tensors: what code asks of numbers that are not there.

Masks, rotations and loops over experts ask tensors for their values. On the meta device there are
none; an answer that keeps the code on its usual path is given instead. The shapes that follow from
it are right for texts without padding; sizes of groups of rows are made to fit.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from moe_outliers.recording.tracing.trail import words


class Sizes(list[int]):
    """Numbers that a meta tensor was asked for: nobody knows them."""


class Answers:
    """Answers what a meta tensor cannot.

    Attributes:
        tokens: number of positions of the run.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        # Kept with their tensors: a place in memory that is used again would mislead.
        self._yes: dict[int, Tensor] = {}
        self._places: dict[int, Tensor] = {}

    def noted(self, name: str, args: Sequence[Any], out: Any) -> None:
        """Remember which tensors answer "all?", and which hold places that were asked for."""
        first = args[0] if args else None
        asked = name in {"nonzero", "where"} and len(args) == 1
        for result in out if isinstance(out, tuple | list) else (out,):
            if not isinstance(result, Tensor):
                continue
            if name in {"all", "_is_all_true"}:
                self._yes[id(result)] = result
            elif asked or (id(first) in self._places and name in _VIEWS):
                self._places[id(result)] = result

    def to(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Return the answer to a function of a meta tensor; NotImplemented where none is needed."""
        first = args[0] if args else None
        if not isinstance(first, Tensor) or not first.is_meta:
            return NotImplemented
        if name in {"split", "split_with_sizes"} and isinstance(args[1], Sizes):
            return self._fitting(first, args)
        if name in {"__getitem__", "__setitem__"}:
            return _indexed(name, first, args)
        if name == "bincount":
            return torch.zeros(kwargs.get("minlength", 1), dtype=torch.long, device="meta")
        if name not in _ANSWERS or (name == "where" and len(args) > 1):
            return NotImplemented
        return _ANSWERS[name](self, first)

    def _truth(self, tensor: Tensor) -> bool:
        return id(tensor) in self._yes

    def _number(self, tensor: Tensor) -> float | int | bool:
        if tensor.dtype == torch.bool:
            return self._truth(tensor)
        if id(tensor) in self._places:
            return 0
        return 1.0 if tensor.is_floating_point() else self.tokens

    def _list(self, tensor: Tensor) -> Any:
        if not tensor.dim():
            return self._number(tensor)
        return Sizes([0] * len(tensor)) if tensor.dim() == 1 else [self._list(t) for t in tensor]

    def _fitting(self, tensor: Tensor, args: Sequence[Any]) -> Any:
        """Split by unknown sizes: all rows are the first group's."""
        axis = args[2] if len(args) > 2 else 0
        sizes = [tensor.shape[axis], *[0] * (len(args[1]) - 1)]
        return torch.split(tensor, sizes, axis)


class Answering(TorchFunctionMode):
    """Gives the answers, and lets everything else pass."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self._answers = Answers(tokens)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        kwargs = kwargs or {}
        out = self._answers.to(name, args, kwargs)
        if out is NotImplemented:
            out = func(*args, **kwargs)
        self._answers.noted(name, args, out)
        return out


_VIEWS = words("__getitem__ __iter__ unbind squeeze view reshape flatten")


def _indexed(name: str, tensor: Tensor, args: Sequence[Any]) -> Any:
    """Take or write what an index says that is not there; NotImplemented if it is there."""
    index = args[1]
    if name == "__getitem__" and _masked(index):
        return tensor.flatten(0, index.dim() - 1)[:1]
    if not any(map(_unknown, _parts(index))):
        return NotImplemented
    return getattr(tensor, name)(tuple(map(_assumed, _parts(index))), *args[2:])


def _parts(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _unknown(part: Any) -> bool:
    """Tell whether a part of an index is one number, a mask, or a slice, that is not there."""
    if isinstance(part, slice):
        return isinstance(part.start, Tensor) or isinstance(part.stop, Tensor)
    if not isinstance(part, Tensor) or not part.is_meta:
        return False
    return part.dim() == (1 if part.dtype == torch.bool else 0)


def _assumed(part: Any) -> Any:
    """Return the first for a number that is not there, and all for a mask or a slice."""
    if not _unknown(part):
        return part
    whole = isinstance(part, slice) or part.dtype == torch.bool
    return slice(None) if whole else 0


def _masked(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool and index.dim() > 0


def _places(tensor: Tensor) -> Tensor:
    return torch.zeros((1, tensor.dim()), dtype=torch.long, device="meta")


_ANSWERS: dict[str, Callable[[Answers, Tensor], Any]] = {
    "__bool__": Answers._truth,
    "is_nonzero": Answers._truth,
    "__float__": lambda self, tensor: float(self._number(tensor)),
    "__int__": lambda self, tensor: int(self._number(tensor)),
    "__index__": lambda self, tensor: 0,  # of a list of modules, or of rows
    "item": Answers._number,
    "tolist": Answers._list,
    "cpu": lambda self, tensor: tensor,
    "equal": lambda self, tensor: True,
    "allclose": lambda self, tensor: True,
    "nonzero": lambda self, tensor: _places(tensor),
    "where": lambda self, tensor: _places(tensor).unbind(1),
    "masked_select": lambda self, tensor: tensor.reshape(-1)[:1],
    "unique": lambda self, tensor: tensor.reshape(-1)[:1],
    "unique_consecutive": lambda self, tensor: tensor.reshape(-1)[:1],
    "__contains__": lambda self, tensor: False,
}
"""By name of the function, for one argument."""
