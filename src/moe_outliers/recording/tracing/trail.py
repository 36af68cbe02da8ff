"""What is known of a tensor while a model runs on the meta device: where its values come from.

A `Point` is a tensor that something may read: the residual stream between two additions, or what a
norm returned. A `Read` is a linear map that received one. Every tensor of the run has a `Value`,
which names the points it holds and the reads that flowed into it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from torch import Tensor

Key = tuple[int | str, ...]
"""Where a tensor is among arguments or results: positions and keywords, from the outside in."""

SAME, TIMES_NUMBER, TIMES_TOKEN = range(3)
"""What a tensor was multiplied by: nothing, one number, or one number for each position."""

_serial = count()


@dataclass(eq=False)
class Call:
    """One run of a module.

    Attributes:
        path: of the module.
        module: itself.
        frames: the runs that it is within, the outermost first.
        block: number of the decoder block that it is within; -1 before the first.
        inputs, outputs: the tensors by their place; those of which nothing is known are left out.
        inner: runs of modules within it.
        begins: whether the module is a decoder block.
        gives: what a decoder block returned, with ... in place of every tensor.
    """

    path: str
    module: Any
    frames: tuple["Call", ...]
    block: int
    inputs: dict[Key, "Value"] = field(default_factory=dict)
    outputs: dict[Key, "Value"] = field(default_factory=dict)
    inner: int = 0
    begins: bool = False
    gives: Any = None
    number: int = field(default_factory=lambda: next(_serial))


@dataclass(eq=False)
class Point:
    """A tensor that holds features of the residual stream, as it is or behind a norm.

    Attributes:
        kind: stream, norm or gated (a norm that multiplies by something of its own).
        root: of the values that are the same.
        frames: the runs of modules within which it was made.
        width: its number of features.
        fed: what the norm read; None for the stream.
    """

    kind: str
    root: int
    frames: tuple[Call, ...]
    width: int
    fed: "Value | None" = None
    number: int = field(default_factory=lambda: next(_serial))


@dataclass(eq=False)
class Mixing:
    """An operation by which one position sees others.

    Attributes:
        kind: attention (softmax over positions) or linear_attention (anything else).
        windowed: whether its mask leaves out positions that are far away.
        frames: the runs of modules within which it happened.
    """

    kind: str
    windowed: bool
    frames: tuple[Call, ...]


@dataclass(eq=False)
class Read:
    """A linear map, or something unknown, that received a point.

    Attributes:
        value: what it received.
        parameter: path of the parameter; empty where it is not one, or not plainly.
        axis: of the parameter, along which the features lie; -1 if not found.
        frames: the runs of modules within which it happened.
        block: number of the decoder block.
        adds: whether the outcome is added to the stream.
        steers: whether the outcome only multiplies the stream, or something that is added to it.
        mixing: where the outcome, or what it received, saw other positions.
    """

    value: "Value"
    parameter: str
    axis: int
    frames: tuple[Call, ...]
    block: int
    adds: bool = False
    steers: bool = False
    mixing: list[Mixing] = field(default_factory=list)
    number: int = field(default_factory=lambda: next(_serial))


@dataclass(eq=False)
class Pick:
    """An operation that picks the largest of some scores for each position.

    Attributes:
        scores: what it compares.
        picked: which they are, integers.
        frames: the runs of modules within which it happened.
        block: number of the decoder block.
    """

    scores: "Value"
    picked: "Value"
    frames: tuple[Call, ...]
    block: int


@dataclass(eq=False)
class Addition:
    """Something that was added to the stream.

    Attributes:
        block: number of the decoder block.
        plain: the stream itself was added to, multiplied by no more than one number.
        frames: the runs of modules within which it happened.
        onto: root of what was added to.
        result: root of the stream that it is now.
        main: what was added to.
    """

    block: int
    plain: bool
    frames: tuple[Call, ...]
    onto: int
    result: int
    main: "Value"


@dataclass(eq=False)
class Value:
    """What is known of one tensor.

    Attributes:
        shape: of the tensor.
        root: the same for tensors that hold the same values, moved about or multiplied by a number.
        axis: along which the features of its points lie, from the end; 0 where they do not.
        factor: what it was multiplied by since its root.
        points: that it was made of without a linear map in between.
        reads: whose outcomes it was made of.
        gates: reads whose outcomes only multiply it, position by position.
        parameter: path of the parameter or buffer that it holds.
        axes: for each axis of the tensor, that of the parameter; -1 where there is none.
        constant: made of parameters and positions alone.
        integer: of whole numbers.
        paired: a product of two activations was part of it.
        windowed: a mask that leaves out far positions was part of it.
        mixing: where its points saw other positions before any linear map.
        by_text: made of the token ids, not of their number alone.
        depth: the last block that it depends on; -1: none.
        how: name of the operation.
        parents: what it was made of.
    """

    shape: tuple[int, ...]
    root: int = field(default_factory=lambda: next(_serial))
    axis: int = 0
    factor: int = SAME
    points: frozenset[Point] = frozenset()
    reads: frozenset[Read] = frozenset()
    gates: frozenset[Read] = frozenset()
    parameter: str = ""
    axes: tuple[int, ...] = ()
    constant: bool = False
    integer: bool = False
    paired: bool = False
    windowed: bool = False
    mixing: tuple[Mixing, ...] = ()
    by_text: bool = False
    depth: int = -1
    how: str = ""
    parents: tuple["Value", ...] = ()

    def holds(self, point: Point) -> bool:
        """Tell whether this is that point, feature by feature, but for a factor."""
        return self.root == point.root and self.axis != 0

    @property
    def fixed(self) -> bool:
        """Whether this depends on the number of positions alone."""
        return not (self.by_text or self.points or self.reads or self.gates)

    @property
    def exact(self) -> bool:
        """Whether this is one of the points that it holds."""
        return any(map(self.holds, self.points))

    def within(self) -> Iterator["Value"]:
        """Yield this value and all that it was made of, the nearest first."""
        seen: set[int] = set()
        waiting = [self]
        while waiting:
            value = waiting.pop(0)
            if id(value) not in seen:
                seen.add(id(value))
                yield value
                waiting.extend(value.parents)


def tensors_of(thing: Any, key: Key = ()) -> Iterator[tuple[Key, Tensor]]:
    """Yield the tensors among arguments or results, each with its place."""
    if isinstance(thing, Tensor):
        yield key, thing
    elif isinstance(thing, dict):
        for name, part in thing.items():
            yield from tensors_of(part, (*key, name))
    elif isinstance(thing, tuple | list):
        for number, part in enumerate(thing):
            yield from tensors_of(part, (*key, number))


def form_of(thing: Any) -> Any:
    """Return the form of something: itself, with ... in place of every tensor."""
    if isinstance(thing, Tensor):
        return ...
    if isinstance(thing, dict):
        return {name: form_of(part) for name, part in thing.items()}
    return type(thing)(map(form_of, thing)) if isinstance(thing, tuple | list) else thing


def shared(a: tuple[Call, ...], b: tuple[Call, ...]) -> int:
    """Count the outermost runs of modules that two have in common."""
    number = 0
    for one, other in zip(a, b, strict=False):
        if one is not other:
            break
        number += 1
    return number


def joined(a: Value, b: Value) -> Value:
    """Return what is known of a tensor a part of which was overwritten."""
    return Value(
        a.shape,
        points=a.points | b.points,
        reads=a.reads | b.reads,
        gates=a.gates | b.gates,
        constant=a.constant and b.constant,
        paired=a.paired or b.paired,
        windowed=a.windowed or b.windowed,
        mixing=tuple(dict.fromkeys(a.mixing + b.mixing)),
        by_text=a.by_text or b.by_text,
        depth=max(a.depth, b.depth),
        how="joined",
        parents=(a, b),
    )


def words(text: str) -> frozenset[str]:
    """Return the words of a text: names of functions are easier to read so."""
    return frozenset(text.split())
