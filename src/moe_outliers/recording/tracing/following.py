"""Follows the residual stream through a model that runs on the meta device.

A torch function mode sees every operation, hooks see where modules begin and end. No name of a
module, class or argument counts.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from moe_outliers.recording.norms import kind_of
from moe_outliers.recording.tracing import rules
from moe_outliers.recording.tracing.answers import Answers
from moe_outliers.recording.tracing.ledger import OUTSIDE, Ledger, Operation, mixer_of
from moe_outliers.recording.tracing.trail import Call, Key, Value, form_of, joined, tensors_of

_PLAIN_NAMES = {"radd": "add", "iadd": "add", "rmul": "mul", "imul": "mul", "isub": "sub",
                "rsub": "rsub", "itruediv": "div", "truediv": "div", "rtruediv": "rdiv",
                "rmatmul": "rmatmul"}  # fmt: skip
"""Operators of Python whose function has another name."""

_SPECIAL = ("getitem", "setitem", "iter", "bool", "int", "index", "float", "contains", "get", "len")


class Following(TorchFunctionMode):
    """Keeps what is known of each tensor, and what happened to the residual stream.

    Attributes:
        embedding: path of the module that made the stream of ids.
        ledger: what happened.
        calls: every run of a module, in order.
        blocks: the runs of the decoder blocks, in order.
        entries: what each run of a block was given as stream: its place, and what is known of it.
        largest: by block, the values of its largest tensors: for each position, and for each pair.
        overwritten: numbers of the blocks that write into the stream, or what a norm returned.
        used: parameters and buffers, each by all of its paths, with the numbers of the blocks that
            they were used in; OUTSIDE before the first, the number of blocks after the last.
    """

    def __init__(
        self, model: nn.Module, embedding: nn.Module, blocks: Iterable[nn.Module], ids: Tensor
    ) -> None:
        """Attach to a model, until the end of the `with` statement that this is used in.

        Args:
            model: on the meta device.
            embedding: turns ids into what becomes the stream.
            blocks: the decoder blocks.
            ids: the model is called with them; no axis of a parameter has as many.
        """
        super().__init__()
        tokens = ids.shape[1]
        self.ledger = Ledger(tokens)
        self.calls: list[Call] = []
        self.blocks: list[Call] = []
        self.entries: list[tuple[Key, Value]] = []
        self.largest: dict[int, list[int]] = {}
        self.overwritten: set[int] = set()
        self.used: dict[tuple[str, ...], set[int]] = {}
        self._answers = Answers(tokens)
        self._embedding, self._modules = embedding, set(blocks)
        self._values: dict[int, Value] = {}
        self._alive: list[Tensor] = []
        self._sharing: dict[int, list[int]] = {}
        self._written: dict[int, Value] = {}
        self._norms: dict[Any, str] = {}
        paths = {module: path for path, module in reversed(list(model.named_modules()))}
        self.embedding = paths[embedding]
        self._held: dict[int, tuple[str, ...]] = {}
        for path, tensor in _held_by(model):
            self._held[id(tensor)] = (*self._held.get(id(tensor), ()), path)
        for path, tensor in [*model.named_parameters(), *model.named_buffers()]:
            axes = tuple(range(tensor.dim()))
            self.tell(tensor, Value(tuple(tensor.shape), parameter=path, axes=axes, constant=True))
        self.tell(ids, Value(tuple(ids.shape), constant=True, by_text=True))
        self._handles: list[Any] = []
        for module, path in paths.items():
            self._handles += [
                module.register_forward_pre_hook(self._entering(path), with_kwargs=True),
                module.register_forward_hook(self._leaving(), with_kwargs=True),
            ]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self._handles:  # models may share modules: activations, for example
            handle.remove()

    # -- what is known of a tensor ---------------------------------------------------------------

    def tell(self, tensor: Tensor, value: Value) -> None:
        """Say what is known of a tensor."""
        value.integer = not tensor.is_floating_point()
        self._values[id(tensor)] = value
        self._alive.append(tensor)  # another tensor must not get its place in memory
        self._sharing.setdefault(_memory(tensor), []).append(id(tensor))

    def known(self, tensor: Any) -> Value | None:
        """Return what is known of a tensor; None if nothing."""
        if not isinstance(tensor, Tensor):
            return None
        value = self._values.get(id(tensor))
        if value is None and self._written:
            value = self._written.get(_memory(tensor))
        return value

    def _all_known(self, thing: Any) -> dict[Key, Value]:
        found = ((key, self.known(tensor)) for key, tensor in tensors_of(thing))
        return {key: value for key, value in found if value is not None}

    # -- where modules begin and end -------------------------------------------------------------

    def _entering(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            with torch._C.DisableTorchFunction():
                if self.ledger.frames:
                    self.ledger.frames[-1].inner += 1
                if module in self._modules:
                    self._enter_block(args, kwargs)
                    self.ledger.block = len(self.blocks)
                call = Call(path, module, self.ledger.frames, self.ledger.block)
                call.begins = module in self._modules
                call.inputs = self._all_known(args) | self._all_known(kwargs)
                self.ledger.frames = (*self.ledger.frames, call)
                self.calls.append(call)
                if call.begins:
                    self.blocks.append(call)

        return hook

    def _enter_block(self, args: Any, kwargs: Any) -> None:
        """Find the residual stream among what a block is called with.

        It is what the block before returned; else what is made of the embedding; else the first
        tensor of numbers, whatever became of the embedding on the way.
        """
        places = [*tensors_of(args), *tensors_of(kwargs)]
        floats = [place for place in places if place[1].is_floating_point()]
        handed = self.blocks[-1].outputs.values() if self.blocks else ()
        roots = {value.root for value in handed if value.points}
        for wanted in (_one_of(roots), lambda value: bool(value and value.points), _anything):
            for key, tensor in floats:
                value = self.known(tensor)
                if wanted(value):
                    if value is None or not value.exact:
                        before = () if value is None else (value,)
                        depth = OUTSIDE if value is None else value.depth
                        value = self.ledger.point(
                            "stream", tuple(tensor.shape), -1, parents=before, depth=depth
                        )
                        self.tell(tensor, value)
                    self.entries.append((key, value))
                    return
        self.entries.append(((), Value(())))

    def _leaving(self) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            with torch._C.DisableTorchFunction():
                call = self.ledger.frames[-1]
                self.ledger.frames = self.ledger.frames[:-1]
                if module is self._embedding and not self.blocks:
                    self.tell(output, self.ledger.point("stream", tuple(output.shape), -1))
                elif isinstance(output, Tensor):
                    inputs = [*tensors_of(args), *tensors_of(kwargs)]
                    self._perhaps_norm(call, [tensor for _, tensor in inputs], output)
                if call.begins:
                    self._leave_block(output)
                    call.gives = form_of(output)
                call.outputs = self._all_known(output)

        return hook

    def _leave_block(self, output: Any) -> None:
        """Find the residual stream among what a block returns, where it begins anew.

        A block may return what its mixers made alone, if the stream goes on beside it.
        """
        self.ledger.block = OUTSIDE
        known = [(tensor, self.known(tensor)) for _, tensor in tensors_of(output)]
        if any(value is not None and value.points for _, value in known):
            return
        shape = self.entries[-1][1].shape
        for tensor, value in known:
            if value is not None and value.reads and value.shape == shape:
                for read in value.reads:
                    read.adds = True
                for read in value.gates:
                    read.steers = True
                depth = len(self.blocks) - 1
                self.tell(
                    tensor,
                    self.ledger.point("stream", shape, -1, parents=(value,), depth=depth),
                )
                return

    def _perhaps_norm(self, call: Call, inputs: Sequence[Tensor], output: Tensor) -> None:
        """Take what a module returned as a point, if the module is a norm of the stream."""
        if len(inputs) != 1 or inputs[0].shape != output.shape or output is inputs[0]:
            return
        fed, now = self.known(inputs[0]), self.known(output)
        if fed is None or now is None or not fed.points or _within_mixer(fed, call):
            return
        kind = self._norm_kind(call.module, output.shape[-1])
        if not kind and _gates(now, fed, call):
            kind = "gated"
        if not kind:
            return
        ledger = self.ledger
        frames, ledger.frames = ledger.frames, (*ledger.frames, call)
        value = ledger.point(kind, tuple(output.shape), -1, parents=(fed,), depth=fed.depth)
        ledger.frames = frames
        for point in value.points:
            point.fed = fed
        ledger.reads = [read for read in ledger.reads if call not in read.frames]
        self.tell(output, value)

    def _norm_kind(self, module: nn.Module, width: int) -> str:
        """Return `norm` or `gated` for a norm without matrices, and nothing for anything else."""
        shapes = tuple((name, tensor.shape) for name, tensor in module.named_parameters())
        if any(len(shape) > 1 for _, shape in shapes):
            return ""
        key = (type(module), shapes, width, repr(module))
        if key not in self._norms:
            kind = kind_of(module, width)
            self._norms[key] = kind if kind in {"", "gated"} else "norm"
        return self._norms[key]

    # -- what operations do ----------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, in_place = _name_of(func)
        out = self._answers.to(name, args, kwargs)
        if out is NotImplemented:
            out = func(*args, **kwargs)
        self._answers.noted(name, args, out)
        results = [args[0]] if in_place else [tensor for _, tensor in tensors_of(out)]
        given = [tensor for _, tensor in [*tensors_of(args), *tensors_of(kwargs)]]
        self._use(given)
        values = [value for tensor in given if (value := self.known(tensor)) is not None]
        for result in results if values else ():
            if not in_place and any(result is tensor for tensor in given):
                continue  # nothing was to be done
            one = Operation(name, func, args, kwargs, result, values, self.known)
            before = self.known(result) if in_place else None
            if before is not None and before.exact:
                self.overwritten.add(self.ledger.block)
            if (value := rules.made(one, self.ledger)) is not None:
                value.depth = max([self.ledger.block, *(part.depth for part in values)])
                value.by_text = any(part.by_text for part in values)
                (self._write if in_place else self._made)(result, value)
        return out

    def _use(self, given: Iterable[Tensor]) -> None:
        """Note which parameters an operation was given."""
        block = self.ledger.block
        if block == OUTSIDE and self.blocks:
            block = len(self.blocks)  # behind a block: behind the last, or between
        for tensor in given:
            if (paths := self._held.get(id(tensor))) is not None:
                self.used.setdefault(paths, set()).add(block)

    def _made(self, tensor: Tensor, value: Value) -> None:
        self.tell(tensor, value)
        block, tokens = self.ledger.block, self.ledger.tokens
        if block == OUTSIDE or value.constant:
            return
        power = sum(size % tokens == 0 for size in tensor.shape if size)
        if power:  # what grows with the positions, and what grows with pairs of them
            largest = self.largest.setdefault(block, [0, 0])
            power = min(power, 2)
            largest[power - 1] = max(largest[power - 1], tensor.numel() // tokens**power)

    def _write(self, tensor: Tensor, value: Value) -> None:
        """Take in what was written into a tensor, and so into all that share its memory."""
        memory = _memory(tensor)
        for other in self._sharing.get(memory, []):
            if other != id(tensor):
                self._values[other] = joined(self._values[other], value)
        before = self._written.get(memory)
        self._written[memory] = value if before is None else joined(before, value)
        self.tell(tensor, value)


def _held_by(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers by all of their paths."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _one_of(roots: set[int]) -> Callable[[Value | None], bool]:
    return lambda value: value is not None and value.root in roots


def _anything(value: Value | None) -> bool:
    return True


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _name_of(func: Any) -> tuple[str, bool]:
    """Return the name of a torch function, and whether it writes into its first argument."""
    name: str = getattr(func, "__name__", "")
    if name == "__get__":  # a property
        return getattr(func.__self__, "__name__", ""), False
    if name.startswith("__") and name.endswith("__"):
        bare = name.strip("_")
        if bare in _SPECIAL:
            return name, bare == "setitem"
        return _PLAIN_NAMES.get(bare, bare), bare.startswith("i") and bare in _PLAIN_NAMES
    if name.endswith("_") and not name.endswith("__"):
        return name[:-1], True
    return name, False


def _within_mixer(fed: Value, call: Call) -> bool:
    """Tell whether a norm is a mixer's own business: of what another norm of the block returned."""
    return any(
        point.kind != "stream"
        and any(frame.begins for frame in point.frames)
        and point.frames[-1].block == call.block
        and mixer_of(call.frames, point) is not None
        for point in fed.points
    )


def _gates(now: Value, fed: Value, call: Call) -> bool:
    """Tell whether a module multiplies what a norm within it made of its input by a gate."""
    inner = [point for point in now.points if point.kind == "norm" and call in point.frames]
    if len(inner) != 1 or inner[0].fed is None or inner[0].fed.root != fed.root:
        return False
    product = next((value for value in now.within() if value.how in rules.PRODUCTS), None)
    if product is None or not now.reads | now.gates:
        return False
    return any(value.root == inner[0].root for value in product.parents)
