"""What operations make of what is known of their arguments.

Each rule takes the arguments of a torch function and one tensor of its result, and says what is
known of that. What happens to the residual stream on the way is written into a `Ledger`.
"""

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from moe_outliers.recording.tracing.axes import MOVES, cut, moved
from moe_outliers.recording.tracing.trail import (
    TIMES_NUMBER,
    TIMES_TOKEN,
    Addition,
    Call,
    Mixing,
    Pick,
    Point,
    Read,
    Value,
    shared,
)

NO_DATA = frozenset(
    "zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_empty "
    "new_full new_tensor shape size dtype device ndim is_meta stride numel".split()
)
"""Operations whose result holds nothing of the tensor that they are given."""

SUMS = frozenset("add sub rsub subtract where lerp index_add scatter_add __setitem__".split())
PRODUCTS = frozenset("mul multiply div divide true_divide".split())
PICKS = frozenset("topk sort argsort argmax max kthvalue".split())
SOFTMAX = frozenset("softmax log_softmax _softmax".split())
ATTENTION = "scaled_dot_product_attention"
ALONG = frozenset("cumsum cumprod logcumsumexp flip roll diff".split())
"""Operations that carry values from one position to another."""

MATRICES = {
    "linear": (0, -1, 1, -1),
    "matmul": (0, -1, 1, -2),
    "mm": (0, -1, 1, -2),
    "mv": (0, -1, 1, -1),
    "bmm": (0, -1, 1, -2),
    "addmm": (1, -1, 2, -2),
    "baddbmm": (1, -1, 2, -2),
    "_grouped_mm": (0, -1, 1, -2),
    "grouped_mm": (0, -1, 1, -2),
}
"""Products of matrices: which two arguments are multiplied, and along which axis of each."""

CONVOLUTIONS = frozenset("conv1d conv2d conv3d".split())

OUTSIDE = -1
"""Number of no decoder block."""


@dataclass
class Ledger:
    """What happened to the residual stream, and where the run is.

    Attributes:
        tokens: number of positions; no axis of a parameter has that size.
        reads, picks, additions: in order.
        loose: what a norm returned, where it became part of the stream as it was, and how.
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
        return tuple(self.out.shape)

    def argument(self, place: int, *names: str) -> Any:
        """Return an argument by its place or its name."""
        if len(self.args) > place:
            return self.args[place]
        return next((self.kwargs[name] for name in names if name in self.kwargs), None)


def made(one: Operation, ledger: Ledger) -> Value | None:
    """Say what is known of the result of an operation; None if nothing."""
    if one.name in NO_DATA:
        return None
    first = one.known(one.args[0]) if one.args else None
    if one.name in MOVES and first is not None:
        return _moved(one, first, ledger)
    if one.name == "embedding":
        return _looked_up(one)
    if one.name in MATRICES or one.name in CONVOLUTIONS or one.name == "einsum":
        return _contracted(one, ledger)
    if one.name in PRODUCTS and len(one.args) > 1:
        return _product(one, ledger)
    if one.name in SUMS:
        return _sum(one, ledger)
    value = _combined(one, ledger, _mixing(one, ledger))
    picked = one.name in PICKS and not one.out.is_floating_point()
    if picked and first is not None and first.reads and not first.integer:
        ledger.picks.append(Pick(first, value, ledger.frames, ledger.block))
    return value


def _mixing(one: Operation, ledger: Ledger) -> tuple[Mixing, ...]:
    """Note whether an operation lets one position see others."""
    paired = any(value.paired for value in one.values)
    if one.name == ATTENTION or (one.name in SOFTMAX and paired):
        return _noted("attention", one, ledger)
    along = one.name in ALONG and one.out.is_floating_point()
    if along or (one.name == "pad" and _shifted(one, ledger.tokens)):
        return _noted("linear_attention", one, ledger)
    return ()


def _noted(kind: str, one: Operation, ledger: Ledger) -> tuple[Mixing, ...]:
    windowed = any(value.windowed for value in one.values)
    mixing = Mixing(kind, windowed, ledger.frames)
    for value in one.values:
        for read in value.reads:
            read.mixing.append(mixing)
    return (mixing,)


def _shifted(one: Operation, tokens: int) -> bool:
    """Tell whether the axis of positions was padded, or shifted by padding one end of it."""
    padding = one.argument(1, "pad")
    axes = list(one.args[0].shape)[::-1]
    pairs = zip(axes, padding[::2], padding[1::2], strict=False)
    return any(size == tokens and (before or after) for size, before, after in pairs)


def _combined(one: Operation, ledger: Ledger, mixing: tuple[Mixing, ...] = ()) -> Value:
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
        reads, gates = frozenset(), frozenset()  # they steer the stream, and are part of it now
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


def _moved(one: Operation, value: Value, ledger: Ledger) -> Value:
    """Follow values that are moved about, and not changed."""
    mixing = value.mixing
    if one.out.is_floating_point() and cut(one.name, one.args, one.kwargs, ledger.tokens):
        mixing += _noted("linear_attention", one, ledger)
    others = [other for other in one.values if other is not value]
    gates = value.gates.union(*(other.reads | other.gates for other in others))
    axis, axes = 0, [-1] * one.out.dim()
    for number, of in enumerate(value.axes):
        place = moved(one.name, one.func, one.args, one.kwargs, one.out, number)
        if place is not None:
            axes[place] = of
    if value.axis:
        at = len(value.shape) + value.axis
        place = moved(one.name, one.func, one.args, one.kwargs, one.out, at)
        axis = 0 if place is None else place - one.out.dim()
    same = axis != 0 if value.points else one.out.numel() == one.args[0].numel()
    result = replace(
        value, shape=one.shape, axis=axis, axes=tuple(axes), gates=gates, mixing=mixing,
        how=one.name, parents=(value,),
    )  # fmt: skip
    return result if same or value.parameter else replace(result, root=Value(()).root, axis=0)


def _looked_up(one: Operation) -> Value:
    """Take rows of a parameter: what is left is the parameter, as far as its columns go."""
    weight = one.known(one.argument(1, "weight"))
    gates = frozenset[Read]().union(*(value.reads | value.gates for value in one.values))
    if weight is None or not weight.parameter:
        return Value(one.shape, reads=gates, how=one.name, parents=tuple(one.values))
    axes = (*[-1] * (one.out.dim() - 1), weight.axes[-1])
    return replace(weight, shape=one.shape, axes=axes, gates=gates, parents=tuple(one.values))


def _product(one: Operation, ledger: Ledger) -> Value:
    """Multiply or divide: by one number, or one for each position, the features stay what they are."""
    a, b = one.known(one.args[0]), one.known(one.args[1])
    for main, other, factor in ((a, b, one.args[1]), (b, a, one.args[0])):
        if main is None or (one.name not in {"mul", "multiply"} and main is not a):
            continue
        single = not isinstance(factor, Tensor) or factor.numel() == 1
        flat = isinstance(factor, Tensor) and _flat(factor, main, one)
        if not single and not flat:
            continue
        gates = main.gates if other is None else main.gates | other.reads | other.gates
        if main.points or main.reads or main.parameter:
            by = max(main.factor, TIMES_NUMBER if single else TIMES_TOKEN)
            kept = main.points and main.axis and one.shape[main.axis] == main.shape[main.axis]
            same = replace(
                main, shape=one.shape, factor=by, gates=gates, how=one.name,
                parents=tuple(one.values),
            )  # fmt: skip
            return same if kept or single else replace(same, root=Value(()).root, axis=0, axes=())
    return _combined(one, ledger)


def _flat(factor: Tensor, main: Value, one: Operation) -> bool:
    """Tell whether a factor is the same for all features of a token."""
    axis = main.axis or -1
    if one.out.dim() < -axis or one.shape[axis] == 1:
        return False
    return factor.dim() < -axis or factor.shape[axis] == 1


def _sum(one: Operation, ledger: Ledger) -> Value:
    """Add: what mixers made to the stream, which is then another point."""
    stream = [value for value in one.values if value.exact or _flows(value)]
    branches = [value for value in one.values if value not in stream and value.reads]
    reads = frozenset[Read]().union(*(value.reads for value in branches))
    if not stream or not branches or any(_inside(read, stream, ledger.frames) for read in reads):
        return _combined(one, ledger)
    for read in reads:
        read.adds = True
    main = next((value for value in stream if value.exact), stream[0])
    axis = main.axis if main.axis and one.shape[main.axis] == main.shape[main.axis] else -1
    result = ledger.point("stream", one.shape, axis, parents=tuple(one.values))
    plain = main.exact and main.factor != TIMES_TOKEN and len(stream) == 1
    ledger.additions.append(
        Addition(ledger.block, plain, ledger.frames, main.root, result.root, main)
    )
    return result


def _flows(value: Value) -> bool:
    """Tell whether the residual stream is part of a value, not behind a norm."""
    return any(point.kind == "stream" for point in value.points)


def _inside(read: Read, stream: Sequence[Value], frames: tuple[Call, ...]) -> bool:
    """Tell whether a sum is a mixer's own business: within it, with what it read itself."""
    points = frozenset[Point]().union(*(value.points for value in stream))
    for point in read.value.points & points:
        mixer = mixer_of(read, point)
        if mixer is not None and mixer in frames:
            return True
    return False


def mixer_of(read: Read, point: Point) -> Call | None:
    """Return the outermost run of a module in a block that received a point and holds a read of it.

    None where the read happened right beside the point, in the code of a module that holds both.
    """
    block = next((n for n, call in enumerate(read.frames) if call.begins), -1)
    common = max(shared(point.frames, read.frames), block + 1)
    return read.frames[common] if common < len(read.frames) else None


# -- products of matrices ----------------------------------------------------------------------------


def _contracted(one: Operation, ledger: Ledger) -> Value:
    """Multiply matrices: a linear map where one of them is a parameter."""
    left, at, right, along = _operands(one)
    a, b = one.known(left), one.known(right)
    if b is not None and not b.constant and (a is None or a.constant):
        (a, at), (b, along) = (b, along), (a, at)  # the activation first, then the weight
    if a is None or a.constant:
        return _combined(one, ledger)
    mixing: tuple[Mixing, ...] = ()
    convolved = one.name in CONVOLUTIONS
    if convolved and max(right.shape[2:]) > 1:
        mixing = _noted("linear_attention", one, ledger)
    if b is not None and not b.constant:  # two activations
        return _paired(one, ledger, [a, b], mixing)
    if convolved and one.argument(6, "groups") not in {None, 1}:  # each feature by itself
        return _combined(one, ledger, mixing)
    return _mapped(one, ledger, a, at, b, along, mixing)


def _paired(
    one: Operation, ledger: Ledger, pair: Sequence[Value], mixing: tuple[Mixing, ...]
) -> Value:
    """Multiply two activations: whatever reads a point so is no linear map with a weight.

    Two outcomes of linear maps are multiplied so where positions are compared with positions.
    """
    if all(value.reads for value in pair):
        mixing += _noted("linear_attention", one, ledger)
    result = replace(_combined(one, ledger, mixing), paired=True)
    for value in pair:
        if value.points and not _flows(result):
            read = Read(value, "", -1, ledger.frames, ledger.block)
            ledger.reads.append(read)
            result = replace(result, reads=result.reads | {read})
    return result


def _mapped(
    one: Operation,
    ledger: Ledger,
    a: Value,
    at: int,
    weight: Value | None,
    along: int,
    mixing: tuple[Mixing, ...],
) -> Value:
    """Apply a linear map to an activation, and note it if the activation holds a point."""
    reads, gates = a.reads, a.gates
    if a.points:
        parameter, axis = "", -1
        if weight is not None and weight.parameter and a.axis == at:
            axis = weight.axes[along]
            parameter = weight.parameter if axis >= 0 else ""
        read = Read(a, parameter, axis, ledger.frames, ledger.block)
        read.mixing = [*a.mixing, *mixing]
        ledger.reads.append(read)
        reads, gates = frozenset([read]), gates | reads
    parents = (a,) if weight is None else (a, weight)
    return Value(
        one.shape, reads=reads, gates=gates, windowed=a.windowed, how=one.name, parents=parents
    )


def _operands(one: Operation) -> tuple[Any, int, Any, int]:
    """Return the two tensors of a product, and the axis of each along which it sums."""
    if one.name == "einsum":
        return _einsum(one)
    if one.name in CONVOLUTIONS:
        return one.args[0], 1 - one.args[0].dim(), one.argument(1, "weight"), 1
    a, at, b, along = MATRICES[one.name]
    left = one.argument(a, "input", "batch1", "mat1", "self", "mat_a")
    right = one.argument(b, "weight", "other", "mat2", "batch2", "mat_b")
    return left, at, right, -1 if right.dim() == 1 else along


def _einsum(one: Operation) -> tuple[Any, int, Any, int]:
    """Find in an equation the letter that two tensors share and the result lacks."""
    equation, tensors = one.args[0], one.args[1:]
    if len(tensors) == 1 and isinstance(tensors[0], list | tuple):
        tensors = tensors[0]
    terms, _, result = equation.replace(" ", "").replace("...", "").partition("->")
    left, _, right = terms.partition(",")
    summed = [letter for letter in left if letter in right and letter not in result]
    if len(tensors) != 2 or len(summed) != 1 or summed[0] not in string.ascii_letters:
        return tensors[0], 0, tensors[-1], 0
    letter = summed[0]
    return (
        tensors[0], left.index(letter) - len(left),
        tensors[1], right.index(letter) - len(right),
    )  # fmt: skip
