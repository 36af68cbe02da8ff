"""Proves an anatomy on the running model: once for every kind of block, in its first forward pass.

Hooks compare what modules are given and return with what was observed without weights. They know
nothing of who loaded the weights, and nothing of families. A block is then run once more with its
mixers silent, so that whatever else writes to the residual stream shows.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from moe_outliers.recording.anatomy import Anatomy, Block, Mixer, Place, Routing, Site
from moe_outliers.recording.hooks import replaced
from moe_outliers.recording.norms import normalised, probe_norm

ROUNDINGS = 8
"""Steps of the data type by which a number may be off that was rounded a few times."""


class NotAsObservedError(ValueError):
    """A model does something else than was observed of it; the message names the module."""


class Oracles:
    """Checks the first forward pass of the first block of every kind, and detaches from it.

    Attributes:
        unchecked: what cannot be checked of this model, with the reason.
    """

    def __init__(self, model: Any, anatomy: Anatomy) -> None:
        """Attach to a model.

        Args:
            model: of the class and configuration that the anatomy was observed of. The parameters
                of a block need only be there while the block runs.
            anatomy: what was observed.
        """
        self._model, self._anatomy = model, anatomy
        kinds: dict[int, int] = {}
        for number, block in enumerate(anatomy.blocks):
            kinds.setdefault(block.kind, number)
        self._watches = {number: _Watch(model, anatomy, number) for number in kinds.values()}
        self.unchecked = tuple(
            said for number in kinds.values() for said in _unchecked(anatomy, number)
        )

    def finish(self) -> None:
        """Detach from the model, and make sure that every kind of block was checked.

        Raises:
            NotAsObservedError: if one was not.
        """
        left = [watch for watch in self._watches.values() if not watch.done]
        self.close()
        for watch in left:
            raise watch.violation(watch.block.module, "never ran")

    def close(self) -> None:
        """Detach from the model."""
        for watch in self._watches.values():
            watch.close()


def _unchecked(anatomy: Anatomy, number: int) -> Iterator[str]:
    block = anatomy.blocks[number]
    if block.additive:
        yield f"{block.module}: whether anything unobserved writes to the stream: {block.additive}"
    for site in anatomy.sites_of(number):
        if site.norm and not _within(site.norm, block):
            yield f"{block.module}: its {site.kind} is what {site.norm} wrote before it runs"


def _within(path: str, block: Block) -> bool:
    return path.startswith(f"{block.module}.")


class _Watch:
    """Sees one block run, and checks what it saw.

    Attributes:
        block: the block.
        done: whether it has been checked.
    """

    def __init__(self, model: Any, anatomy: Anatomy, number: int) -> None:
        self.block, self.done = anatomy.blocks[number], False
        self._model, self._model_type = model, anatomy.model_type
        self._width = anatomy.width
        self._sites, self._routings = anatomy.sites_of(number), anatomy.routing_of(number)
        self._inputs: dict[str, tuple[Any, Any]] = {}
        self._outputs: dict[str, Any] = {}
        self._entered = torch.empty(0)
        paths = {mixer.module for site in self._sites for mixer in site.mixers if mixer.enters.key}
        paths |= {site.norm for site in self._sites if _within(site.norm, self.block)}
        for routing in self._routings:
            paths |= {p.module for p in (routing.logits, routing.weights, routing.picked) if p}
        self._handles: list[Any] = []
        module = model.get_submodule(self.block.module)
        # The block's own hook sees its input before, and runs after, all that is within it.
        self._handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
        for path in sorted(paths):
            inner = model.get_submodule(path)
            self._handles += [
                inner.register_forward_pre_hook(self._takes(path), with_kwargs=True),
                inner.register_forward_hook(self._gives(path)),
            ]
        self._handles.append(module.register_forward_hook(self._leave, with_kwargs=True))

    def close(self) -> None:
        """Detach from the model, and forget what was seen."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._inputs, self._outputs, self._entered = {}, {}, torch.empty(0)

    def violation(self, module: str, said: str) -> NotAsObservedError:
        """Make the error that stops a run."""
        return NotAsObservedError(
            f"{module}: {said}. What {type(self._model).__name__} (model_type "
            f"{self._model_type}) does is not what was observed of it without its weights, so its "
            "numbers would be wrong. Please report this line and the repository of the model "
            f"(transformers {transformers.__version__}, torch {torch.__version__})"
        )

    def _takes(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._inputs[path] = args, kwargs

        return hook

    def _gives(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self._outputs[path] = output

        return hook

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._entered = self._at(self.block.enters, args, kwargs).clone()

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not self._outputs:
            return  # whoever runs the model asks only what the block is called with
        if self._at(self.block.leaves, args, kwargs, output).isfinite().all():
            self._check(module, args, kwargs)
        # Where it is not, nothing can be compared, and whoever records says so.
        self.done = True
        self.close()

    def _check(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        for site in self._sites:
            self._check_site(site)
        for routing in self._routings:
            self._check_routing(routing)
        if not self.block.additive:
            self._check_nothing_else(module, args, kwargs)

    def _at(self, place: Place, args: Any, kwargs: Any, output: Any = None) -> Tensor:
        try:
            return place.take(args, kwargs, output)
        except LookupError as error:
            raise self.violation(place.module, str(error)) from None

    def _seen(self, place: Place) -> Tensor:
        """Return a tensor that a module was given or has returned."""
        if place.module not in self._outputs:
            raise self.violation(place.module, f"did not run in {self.block.module}")
        return self._at(place, *self._inputs[place.module], self._outputs[place.module])

    # -- what is checked ---------------------------------------------------------------------------

    def _check_site(self, site: Site) -> None:
        """Check that the mixers receive the site's tensor, and that its norm is one."""
        own = bool(site.norm) and _within(site.norm, self.block)
        mixers = [mixer for mixer in site.mixers if mixer.enters.key]
        if not own and not mixers:
            return
        first = Place(site.norm, "output", ()) if own else mixers[0].enters
        x = self._seen(first)
        for mixer in mixers:
            received = self._seen(mixer.enters)
            if received.shape[-1] != self._width:
                raise self.violation(mixer.module, f"receives {tuple(received.shape)}")
            if not site.scaled and not _same(x, received):
                raise self.violation(mixer.module, f"does not receive what {first.module} has")
        if own and site.norm_reads is not None:
            self._check_norm(site, self._seen(site.norm_reads), x)

    def _check_norm(self, site: Site, h: Tensor, x: Tensor) -> None:
        """Check that x = gain * z + offset, to rounding."""
        try:
            norm = probe_norm(self._model.get_submodule(site.norm), self._width, h.dtype)
        except ValueError as error:
            raise self.violation(site.norm, f"is no norm: {error}") from None
        if norm.gain is None or norm.offset is None:
            return
        h = h.float()
        z = normalised(h, norm.kind, norm.eps)
        off = (x.float() - norm.gain * z - norm.offset).abs()
        # z is computed in float32, where the mean of h takes digits away from what is left of it.
        spread = h - h.mean(-1, keepdim=True) if norm.kind == "layer" else h
        lost = _largest(z) * _largest(h) / _largest(spread).clamp_min(1e-30)
        rounded = torch.finfo(x.dtype).eps * ((norm.gain * z).abs() + norm.offset.abs())
        allowed = ROUNDINGS * (rounded + torch.finfo(torch.float32).eps * norm.gain.abs() * lost)
        if not bool((off <= allowed).all()):
            raise self.violation(site.norm, "does not return gain * z + offset")

    def _check_routing(self, routing: Routing) -> None:
        """Check that a mixture of experts picks what its scores say, where that is known."""
        if routing.picked is None:
            return
        picked = self._seen(routing.picked)
        picked = picked.reshape(-1, picked.shape[-1])
        if picked.is_floating_point() or picked.shape[1] != routing.top_k:
            raise self.violation(routing.picked.module, f"picks {tuple(picked.shape)}")
        if bool(((picked < 0) | (picked >= routing.choices)).any()):
            raise self.violation(routing.picked.module, "picks an expert that is not there")
        if routing.weights is not None:
            weights = self._seen(routing.weights)
            if weights.numel() != picked.numel() or not bool(weights.isfinite().all()):
                raise self.violation(routing.weights.module, "weighs other than the picked experts")
        if routing.logits is None or routing.sorted_by is None:
            return
        logits = self._seen(routing.logits)
        if logits.shape[-1] != routing.choices or logits.numel() // routing.choices != len(picked):
            raise self.violation(routing.logits.module, f"has logits {tuple(logits.shape)}")
        scores = routing.scores(logits.reshape(-1, routing.choices), self._held)
        best = scores.topk(routing.top_k).values[:, -1:]
        slack = ROUNDINGS * torch.finfo(logits.dtype).eps * scores.abs().amax(1, keepdim=True)
        if not routing.limited and bool((scores.gather(1, picked) < best - slack).any()):
            raise self.violation(routing.picked.module, "does not pick the largest scores")

    def _held(self, path: str) -> Tensor:
        holder, _, name = path.rpartition(".")
        held: Tensor = getattr(self._model.get_submodule(holder), name)
        return held

    def _check_nothing_else(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Check that a block with silent mixers returns its input, times a number, plus a bias."""
        mixers = {mixer.module: mixer for site in self._sites for mixer in site.mixers}
        with ExitStack() as stack:
            stack.enter_context(_without_hooks(module))
            for path, mixer in mixers.items():
                inner = self._model.get_submodule(path)
                stack.enter_context(replaced(inner, self._silent(mixer)))
            output = module(*args, **kwargs)
        h = self._entered.float()
        y = self._at(self.block.leaves, args, kwargs, output).float().reshape(h.shape)
        h, y = (part.flatten(0, 1) if part.dim() > 2 else part for part in (h, y))
        step = torch.finfo(self._entered.dtype).eps
        allowed = ROUNDINGS * step * y.abs().amax()
        h, y = h - h.mean(0), y - y.mean(0)  # a bias is the same at every position
        rest = y - (h * y).sum() / (h * h).sum().clamp_min(step) * h
        if not bool((rest.abs() <= allowed).all()):
            said = "something in it that was not observed writes to the residual stream"
            raise self.violation(self.block.module, said)

    def _silent(self, mixer: Mixer) -> Any:
        """Return a forward pass of a mixer that makes nothing: one that adds returns the stream."""
        output = self._outputs[mixer.module]

        def forward(*args: Any, **kwargs: Any) -> Any:
            if mixer.residual is None:
                return _zeros(output)
            stream = self._at(mixer.residual, args, kwargs)
            return (stream, *output[1:]) if isinstance(output, tuple | list) else stream

        return forward


def _same(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors hold the same numbers, to the last bit of the second's type."""
    if a.numel() != b.numel():
        return False
    a = a.to(b.dtype)
    if (
        a.data_ptr() == b.data_ptr()
        and a.dtype == b.dtype
        and a.is_contiguous() == b.is_contiguous()
    ):
        return True
    return bool((a.reshape(-1, a.shape[-1]) == b.reshape(-1, b.shape[-1])).all())


def _largest(x: Tensor) -> Tensor:
    return x.abs().amax(-1, keepdim=True)


def _zeros(output: Any) -> Any:
    """Return what a module returned, with 0 in place of every number that is not whole."""
    if isinstance(output, Tensor):
        return torch.zeros_like(output) if output.is_floating_point() else output
    if isinstance(output, dict):
        empty = copy.copy(output)  # of whatever kind: transformers has its own
        for name, part in output.items():
            empty[name] = _zeros(part)
        return empty
    return type(output)(map(_zeros, output)) if isinstance(output, tuple | list) else output


@contextmanager
def _without_hooks(module: nn.Module) -> Iterator[None]:
    """Let a module and all within it run without hooks: nobody records what is done here."""
    names = ("_forward_hooks", "_forward_pre_hooks")
    kept = [(inner, name, getattr(inner, name)) for inner in module.modules() for name in names]
    for inner, name, _ in kept:
        setattr(inner, name, OrderedDict())
    try:
        yield
    finally:
        for inner, name, hooks in kept:
            setattr(inner, name, hooks)
