"""Products of matrices: a linear map where one of the two is a parameter."""

import string
from dataclasses import replace
from typing import Any

from moe_outliers.recording.tracing.ledger import Ledger, Operation, combined, flows, noted
from moe_outliers.recording.tracing.trail import Mixing, Read, Value, words

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

CONVOLUTIONS = words("conv1d conv2d conv3d")


def contracted(one: Operation, ledger: Ledger) -> Value:
    """Multiply matrices: a linear map where one of them is a parameter."""
    left, at, right, along = _operands(one)
    a, b = one.known(left), one.known(right)
    if b is not None and not b.constant and (a is None or a.constant):
        (a, at), (b, along) = (b, along), (a, at)  # the activation first, then the weight
    if a is None or a.constant:
        return combined(one, ledger)
    mixing: tuple[Mixing, ...] = ()
    convolved = one.name in CONVOLUTIONS
    if convolved and max(right.shape[2:]) > 1:
        mixing = noted("linear_attention", one, ledger)
    if b is not None and not b.constant:  # two activations
        return _paired(one, ledger, (a, b), mixing)
    if convolved and one.argument(6, "groups") not in {None, 1}:  # each feature by itself
        return combined(one, ledger, mixing)
    return _mapped(one, ledger, a, b, axes=(at, along), mixing=mixing)


def _paired(
    one: Operation, ledger: Ledger, pair: tuple[Value, Value], mixing: tuple[Mixing, ...]
) -> Value:
    """Multiply two activations: whatever reads a point so is no linear map with a weight.

    Two outcomes of linear maps are multiplied so where positions are compared with positions.
    """
    if all(value.reads for value in pair):
        mixing += noted("linear_attention", one, ledger)
    result = replace(combined(one, ledger, mixing), paired=True)
    for value in pair:
        if value.points and not flows(result):
            read = Read(value, "", -1, ledger.frames, ledger.block)
            ledger.reads.append(read)
            result = replace(result, reads=result.reads | {read})
    return result


def _mapped(
    one: Operation,
    ledger: Ledger,
    a: Value,
    weight: Value | None,
    *,
    axes: tuple[int, int],
    mixing: tuple[Mixing, ...],
) -> Value:
    """Apply a linear map to an activation, and note it if the activation holds a point."""
    at, along = axes
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
