"""Maps the weights of a checkpoint to the parameters of a model.

Names, fusions and data types follow transformers' own tables, so that the weights are those of
`from_pretrained`. A conversion that only moves bytes (a changed name, experts' matrices stacked and
set side by side) needs no computation: every tensor is copied to its final place. Any other (a
cast, a dequantisation, an operation of transformers) is computed when the layer is used.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
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

from moe_outliers.checkpoint import headers
from moe_outliers.checkpoint import stored as stored_weights
from moe_outliers.checkpoint.config import Quantisation
from moe_outliers.checkpoint.stored import Stored
from moe_outliers.engine.ends import Users
from moe_outliers.recording.anatomy import Anatomy

Source = tuple[str, Stored]
"""A weight, and before it the pattern of transformers' table that its name matched, or nothing."""

_EXPERT = re.compile(r"\.experts\.\d+\.")


@dataclass(frozen=True)
class Piece:
    """A weight of the checkpoint and its place in a parameter.

    Attributes:
        stored: the weight.
        start: its first element in the flattened parameter.
    """

    stored: Stored
    start: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's own shape."""
        return self.stored.shape


@dataclass
class Parameter:
    """A parameter or buffer of the model, and the weights that make it.

    Attributes:
        moved: its bytes are the pieces' bytes, at their places; else it is computed from them.
        conversion: computes it from its pieces, each in its own shape and the parameter's type;
            None: each piece, cast or dequantised, goes to its place.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: list[Piece]
    moved: bool = False
    conversion: Callable[[Sequence[torch.Tensor]], torch.Tensor] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the parameter."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def tensors(self) -> Iterator[headers.Tensor]:
        """The stored tensors that make it: values and scales."""
        for piece in self.pieces:
            yield piece.stored.values
            if piece.stored.scales is not None:
                yield piece.stored.scales


@dataclass
class Group:
    """The parameters that are needed at the same time: the embeddings, one block, or the head."""

    name: str
    parameters: list[Parameter] = field(default_factory=list)

    @property
    def shards(self) -> list[str]:
        """Names of the shards that its tensors lie in."""
        return sorted({tensor.shard for p in self.parameters for tensor in p.tensors})


def torch_dtype(tensor: headers.Tensor) -> torch.dtype:
    """Return the type that torch gives a tensor of the checkpoint."""
    found: torch.dtype = getattr(torch, headers.DTYPES[tensor.dtype][0])
    return found


def groups(
    model: Any,
    index: Mapping[str, headers.Tensor],
    quantised: Quantisation | None,
    anatomy: Anatomy,
) -> list[Group]:
    """Assign the weights of a checkpoint to the parts of a model that are needed together.

    Args:
        model: a causal language model of transformers, its parameters on the meta device.
        index: every tensor of the checkpoint by name.
        quantised: how the weights are stored, as `config.quantisation` returns it.
        anatomy: of the model; what is used nowhere in it is in no group.

    Returns:
        The embeddings, each block and the head, in the order of the forward pass.

    Raises:
        ValueError: as `parameters` does.
    """
    users = Users(model, anatomy)
    blocks = [f"block {number}" for number in range(len(anatomy.blocks))]
    made = [Group(name) for name in ("embeddings", *blocks, "head")]
    for one in parameters(model, index, quantised):
        for number in users.of(one.name):
            made[number].parameters.append(one)
    return made


def parameters(
    model: Any, index: Mapping[str, headers.Tensor], quantised: Quantisation | None
) -> list[Parameter]:
    """Assign the weights of a checkpoint to the parameters and buffers of a model.

    Args:
        model: a causal language model of transformers, its parameters on the meta device.
        index: every tensor of the checkpoint by name.
        quantised: how the weights are stored, as `config.quantisation` returns it.

    Returns:
        Each parameter with its weights, in no particular order.

    Raises:
        ValueError: if the checkpoint lacks tensors, holds others, or some have another shape.
    """
    expected = _expected(model)
    weights = stored_weights.weights(index, quantised)
    mapping = get_model_conversion_mapping(model)
    found = _targets(model, weights, mapping, expected)
    _drop_ignored(model, found, expected)
    converters = {
        pattern: entry
        for entry in mapping
        if isinstance(entry, WeightConverter)
        for pattern in entry.source_patterns
    }
    made: dict[str, Parameter] = {}
    for target, sources in found.items():
        if target in expected:
            _refuse_holes(target, sources)
            kind = expected[target].dtype
            checked = [(key, _checked(weights[name], quantised, kind)) for key, name in sources]
            converter = converters.get(sources[0][0])
            for parameter in _made(target, checked, converter, model, expected):
                made[parameter.name] = parameter
    _tie(model, made)
    _refuse_misfits(model, found, made, expected)
    return list(made.values())


def _checked(weight: Stored, quantised: Quantisation | None, wanted: torch.dtype) -> Stored:
    """Make sure that a stored tensor can be cast: a table of whole numbers cannot be."""
    if weight.scales is None and torch_dtype(weight.values) == wanted:
        return weight
    return stored_weights.checked(weight, quantised)


def _expected(model: Any) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers of a model by name, in the type that they should have."""
    kept = set(model._keep_in_fp32_modules_strict or ())
    if model.dtype == torch.float16:
        kept |= set(model._keep_in_fp32_modules or ())
    wide = re.compile("|".join(pattern.replace("*", ".*") for pattern in kept)) if kept else None
    reduced = model.dtype in (torch.float16, torch.bfloat16)
    return {
        name: tensor.float() if reduced and wide and wide.search(name) else tensor
        for name, tensor in model.state_dict().items()
    }


def _targets(
    model: Any,
    weights: Iterable[str],
    mapping: Sequence[Any],
    expected: Mapping[str, torch.Tensor],
) -> dict[str, list[tuple[str, str]]]:
    """Return, by the parameter that it goes to, the pattern and name of each weight."""
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    known: dict[str, tuple[str, str | None]] = {}
    rename = partial(
        rename_source_key, base_model_prefix=model.base_model_prefix, meta_state_dict=expected
    )
    for name in sorted(weights, key=dot_natural_key):
        alike = _EXPERT.sub(".experts.*.", name)
        if alike not in known:
            renamed = rename(name, renamings, converters)
            if renamed[0] not in expected and name in expected:
                renamed = rename(name, [], [])  # it has its name of today
            if "*" not in (renamed[1] or ""):
                alike = name  # what it is called depends on its expert
            known[alike] = renamed
        target, pattern = known[alike]
        found[target].append((pattern or "", name))
    return found


def _drop_ignored(model: Any, found: dict[str, Any], expected: Mapping[str, Any]) -> None:
    """Leave out what the model's class ignores, of that which it has no parameter for."""
    patterns = list(model._keys_to_ignore_on_load_unexpected or ())
    buffers = [name for name, _ in model.named_buffers()]
    if any(name.endswith("rotary_emb.inv_freq") for name in buffers):
        patterns.append(r"rotary_emb\.inv_freq")
    if any(name.endswith("position_ids") for name in buffers):
        patterns.append(r"(^|\.)position_ids$")
    for target in [name for name in found if name not in expected]:
        if any(re.search(pattern, target) for pattern in patterns):
            del found[target]


def _made(
    target: str,
    sources: Sequence[Source],
    converter: WeightConverter | None,
    model: Any,
    expected: Mapping[str, torch.Tensor],
) -> Iterator[Parameter]:
    """Yield the parameter that some weights make, and any other that is made with it."""
    if converter is None or _stacks(converter):
        yield _placed(target, expected[target], sources, converter)
        return
    dtype = expected[target].dtype  # transformers casts before it converts
    convert = partial(_convert, converter, model, target, [(p, w.name) for p, w in sources])
    try:
        made = convert([torch.empty(w.shape, dtype=dtype, device="meta") for _, w in sources])
    except Exception as error:  # whatever torch raises for shapes that do not go together
        listed = ", ".join(f"{weight.name} {list(weight.shape)}" for _, weight in sources[:3])
        raise ValueError(
            f"the checkpoint does not fit its config.json: {target} cannot be made of {listed}: "
            f"{type(error).__name__}: {error}"[:400]
        ) from None
    for name, tensor in made.items():
        if name in expected and tensor.shape != expected[name].shape:
            raise ValueError(
                f"the checkpoint does not fit its config.json: {name} must be "
                f"{list(expected[name].shape)}, {sources[0][1].name} makes it {list(tensor.shape)}"
            )
        pieces = [Piece(weight) for _, weight in sources]

        def pick(weights: Sequence[torch.Tensor], name: str = name) -> torch.Tensor:
            return convert(weights)[name]

        yield Parameter(name, tuple(tensor.shape), dtype, pieces, conversion=pick)


def _convert(
    converter: WeightConverter,
    model: Any,
    target: str,
    sources: Sequence[tuple[str, str]],
    weights: Sequence[torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Run transformers' own operations; return every parameter that they make, by name."""
    own: Any = deepcopy(converter)
    for (pattern, name), weight in zip(sources, weights, strict=True):
        own.add_tensor(target, name, pattern, weight)
    made = own.convert(target, model=model, config=model.config)
    return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def _stacks(converter: WeightConverter) -> bool:
    """Tell that a conversion only stacks the experts' matrices, gate and up side by side."""
    done = [(type(op), getattr(op, "dim", None)) for op in converter.operations]
    return done in ([(MergeModulelist, 0)], [(MergeModulelist, 0), (Concatenate, 1)])


def _placed(
    name: str, empty: torch.Tensor, sources: Sequence[Source], converter: WeightConverter | None
) -> Parameter:
    """Give each weight of a parameter its place in it.

    Raises:
        ValueError: if their shapes are not those that the parameter needs.
    """
    shape, pieces, rows = tuple(empty.shape), [], 0
    patterns = [*(converter.source_patterns if converter else []), *(key for key, _ in sources)]
    for pattern in dict.fromkeys(patterns):
        own = [weight for key, weight in sources if key == pattern]
        for expert, weight in enumerate(own):
            start = expert * math.prod(shape[1:]) + rows * math.prod(shape[2:])
            pieces.append(Piece(weight, start))
        rows += own[0].shape[0] if converter and own and own[0].shape else 0
    _refuse_shapes(name, shape, pieces, stacked=converter is not None)
    moved = all(
        piece.stored.scales is None and torch_dtype(piece.stored.values) == empty.dtype
        for piece in pieces
    )
    return Parameter(name, shape, empty.dtype, pieces, moved)


def _tie(model: Any, made: dict[str, Parameter]) -> None:
    """Give tied parameters, of which the checkpoint holds one, the same weights."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    for one, other in tied.items():
        for there, lacking in ((other, one), (one, other)):
            if there in made and lacking not in made:
                held = made[there]
                made[lacking] = Parameter(
                    lacking, held.shape, held.dtype, held.pieces, held.moved, held.conversion
                )


def _refuse_misfits(
    model: Any,
    found: Mapping[str, Sequence[tuple[str, str]]],
    made: Mapping[str, Parameter],
    expected: Mapping[str, torch.Tensor],
) -> None:
    """Make sure that every parameter has its weights, and every weight a parameter.

    A parameter that the model's class forgives to be missing is one that transformers fills at
    random; a buffer has the values that the class computes.
    """
    ignored = model._keys_to_ignore_on_load_missing or ()
    computed = {name for name, _ in model.named_buffers()}
    missing = [
        name
        for name in expected.keys() - made.keys()
        if name not in computed or not any(re.search(pattern, name) for pattern in ignored)
    ]
    unexpected = [name for target in found.keys() - expected.keys() for _, name in found[target]]
    unexpected += sorted(made.keys() - expected.keys() - found.keys())
    wrong = {"missing keys": missing, "unexpected keys": unexpected}
    if missing or unexpected:
        listed = "; ".join(
            f"{kind}: {', '.join(sorted(keys)[:3])}" for kind, keys in wrong.items() if keys
        )
        raise ValueError(f"the checkpoint does not fit its config.json: {listed}")


def _refuse_holes(target: str, sources: Sequence[tuple[str, str]]) -> None:
    """Make sure that what is stacked is numbered from 0 on: an expert has the router's number.

    Raises:
        ValueError: if a number is left out; transformers would number the others anew.
    """
    for pattern in {pattern for pattern, _ in sources if "*." in pattern}:
        names = [name for found, name in sources if found == pattern]
        if len(names) == 1:
            continue
        first, last = names[0].split("."), names[-1].split(".")
        ends = zip(first, last, strict=False)
        at = next((n for n, (one, other) in enumerate(ends) if one != other), 0)
        before, after = ".".join(first[:at]), ".".join(first[at + 1 :])
        if names != [f"{before}.{number}.{after}" for number in range(len(names))]:
            raise ValueError(
                f"the checkpoint does not fit its config.json: {target} is made of {len(names)} "
                f"weights that are not numbered from 0 on without a gap: {names[0]} to {names[-1]}"
            )


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
        listed = ", ".join(f"{p.stored.name} {list(p.shape)}" for p in pieces[:2])
        raise ValueError(
            f"the checkpoint does not fit its config.json: {name} must be {list(shape)}, "
            f"it holds {len(pieces)} pieces: {listed}"
        )
