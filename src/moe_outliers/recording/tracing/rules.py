"""What operations make of what is known of their arguments.

Each rule takes the arguments of a torch function and one tensor of its result, and says what is
known of that. What happens to the residual stream on the way is written into the ledger.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from moe_outliers.recording.tracing.axes import MOVES, cut, moved, scrambled
from moe_outliers.recording.tracing.contractions import CONVOLUTIONS, MATRICES, contracted
from moe_outliers.recording.tracing.ledger import (
    Ledger,
    Operation,
    combined,
    flows,
    mixer_of,
    noted,
)
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
    words,
)

NO_DATA = words(
    """zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_empty
    new_full new_tensor shape size dtype device ndim is_meta stride numel"""
)
"""Operations whose result holds nothing of the tensor that they are given."""

SUMS = words("add sub rsub subtract where lerp index_add scatter_add __setitem__")
PRODUCTS = words("mul multiply div divide true_divide")
PICKS = words("topk sort argsort argmax max kthvalue")
SOFTMAX = words("softmax log_softmax _softmax")
ATTENTION = "scaled_dot_product_attention"
ALONG = words("cumsum cumprod logcumsumexp flip roll diff")
"""Operations that carry values from one position to another."""


def made(one: Operation, ledger: Ledger) -> Value | None:  # noqa: PLR0911 - one for each rule
    """Say what is known of the result of an operation; None if nothing."""
    if one.name in NO_DATA:
        return None
    first = one.known(one.args[0]) if one.args else None
    if one.name in MOVES and first is not None:
        return _kept(_moved(one, first, ledger), one, ledger)
    if one.name == "embedding":
        return _looked_up(one)
    if one.name in MATRICES or one.name in CONVOLUTIONS or one.name == "einsum":
        return contracted(one, ledger)
    if one.name in PRODUCTS and len(one.args) > 1:
        return _kept(_product(one, ledger), one, ledger)
    if one.name in SUMS:
        return _sum(one, ledger)
    value = combined(one, ledger, _mixing(one, ledger))
    picked = one.name in PICKS and not one.out.is_floating_point()
    if picked and first is not None and first.reads and not first.integer:
        ledger.picks.append(Pick(first, value, ledger.frames, ledger.block))
    return value


def _kept(value: Value, one: Operation, ledger: Ledger) -> Value:
    """Note what a norm returned, where it only chose or weighed something else."""
    for part in one.values if not one.name.endswith("_as") else ():
        for point in part.points - value.points:
            ledger.loose[point] = one.name
    return value


def _mixing(one: Operation, ledger: Ledger) -> tuple[Mixing, ...]:
    """Note whether an operation lets one position see others."""
    paired = any(value.paired for value in one.values)
    if one.name == ATTENTION or (one.name in SOFTMAX and paired):
        return noted("attention", one, ledger)
    along = one.name in ALONG and one.out.is_floating_point()
    if along or (one.name == "pad" and _shifted(one, ledger.tokens)):
        return noted("linear_attention", one, ledger)
    return ()


def _shifted(one: Operation, tokens: int) -> bool:
    """Tell whether the axis of positions was padded, or shifted by padding one end of it."""
    padding = one.argument(1, "pad")
    axes = list(one.args[0].shape)[::-1]
    pairs = zip(axes, padding[::2], padding[1::2], strict=False)
    return any(size == tokens and (before or after) for size, before, after in pairs)


def _moved(one: Operation, value: Value, ledger: Ledger) -> Value:
    """Follow values that are moved about, and not changed."""
    mixing = value.mixing
    tokens = ledger.tokens
    seen = cut(one.name, one.args, one.kwargs, tokens)
    if one.out.is_floating_point() and (
        seen or scrambled(one.name, one.args[0].shape, one.shape, tokens)
    ):
        mixing += noted("linear_attention", one, ledger)
    others = [other for other in one.values if other is not value and one.name[-3:] != "_as"]
    gates = value.gates.union(*(other.reads | other.gates for other in others))
    axis, axes = 0, [-1] * one.out.dim()
    for number, of in enumerate(value.axes):
        place = moved(one.name, one.func, one.args, one.kwargs, out=one.out, axis=number)
        if place is not None:
            axes[place] = of
    if value.axis:
        at = len(value.shape) + value.axis
        place = moved(one.name, one.func, one.args, one.kwargs, out=one.out, axis=at)
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
    """Multiply or divide: by a number, or one for each position, features stay what they are."""
    a, b = one.known(one.args[0]), one.known(one.args[1])
    for main, other, factor in ((a, b, one.args[1]), (b, a, one.args[0])):
        if main is None or (one.name not in {"mul", "multiply"} and main is not a):
            continue
        single = not isinstance(factor, Tensor) or factor.numel() == 1
        flat = isinstance(factor, Tensor) and _flat(factor, main, one)
        if not single and (not flat or main.parameter):
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
    return combined(one, ledger)


def _flat(factor: Tensor, main: Value, one: Operation) -> bool:
    """Tell whether a factor is the same for all features of a token."""
    axis = main.axis or -1
    if one.out.dim() < -axis or one.shape[axis] == 1:
        return False
    return factor.dim() < -axis or factor.shape[axis] == 1


def _sum(one: Operation, ledger: Ledger) -> Value:
    """Add: what mixers made to the stream, which is then another point."""
    stream = [value for value in one.values if value.exact or flows(value)]
    branches = [value for value in one.values if value not in stream and value.reads]
    reads = frozenset[Read]().union(*(value.reads for value in branches))
    if not stream or not branches or any(_inside(read, stream, ledger.frames) for read in reads):
        return combined(one, ledger)
    for read in reads:
        read.adds = True
    for read in frozenset[Read]().union(*(value.gates for value in branches)):
        read.steers = True
    for point in frozenset[Point]().union(*(value.points for value in branches)):
        ledger.loose[point] = one.name
    main = next((value for value in stream if value.exact), stream[0])
    axis = main.axis if main.axis and one.shape[main.axis] == main.shape[main.axis] else -1
    result = ledger.point("stream", one.shape, axis, parents=tuple(one.values))
    plain = main.exact and main.factor != TIMES_TOKEN and len(stream) == 1
    ledger.additions.append(
        Addition(ledger.block, plain, ledger.frames, main.root, result.root, main)
    )
    return result


def _inside(read: Read, stream: Sequence[Value], frames: tuple[Call, ...]) -> bool:
    """Tell whether a sum is a mixer's own business: within it, with what it read itself.

    It is not, if the mixer was given the stream once more to add to.
    """
    points = frozenset[Point]().union(*(value.points for value in stream))
    for point in read.value.points & points:
        mixer = mixer_of(read.frames, point)
        if mixer is not None and mixer in frames:
            return sum(value.root == point.root for value in mixer.inputs.values()) < 2
    return False
