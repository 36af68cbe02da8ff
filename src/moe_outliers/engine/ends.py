"""What lies before the blocks of a model and behind them, run apart from the blocks.

It is the model's own forward pass both times, with its blocks replaced. So it does not matter what
the code of a model does with token ids before the first block, and with the residual stream behind
the last: scaled or capped logits are those of the model.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from moe_outliers.recording.anatomy import Anatomy, Block, Place
from moe_outliers.recording.hooks import replaced
from moe_outliers.recording.oracles import NotAsObservedError
from moe_outliers.recording.reduction import by_row
from moe_outliers.recording.tracing.trail import tensors_of

Key = tuple[int | str, ...]
Call = tuple[tuple[Any, ...], dict[str, Any]]
"""What a module is called with: its arguments by place, and by name."""


class _ReachedError(Exception):
    """A forward pass has come as far as it was wanted; raised within it to end it."""


def put_in(call: Call, changes: dict[Key, Any]) -> Call:
    """Return a call with other things at some places."""
    args, kwargs = call
    for key, thing in changes.items():
        if isinstance(key[0], str):
            kwargs = _put(kwargs, key, thing)
        else:
            args = _put(args, key, thing)
    return args, kwargs


def _put(whole: Any, key: Key, thing: Any) -> Any:
    if not key:
        return thing
    if isinstance(whole, dict):
        return {**whole, key[0]: _put(whole[key[0]], key[1:], thing)}
    return type(whole)(
        _put(part, key[1:], thing) if number == key[0] else part
        for number, part in enumerate(whole)
    )


def _returning(block: Block, stream: Tensor) -> Any:
    """Return what a block returns, with a stream in it and nothing else of use."""

    def filled(form: Any, key: Key) -> Any:
        if form is ...:
            return stream if key == block.leaves.key else stream.new_empty(0)
        if isinstance(form, dict):
            return {name: filled(part, (*key, name)) for name, part in form.items()}
        if isinstance(form, tuple | list):
            return type(form)(filled(part, (*key, n)) for n, part in enumerate(form))
        return form

    return filled(block.gives, ())


def enter(model: Any, anatomy: Anatomy, ids: Tensor) -> tuple[Tensor, list[Call]]:
    """Run a model up to its first block; record what each block is called with.

    Args:
        model: what is used before its first block is there.
        anatomy: of the model.
        ids: (row, position).

    Returns:
        The stream that enters the first block; the call of each, with None in place of the stream.
        What blocks would hand on to each other is missing in them: see `Argument.source`.
    """
    calls: list[Call] = []
    entered: list[Tensor] = []

    def record(block: Block) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            stream = block.enters.take(args, kwargs)
            entered.append(stream)
            calls.append(put_in((args, kwargs), {block.enters.key: None}))
            if len(calls) == len(anatomy.blocks):
                raise _ReachedError
            return _returning(block, stream)

        return forward

    with ExitStack() as stack:
        for block in anatomy.blocks:
            module = model.get_submodule(block.module)
            stack.enter_context(replaced(module, record(block)))
        _run_to(lambda: model(input_ids=ids, use_cache=False))
    return entered[0], calls


def through_blocks(model: Any, anatomy: Anatomy, ids: Tensor) -> Tensor:
    """Run a model up to its last block; return the stream that leaves it.

    Args:
        model: all of it is there.
        anatomy: of the model.
        ids: (row, position).
    """
    leaves, left = anatomy.blocks[-1].leaves, []

    def end(module: nn.Module, args: Any, output: Any) -> None:
        left.append(leaves.take((), {}, output))
        raise _ReachedError

    handle = model.get_submodule(leaves.module).register_forward_hook(end)
    try:
        _run_to(lambda: model(input_ids=ids, use_cache=False))
    finally:
        handle.remove()
    (stream,) = left
    return stream


def _run_to(forward: Callable[[], Any]) -> None:
    try:
        forward()
    except _ReachedError:
        return
    raise RuntimeError("the model ran, but not all of its blocks did")


class Head:
    """Turns the stream behind the last block into logits.

    Most models have a norm and a linear map there: these are called. Of any other the class's own
    forward pass is run, with blocks that hand on the stream.
    """

    def __init__(self, model: Any, anatomy: Anatomy) -> None:
        self._model, self._anatomy = model, anatomy
        self._plain = bool(anatomy.last_norm and anatomy.head and anatomy.reads_last) and not (
            anatomy.before_head or anatomy.after_head
        )

    @property
    def parameters(self) -> tuple[str, ...]:
        """Parameters and buffers that are used, by their paths."""
        anatomy = self._anatomy
        if self._plain:
            return anatomy.after
        before = {name for name in anatomy.before if not self._embeds(name)}
        return tuple(sorted({*anatomy.after, *before}))

    def _embeds(self, name: str) -> bool:
        return name.startswith(f"{self._anatomy.embedding}.")

    def hidden(self, stream: Tensor, rows: int) -> Tensor:
        """Return what the logits of each position are made of, (row, position, …)."""
        if self._plain:
            stream = self._model.get_submodule(self._anatomy.last_norm)(stream)
        return by_row(stream, rows)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the logits, (position, token), of some positions of one row."""
        if self._plain:
            logits: Tensor = self._model.get_submodule(self._anatomy.head)(hidden)
            return logits
        ids = torch.zeros((1, len(hidden)), dtype=torch.long, device=hidden.device)
        embedding = self._model.get_submodule(self._anatomy.embedding)
        width = embedding.weight.shape[-1]
        nothing = torch.zeros((1, len(hidden), width), dtype=hidden.dtype, device=hidden.device)
        with ExitStack() as stack:
            stack.enter_context(replaced(embedding, lambda *args, **kwargs: nothing))
            for block in self._anatomy.blocks:
                module = self._model.get_submodule(block.module)
                stack.enter_context(replaced(module, _handing(block, hidden[None])))
            return self._model(input_ids=ids, use_cache=False).logits[0]  # type: ignore[no-any-return]


class Users:
    """Which part of a model uses a parameter: what lies before the blocks, a block, the head."""

    def __init__(self, model: Any, anatomy: Anatomy) -> None:
        self._parts = [
            set(anatomy.before),
            *(set(block.parameters) for block in anatomy.blocks),
            set(Head(model, anatomy).parameters),
        ]
        self._within = {f"{block.module}.": n + 1 for n, block in enumerate(anatomy.blocks)}

    def of(self, name: str) -> list[int]:
        """Return the numbers of the parts: 0, 1 for the first block, and so on.

        A block uses all of its own parameters, whether that was observed or not.
        """
        users = {number for number, part in enumerate(self._parts) if name in part}
        users |= {number for above, number in self._within.items() if name.startswith(above)}
        return sorted(users)


def _handing(block: Block, stream: Tensor) -> Callable[..., Any]:
    return lambda *args, **kwargs: _returning(block, stream)


def handed_on(anatomy: Anatomy, number: int) -> Sequence[tuple[Key, Place]]:
    """Return which arguments of a block are what blocks before returned, and where."""
    arguments = anatomy.blocks[number].arguments
    return [(one.key, one.source) for one in arguments if one.source is not None]


def made_of_text(block: Block, call: Call) -> dict[Key, Tensor]:
    """Return what a block is called with that depends on the text, beside the stream."""
    args, kwargs = call
    mine = [one.key for one in block.arguments if not one.fixed and one.since < 0]
    return {key: Place(block.module, "input", key).take(args, kwargs) for key in mine}


def check_fixed(anatomy: Anatomy, calls: Sequence[Call], others: Sequence[Call]) -> None:
    """Make sure that what should not depend on the text is the same in the calls of two texts.

    Raises:
        NotAsObservedError: if it is not: blocks would run with something of another text.
    """
    compared: set[int] = set()
    for block, call, other in zip(anatomy.blocks, calls, others, strict=True):
        own = {one.key for one in block.arguments if not one.fixed}
        for (key, tensor), (_, mine) in zip(_tensors(call), _tensors(other), strict=True):
            if key in own or id(tensor) in compared:
                continue
            compared.add(id(tensor))  # most are those of all blocks
            if not torch.equal(tensor, mine):
                raise NotAsObservedError(
                    f"{block.module} is called with something of the text ({key}), which was not "
                    f"observed of {anatomy.model_type} without its weights: {RESIDENT}"
                )


def _tensors(call: Call) -> list[tuple[Key, Tensor]]:
    args, kwargs = call
    return [*tensors_of(args), *tensors_of(kwargs)]


def refuse_unstreamable(anatomy: Anatomy) -> None:
    """Refuse a model whose blocks cannot be run one after the other for all sequences.

    Raises:
        ValueError: if code between blocks changes what they hand to each other.
    """
    for block in anatomy.blocks:
        said = f"{anatomy.model_type} cannot be streamed: before {block.module} "
        if block.between:
            raise ValueError(f"{said}the stream goes through {block.between[0]}: {RESIDENT}")
        for one in block.arguments:
            if one.since >= 0 and one.source is None:
                raise ValueError(f"{said}something is made of what blocks returned: {RESIDENT}")


RESIDENT = "run with --set-resources extract:engine=resident"
