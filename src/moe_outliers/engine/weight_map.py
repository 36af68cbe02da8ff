"""Maps the tensors of a checkpoint to the parameters of a model.

Names, fusions and data types follow transformers' own tables, so that the weights are those of
`from_pretrained`. A conversion that only moves bytes (a changed name, experts' matrices stacked and
set side by side) needs no computation: every tensor is copied to its final place. Any other (a
cast, a dequantisation) is computed when the layer is used.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from moe_outliers.checkpoint.headers import DTYPES, Tensor
from moe_outliers.engine.ends import Users
from moe_outliers.recording.anatomy import Anatomy

PLAIN = ("BF16", "F16", "F32", "F64")
"""Types of weights that are not quantised."""

FP8 = ("F8_E4M3", "F8_E5M2")
"""Types of weights that are quantised, one scale for each rectangular block."""

COMPANIONS = {"mxfp4": ("_blocks", "_scales"), "fp8": ("", "_scale_inv")}
"""Endings of the tensors that together hold one quantised weight: its values, and their scales."""

_EXPERT = re.compile(r"\.experts\.\d+\.")


@dataclass(frozen=True)
class Piece:
    """A tensor of the checkpoint and its place in a parameter.

    Attributes:
        name: its name in the checkpoint, without the ending of its companions.
        values, scales: where its values lie, and the scales of quantised ones.
        start: its first element in the flattened parameter.
        shape: the shape that it has there.
    """

    name: str
    values: Tensor
    scales: Tensor | None
    start: int
    shape: tuple[int, ...]


@dataclass
class Parameter:
    """A parameter or buffer of the model, and the pieces that make it.

    Attributes:
        moved: its bytes are the pieces' bytes, at their places; else it is computed from them.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: list[Piece]
    moved: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the parameter."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass
class Group:
    """The parameters that are needed at the same time: the embeddings, one block, or the head."""

    name: str
    parameters: list[Parameter] = field(default_factory=list)

    @property
    def shards(self) -> list[str]:
        """Names of the shards that its tensors lie in."""
        return sorted({tensor.shard for _, tensor in tensors_of(self)})


def torch_dtype(tensor: Tensor) -> torch.dtype:
    """Return the type that torch gives a tensor of the checkpoint."""
    found: torch.dtype = getattr(torch, DTYPES[tensor.dtype][0])
    return found


def tensors_of(group: Group) -> Iterator[tuple[Parameter, Tensor]]:
    """Yield the stored tensors of a group, values and scales, with their parameter."""
    for parameter in group.parameters:
        for piece in parameter.pieces:
            yield parameter, piece.values
            if piece.scales is not None:
                yield parameter, piece.scales


def groups(
    model: Any, index: Mapping[str, Tensor], quantised: str | None, anatomy: Anatomy
) -> list[Group]:
    """Assign the tensors of a checkpoint to the parameters of a model.

    Args:
        model: a causal language model of transformers, its parameters on the meta device.
        index: every tensor of the checkpoint by name.
        quantised: how the weights are stored, as `config.quantisation` returns it.
        anatomy: of the model; what is used nowhere in it is in no group.

    Returns:
        The embeddings, each block and the head, in the order of the forward pass.

    Raises:
        ValueError: if the checkpoint lacks tensors, holds others, or some have another shape.
    """
    strict = model._keep_in_fp32_modules_strict or ()
    expected = {
        name: tensor.float() if any(part in name for part in strict) else tensor
        for name, tensor in model.state_dict().items()
    }
    stored = _join(index, quantised, model)
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    known: dict[str, tuple[str, str | None]] = {}
    for name in sorted(stored, key=dot_natural_key):
        alike = _EXPERT.sub(".experts.*.", name)
        if alike not in known:
            renamed = rename_source_key(
                name, renamings, converters, model.base_model_prefix, expected
            )
            if "*" not in (renamed[1] or ""):
                alike = name  # what it is called depends on its expert
            known[alike] = renamed
        target, pattern = known[alike]
        found[target].append((pattern or "", name))
    for tied, origin in (getattr(model, "_tied_weights_keys", None) or {}).items():
        if (
            getattr(model.config, "tie_word_embeddings", False)
            and tied not in found
            and origin in found
        ):
            found[tied] = found[origin]
    _refuse_misfits(model, found, expected)
    users = Users(model, anatomy)
    made = [Group("embeddings"), *(Group(f"block {n}") for n in range(len(anatomy.blocks)))]
    made.append(Group("head"))
    for target, sources in found.items():
        converter = by_pattern.get(sources[0][0])
        parameter = _parameter(target, expected[target], sources, stored, converter)
        for number in users.of(target):
            made[number].parameters.append(parameter)
    return made


def _join(
    index: Mapping[str, Tensor], quantised: str | None, model: Any
) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Pair values and scales of each weight; leave out what the model's class ignores."""
    patterns = [*(model._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq"]
    ignored = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
    index = {name: tensor for name, tensor in index.items() if not ignored.search(name)}
    stored: dict[str, tuple[Tensor, Tensor | None]] = {}
    values_end, scales_end = COMPANIONS.get(quantised or "", ("", ""))
    for name, tensor in index.items():
        stem = name.removesuffix(values_end)
        if scales_end and stem + values_end == name and stem + scales_end in index:
            stored[stem] = tensor, index[stem + scales_end]
        elif not (
            scales_end
            and name.endswith(scales_end)
            and name.removesuffix(scales_end) + values_end in index
        ):
            stored[name] = tensor, None
    return stored


def _refuse_misfits(model: Any, sources: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    ignored = model._keys_to_ignore_on_load_missing or ()
    missing = [
        name
        for name in expected.keys() - sources.keys()
        if not any(re.search(pattern, name) for pattern in ignored)
    ]
    unexpected = [
        name for target in sources.keys() - expected.keys() for _, name in sources[target]
    ]
    wrong = {"missing keys": missing, "unexpected keys": unexpected}
    if missing or unexpected:
        listed = "; ".join(
            f"{kind}: {', '.join(sorted(keys)[:3])}" for kind, keys in wrong.items() if keys
        )
        raise ValueError(f"the checkpoint does not fit its config.json: {listed}")


def _parameter(
    name: str,
    empty: torch.Tensor,
    sources: list[tuple[str, str]],
    stored: Mapping[str, tuple[Tensor, Tensor | None]],
    converter: WeightConverter | None,
) -> Parameter:
    """Place the sources of one parameter in it.

    Raises:
        ValueError: if their shapes are not those that the parameter needs.
    """
    shape, pieces, rows = tuple(empty.shape), [], 0
    stacked = converter is not None and _stacks(converter, name)
    for pattern in converter.source_patterns if converter else [""]:
        names = [source for found, source in sources if found == pattern]
        for expert, source in enumerate(names):
            values, scales = stored[source]
            _refuse_stored(source, values, scales)
            start = expert * math.prod(shape[1:]) + rows * math.prod(shape[2:])
            pieces.append(Piece(source, values, scales, start, _shape(values, scales)))
        rows += pieces[-1].shape[0] if stacked and names else 0
    _refuse_shapes(name, shape, pieces, stacked)
    moved = all(p.scales is None and torch_dtype(p.values) == empty.dtype for p in pieces)
    return Parameter(name, shape, empty.dtype, pieces, moved)


def _refuse_stored(name: str, values: Tensor, scales: Tensor | None) -> None:
    """Make sure that a stored tensor is a weight: plain, or quantised with its scales."""
    if scales is None:
        fits = values.dtype in PLAIN
    elif values.dtype == "U8":
        fits = scales.dtype == "U8" and (*scales.shape, 16) == values.shape
    else:
        fits = values.dtype in FP8 and scales.dtype in (*PLAIN, "F8_E8M0")
        fits &= len(values.shape) == len(scales.shape) == 2 and 0 not in scales.shape
        fits = fits and not any(n % m for n, m in zip(values.shape, scales.shape, strict=True))
    if not fits:
        held = f", with scales {scales.dtype} {list(scales.shape)}" if scales else ""
        raise ValueError(
            f"{name} is stored as {values.dtype} {list(values.shape)}{held}: these are no weights; "
            "the checkpoint is damaged, or quantised in a way that is not known here"
        )


def _stacks(converter: WeightConverter, name: str) -> bool:
    """Tell that a conversion stacks the experts' matrices, gate and up side by side.

    Raises:
        ValueError: if it does anything else.
    """
    done = [(type(op), getattr(op, "dim", None)) for op in converter.operations]
    if done not in ([(MergeModulelist, 0)], [(MergeModulelist, 0), (Concatenate, 1)]):
        raise ValueError(
            f"{name}: transformers makes it by {converter.operations}, which this engine does not "
            "know: run with --set-resources extract:engine=resident"
        )
    return True


def _shape(values: Tensor, scales: Tensor | None) -> tuple[int, ...]:
    """Return the shape of a weight: MXFP4 stores (expert, row, block, 16 bytes of two values)."""
    if scales is not None and values.dtype == "U8":
        experts, rows, blocks, pairs = values.shape
        return experts, blocks * pairs * 2, rows
    return values.shape


def _refuse_shapes(name: str, shape: tuple[int, ...], pieces: list[Piece], stacked: bool) -> None:
    """Make sure that the pieces fill the parameter, side by side: one alone, or all experts'."""
    wanted = shape[1:] if stacked else shape
    fits = sum(math.prod(piece.shape) for piece in pieces) == math.prod(shape)
    for piece in pieces:
        fits &= len(piece.shape) == len(wanted) and piece.shape[1:] == wanted[1:]
    end = 0
    for piece in sorted(pieces, key=lambda piece: piece.start):
        fits &= piece.start == end
        end += math.prod(piece.shape)
    if not fits:
        listed = ", ".join(f"{p.name} {list(p.shape)}" for p in pieces[:2])
        raise ValueError(
            f"the checkpoint does not fit its config.json: {name} must be {list(shape)}, "
            f"it holds {len(pieces)} pieces: {listed}"
        )
