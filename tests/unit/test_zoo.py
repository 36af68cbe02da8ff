"""Every type of causal language model that transformers ships, tiny: what is observed is so.

Each check changes numbers and looks at what else changes; none asks the code that it checks.
"""

from collections import Counter
from contextlib import ExitStack, contextmanager

import pytest
import torch
import zoo

from moe_outliers.recording.anatomy import Place
from moe_outliers.recording.observed import observe


class Taken(dict):
    """Tensors that hooks took during a run, by their place."""

    def __init__(self, model, places):
        super().__init__()
        self.model, self.places = model, places

    def __enter__(self):
        self.handles = []
        for place in set(self.places):
            module = self.model.get_submodule(place.module)
            if place.side == "input":
                hook = module.register_forward_pre_hook(self._before(place), with_kwargs=True)
            else:
                hook = module.register_forward_hook(self._after(place), with_kwargs=True)
            self.handles.append(hook)
        return self

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()

    def _before(self, place):
        def hook(module, args, kwargs):
            self[place] = place.take(args, kwargs).clone()

        return hook

    def _after(self, place):
        def hook(module, args, kwargs, output):
            self[place] = place.take(args, kwargs, output).clone()

        return hook


def rows(x):
    return x.reshape(-1, x.shape[-1])


def check_t1(model, anatomy):
    """What a norm returned is what the mixers of its sites receive, to the last bit."""
    wanted = [(s, m.enters, Place(s.norm, "output", ())) for s in anatomy.sites if s.norm for m in s.mixers]
    with Taken(model, [p for _, *places in wanted for p in places]) as taken:
        zoo.run(model)
    for site, enters, norm in wanted:
        x, received = rows(taken[norm]), rows(taken[enters])
        if site.scaled:
            factor = (received / x)[x.abs() > 1e-3]
            assert factor.std() < 1e-5 * factor.abs().mean(), site
        else:
            assert torch.equal(x, received), site


def firsts(anatomy):
    """Return the first block of each kind."""
    seen = {}
    for number, block in enumerate(anatomy.blocks):
        seen.setdefault(block.kind, number)
    return seen.values()


@contextmanager
def changed(model, place, change):
    """Change an argument on its way into a module."""

    def put(thing, key):
        if not key:
            return change(thing)
        if isinstance(thing, dict):
            return {**thing, key[0]: put(thing[key[0]], key[1:])}
        return type(thing)(put(part, key[1:]) if n == key[0] else part for n, part in enumerate(thing))

    def hook(module, args, kwargs):
        if isinstance(place.key[0], str):
            return args, put(kwargs, place.key)
        return put(args, place.key), kwargs

    handle = model.get_submodule(place.module).register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def poke(x):
    x = x.clone()
    rows(x)[0] += 3 * torch.randn(x.shape[-1], generator=torch.Generator().manual_seed(1))
    return x


def output_of(model, path):
    kept = {}

    def hook(module, args, output):
        kept["y"] = output[0] if isinstance(output, tuple | list) else output

    handle = model.get_submodule(path).register_forward_hook(hook)
    zoo.run(model)
    handle.remove()
    return kept["y"].clone()


def check_t2(model, anatomy):
    """The first position's input changes later outputs of a mixer iff its site is called attn_in."""
    for block in range(len(anatomy.blocks)):
        for site in anatomy.sites_of(block):
            for mixer in site.mixers:
                before = output_of(model, mixer.module)
                with changed(model, mixer.enters, poke):
                    after = output_of(model, mixer.module)
                moved = (after - before).reshape(zoo.TOKENS, -1).abs().amax(1)
                sees = moved > 1e-6 * before.abs().max()
                assert sees[0], (site, "nothing changes")
                assert bool(sees[1:].any()) == (site.kind == "attn_in"), (site.name, mixer, moved)
                if mixer.kind in {"attention", "sliding_attention"}:
                    far = bool(sees[zoo.WINDOW + 4 :].any())  # short convolutions reach on
                    assert far == (mixer.kind == "attention"), (site.name, mixer, moved)


def silencing(mixer):
    """Return a hook that lets a mixer make nothing; one that adds to the stream returns the stream."""

    def hook(module, args, kwargs, output):
        def zero(x):
            floats = isinstance(x, torch.Tensor) and x.is_floating_point()
            return torch.zeros_like(x) if floats else x

        if mixer.residual is not None:
            stream = mixer.residual.take(args, kwargs)
            return (stream, *output[1:]) if isinstance(output, tuple | list) else stream
        return type(output)(map(zero, output)) if isinstance(output, tuple | list) else zero(output)

    return hook


def check_t3(model, anatomy):
    """With all mixers silent a block hands on what came in, times a number."""
    handles = [
        model.get_submodule(m.module).register_forward_hook(silencing(m), with_kwargs=True)
        for s in anatomy.sites
        for m in s.mixers
    ]
    places = [p for b in anatomy.blocks for p in (b.enters, b.leaves)]
    with Taken(model, places) as taken:
        zoo.run(model)
    for handle in handles:
        handle.remove()
    for block in anatomy.blocks:
        if block.additive:
            continue
        h, y = rows(taken[block.enters]), rows(taken[block.leaves])
        if not h.any():  # the block before made all of it
            continue
        h, y = h - h.mean(0), y - y.mean(0)  # a bias is the same at every position
        y = y - (h * y).sum() / (h * h).sum() * h
        assert y.abs().max() <= 1e-4 * h.abs().max(), (block, y.abs().max())


def check_readers(model, anatomy):
    """Features times powers of two, and the readers' columns divided: the logits stay, to the bit."""
    ...


@pytest.mark.parametrize("kind", zoo.TYPES)
def test_zoo(kind):
    model = zoo.build(kind)
    anatomy = observe(model)
    check_t1(model, anatomy)
    check_t2(model, anatomy)
    check_t3(model, anatomy)
