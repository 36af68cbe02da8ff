"""Where an axis of a tensor is after an operation that moves values about but computes nothing.

`moved` answers for one axis. The operations are told by the name of the torch function; an axis
that is cut, split or merged with another one is lost, and so is every axis of an operation that is
not listed here.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from moe_outliers.recording.tracing.trail import words

KEPT = words(
    """to type type_as float half bfloat16 double cpu cuda contiguous clone detach data dropout
    alias expand expand_as repeat repeat_interleave broadcast_to index_select positive
    requires_grad_"""
)
"""The axis stays where it is, counted from the end."""

TURNED = words("t T mT H mH adjoint transpose swapaxes swapdims permute movedim moveaxis")
"""The axes change places."""

RESHAPED = words("view view_as reshape reshape_as flatten unflatten ravel")
"""The same values in another shape; their order in memory does not change."""

SHAPED = RESHAPED | words(
    """unsqueeze squeeze chunk split split_with_sizes unsafe_split unsafe_chunk tensor_split narrow
    select unbind __iter__ unfold"""
)
"""Another shape, or a part; the order in memory does not change."""

TAKEN = words("__getitem__")
"""Some are taken by an index."""

MOVES = KEPT | TURNED | SHAPED | TAKEN

_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19)


def moved(
    name: str,
    func: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Any,
    *,
    out: Tensor,
    axis: int,
) -> int | None:
    """Find an axis of the first argument in one result of an operation.

    Args:
        name: of the function; one of MOVES.
        func: the torch function itself.
        args: its positional arguments.
        kwargs: its arguments by keyword.
        out: one tensor of its result.
        axis: of args[0], from 0.

    Returns:
        The axis of `out`, from 0, along which the same values lie in the same order; None if it is
        lost.
    """
    shape, size = args[0].shape, args[0].shape[axis]
    if name in KEPT:
        place = axis - len(shape) + out.dim()
        return place if place >= 0 and out.shape[place] == size else None
    if name in TURNED:
        if len(shape) > len(_PRIMES):
            return None
        small = torch.empty(_PRIMES[: len(shape)], device="meta")
        turned = func(small, *args[1:], **kwargs)
        return list(turned.shape).index(_PRIMES[axis])
    if name in SHAPED:
        behind = math.prod(shape[axis + 1 :])
        for place, there in enumerate(out.shape):
            if there == size and math.prod(out.shape[place + 1 :]) == behind:
                return place
        return None
    return _taken(shape, args[1], out, axis)


def _taken(shape: Sequence[int], index: Any, out: Tensor, axis: int) -> int | None:
    """Find an axis behind an index: ints drop axes, None makes one, tensors put theirs in between.

    Tensors that stand apart put their axes in front of all others; the axis is then not found,
    because its size is compared, or not the same.
    """
    parts = _all_parts(index, len(shape))
    picked = [part for part in parts if isinstance(part, Tensor)]
    rank = max((1 if part.dtype == torch.bool else part.dim() for part in picked), default=0)
    place = source = 0
    for part in parts:
        if source <= axis < source + _eaten(part):
            if not isinstance(part, slice) or not _whole(part, shape[axis]):
                return None
            break
        source += _eaten(part)
        if part is None or isinstance(part, slice):
            place += 1
        elif isinstance(part, Tensor):
            place, rank = place + rank, 0
    return place if place < out.dim() and out.shape[place] == shape[axis] else None


def _all_parts(index: Any, rank: int) -> list[Any]:
    """Write an index out: with one part for each axis, beside those that are None."""
    parts = list(index) if isinstance(index, tuple) else [index]
    at = next((i for i, part in enumerate(parts) if part is Ellipsis), len(parts))
    given = [part for part in parts if part is not Ellipsis]
    missing = rank - sum(_eaten(part) for part in given)
    return [*given[:at], *[slice(None)] * missing, *given[at:]]


def _eaten(part: Any) -> int:
    """Count the axes that a part of an index takes away from the tensor."""
    if part is None:
        return 0
    return part.dim() if isinstance(part, Tensor) and part.dtype == torch.bool else 1


def _whole(part: slice, size: int) -> bool:
    """Tell whether a slice is all of an axis; rows of unknown ends are those of some expert."""
    if isinstance(part.start, Tensor) or isinstance(part.stop, Tensor):
        return True
    return part.indices(size) == (0, size, 1)


def scrambled(name: str, before: Sequence[int], after: Sequence[int], tokens: int) -> bool:
    """Tell whether a new shape puts values of one position in the place of another's.

    Args:
        name: of the function; one of MOVES.
        before: the shape.
        after: the shape that it is given.
        tokens: number of positions; no other axis has that size.
    """
    if name not in RESHAPED or tokens not in before or tokens not in after:
        return False
    sizes = (math.prod(shape[list(shape).index(tokens) + 1 :]) for shape in (before, after))
    return len(set(sizes)) == 2


def cut(name: str, args: Sequence[Any], kwargs: Any, tokens: int) -> bool:
    """Tell whether an operation takes some positions out of all: one place sees another's values.

    Args:
        name: of the function; one of MOVES.
        args: its positional arguments.
        kwargs: its arguments by keyword.
        tokens: number of positions; no other axis has that size.
    """
    shape = args[0].shape
    if name in TAKEN:
        parts = [part for part in _all_parts(args[1], len(shape)) if part is not None]
        if any(isinstance(part, Tensor | list) for part in parts):
            return False  # rows picked by a tensor are sorted by expert, not by place
        pairs = zip(parts, shape, strict=True)
        return any(
            size == tokens and not (isinstance(part, slice) and _whole(part, size))
            for part, size in pairs
        )
    if name not in _DIMENSION:
        return False
    place = _DIMENSION[name]
    axis = args[place] if 0 < place < len(args) else kwargs.get("dim", kwargs.get("dimension", 0))
    return isinstance(axis, int) and shape[axis] == tokens


_DIMENSION = {
    "narrow": 1,
    "select": 1,
    "unfold": 1,
    "unbind": 1,
    "chunk": 2,
    "split": 2,
    "split_with_sizes": 2,
    "tensor_split": 2,
    "__iter__": 0,
}
"""Operations that cut along an axis, and which argument that is; 0: the first axis, always."""
