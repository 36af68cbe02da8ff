"""What happened to the residual stream, and what is remembered of any operation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from moe_outliers.recording.tracing.trail import (
    Addition,
    Call,
    Mixing,
    Pick,
    Point,
    Read,
    Value,
    shared,
)

OUTSIDE = -1
"""Number of no decoder block."""


@dataclass
class Ledger:
    """What happened to the residual stream, and where the run is.

    Attributes:
        tokens: number of positions; no axis of a parameter has that size.
        reads, picks, additions: in order.
        loose: what a norm returned, where it was used without a linear map, and by what.
        frames: the runs of modules that have begun and not ended.
        block: number of the decoder block that runs, or OUTSIDE.
    """

    tokens: int
    reads: list[Read] = field(default_factory=list)
    picks: list[Pick] = field(default_factory=list)
    additions: list[Addition] = field(default_factory=list)
    loose: dict[Point, str] = field(default_factory=dict)
    frames: tuple[Call, ...] = ()
    block: int = OUTSIDE

    def point(self, kind: str, shape: tuple[int, ...], axis: int, **more: Any) -> Value:
        """Make a value that is a point of its own."""
        value = Value(shape, axis=axis, how=kind, **more)
        point = Point(kind, value.root, self.frames, shape[axis] if axis else 0)
        return replace(value, points=frozenset([point]))


@dataclass(frozen=True)
class Operation:
    """One operation, and one tensor of its result.

    Attributes:
        name: of the torch function, the same whether it works in place or not.
        func: the torch function.
        args, kwargs: its arguments.
        out: one tensor of its result.
        values: what is known of its tensors, of those of which something is known.
        known: says what is known of a tensor.
    """

    name: str
    func: Callable[..., Any]
    args: Sequence[Any]
    kwargs: dict[str, Any]
    out: Tensor
    values: list[Value]
    known: Callable[[Any], Value | None]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the result."""
        return tuple(self.out.shape)

    def argument(self, place: int, *names: str) -> Any:
        """Return an argument by its place or its name."""
        if len(self.args) > place:
            return self.args[place]
        return next((self.kwargs[name] for name in names if name in self.kwargs), None)


def noted(kind: str, one: Operation, ledger: Ledger) -> tuple[Mixing, ...]:
    """Note that an operation lets one position see others, with all reads that flowed into it."""
    windowed = any(value.windowed for value in one.values)
    mixing = Mixing(kind, windowed, ledger.frames)
    for value in one.values:
        for read in value.reads:
            read.mixing.append(mixing)
    return (mixing,)


def combined(one: Operation, ledger: Ledger, mixing: tuple[Mixing, ...] = ()) -> Value:
    """Remember what a result was made of, where nothing more is known of an operation."""
    values = one.values
    points = frozenset[Point]().union(*(value.points for value in values))
    reads = frozenset[Read]().union(*(value.reads for value in values))
    gates = frozenset[Read]().union(*(value.gates for value in values))
    mixing = tuple(dict.fromkeys(sum((value.mixing for value in values), mixing)))
    streams = [point for point in points if point.kind == "stream"]
    if streams:
        ledger.loose.update(
            (point, one.name) for point in points if point.kind != "stream" and len(values) > 1
        )
        for read in reads | gates:
            read.steers = True
        reads, gates = frozenset(), frozenset()  # they are part of the stream now
        mixing = ()
    return Value(
        one.shape,
        axis=-1 if points and one.out.dim() > 1 else 0,
        points=points,
        reads=reads,
        gates=gates,
        constant=all(value.constant for value in values),
        paired=any(value.paired for value in values),
        windowed=_windowed(one),
        mixing=mixing,
        how=one.name,
        parents=tuple(values),
    )


def _windowed(one: Operation) -> bool:
    """Tell whether scores or a mask leave out positions that are far away.

    What is put beside a mask may reach there; a sink, one score more for each query, does not.
    """
    if one.name == "pad" or not any(value.windowed for value in one.values):
        return False
    if one.name in {"cat", "concat", "concatenate"}:
        parts = [(part, one.known(part)) for part in one.argument(0, "tensors")]
        scores = any(value is not None and value.reads for _, value in parts)
        return all(
            (value is not None and value.windowed) or (scores and part.shape[-1] == 1)
            for part, value in parts
        )
    return True


def flows(value: Value) -> bool:
    """Tell whether the residual stream is part of a value, not behind a norm."""
    return any(point.kind == "stream" for point in value.points)


def mixer_of(frames: tuple[Call, ...], point: Point) -> Call | None:
    """Return the outermost module of a block that received a point, of those that run.

    Args:
        frames: the runs of modules within which the point is read.
        point: that is read.

    Returns:
        None where it is read in the code of a module that holds both.
    """
    block = next((n for n, call in enumerate(frames) if call.begins), -1)
    common = max(shared(point.frames, frames), block + 1)
    return frames[common] if common < len(frames) else None
