"""Proofs of an anatomy by numbers: each changes something in a model, and looks at what follows.

None asks the code that it checks: T1 compares tensors, T2 is causality, T3 silences all mixers,
readers are proven by what can be taken out of them, norms and routers by computing them by hand.
"""

import re
from contextlib import ExitStack, contextmanager

import torch

from moe_outliers.recording.anatomy import Place
from moe_outliers.recording.norms import normalised, probe_norm
from moe_outliers.recording.tracing.trail import tensors_of
from support import zoo


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
    wanted = [
        (s, m.enters, Place(s.norm, "output", ()))
        for s in anatomy.sites
        if s.norm
        for m in s.mixers
    ]
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
        return type(thing)(
            put(part, key[1:]) if n == key[0] else part for n, part in enumerate(thing)
        )

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
        kept["y"] = next(tensor for _, tensor in tensors_of(output))

    handle = model.get_submodule(path).register_forward_hook(hook)
    zoo.run(model)
    handle.remove()
    return kept["y"].clone()


def entering(anatomy, mixer):
    """Return all places where sites enter a mixer: queries may come another way than keys."""
    mixers = [other for site in anatomy.sites for other in site.mixers]
    return {other.enters for other in mixers if other.module == mixer.module}


def check_t2(model, anatomy):
    """What the first position brings changes later outputs iff the site is called attn_in."""
    for block in range(len(anatomy.blocks)):
        for site in anatomy.sites_of(block):
            for mixer in site.mixers:
                before = output_of(model, mixer.module)
                with ExitStack() as stack:
                    for place in entering(anatomy, mixer):
                        stack.enter_context(changed(model, place, poke))
                    after = output_of(model, mixer.module)
                moved = (after - before).reshape(zoo.TOKENS, -1).abs().amax(1)
                sees = moved > 1e-6 * before.abs().max()
                assert sees[0], (site, "nothing changes")
                assert bool(sees[1:].any()) == (site.kind == "attn_in"), (site.name, mixer, moved)
                if mixer.kind in {"attention", "sliding_attention"}:
                    far = bool(sees[zoo.WINDOW + 4 :].any())  # short convolutions reach on
                    assert far == (mixer.kind == "attention"), (site.name, mixer, moved)


def zeros(output):
    if isinstance(output, torch.Tensor):
        return torch.zeros_like(output) if output.is_floating_point() else output
    if isinstance(output, dict):
        return {name: zeros(part) for name, part in output.items()}
    return type(output)(map(zeros, output)) if isinstance(output, tuple | list) else output


def silencing(mixer):
    """Return a hook that lets a mixer make nothing; if it adds to the stream, return the stream."""

    def hook(module, args, kwargs, output):
        if mixer.residual is None:
            return zeros(output)
        stream = mixer.residual.take(args, kwargs)
        return (stream, *output[1:]) if isinstance(output, tuple | list) else stream

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


@contextmanager
def rescaled(model, anatomy, powers, left_out=None):
    """Multiply the features of every site by powers of two; divide the columns of its readers.

    Args:
        model: changed meanwhile.
        anatomy: of the model.
        powers: (feature,), for every site.
        left_out: path of a reader whose columns stay.
    """
    sites = known_sites(anatomy)
    readers = {(r.parameter, r.axis) for site in sites for r in site.readers}
    before = {}
    with ExitStack() as stack, torch.no_grad():
        for norm in {site.norm for site in sites if site.norm}:
            hook = model.get_submodule(norm).register_forward_hook(lambda m, a, x: x * powers)
            stack.callback(hook.remove)
        for place in {m.enters for site in sites if not site.norm for m in site.mixers}:
            stack.enter_context(changed(model, place, lambda x: x * powers))
        for path, axis in readers:
            parameter = model.get_parameter(path)
            before[path] = parameter.clone()
            if path != left_out:
                shape = [-1 if n == axis else 1 for n in range(parameter.dim())]
                parameter.div_(powers.reshape(shape))
        try:
            yield
        finally:
            for path, values in before.items():
                model.get_parameter(path).copy_(values)


def known_sites(anatomy):
    """Return the sites all of whose readers are known, and those of every site of the same norm."""
    unknown = {site.norm for site in anatomy.sites if site.norm and site.unknown}
    return [s for s in anatomy.sites if not s.unknown and s.norm not in unknown]


def check_readers(model, anatomy):
    """What the sites' features are multiplied by can be taken out of the readers, to the last bit.

    With any reader left as it is, the logits change.
    """
    exponents = torch.randint(-4, 5, (anatomy.width,), generator=torch.Generator().manual_seed(2))
    powers = 2.0**exponents
    logits = zoo.run(model)
    with rescaled(model, anatomy, powers):
        assert torch.equal(zoo.run(model), logits)
    seen = set()
    for site in known_sites(anatomy):
        for reader in site.readers:
            look = (site.kind, site.mixer, re.sub(r"\.\d+\.", ".", reader.parameter), reader.kind)
            if look not in seen:
                seen.add(look)
                with rescaled(model, anatomy, powers, left_out=reader.parameter):
                    assert not torch.equal(zoo.run(model), logits), (site.name, reader)


def check_norms(model, anatomy):
    """Gain and offset are the parameters, and x = gain * z + offset."""
    sites = [site for site in anatomy.sites if site.norm]
    places = [p for s in sites for p in (s.norm_reads, Place(s.norm, "output", ()))]
    with Taken(model, places) as taken:
        zoo.run(model)
    for site in sites:
        module = model.get_submodule(site.norm)
        norm = probe_norm(module, anatomy.width)
        if norm.kind == "gated":
            assert any("gain" in said for said in site.unknown), site
            continue
        h, x = rows(taken[site.norm_reads]).double(), rows(taken[Place(site.norm, "output", ())])
        made = norm.gain * normalised(h, norm.kind, norm.eps) + norm.offset
        assert torch.allclose(x.double(), made, rtol=1e-4, atol=1e-5), site
        weights = [p for _, p in module.named_parameters(recurse=False)]
        if weights:
            exact = [weights[0], 1 + weights[0], weights[0].exp()]
            assert any(torch.allclose(norm.gain, one, rtol=1e-6, atol=0) for one in exact), site
        if len(weights) > 1:
            assert torch.equal(norm.offset, weights[1]), site


def called(module, places, tensors):
    """Call a module with tensors at their places."""
    given = {place.key[0]: tensor for place, tensor in zip(places, tensors, strict=True)}
    args = [given[n] for n in range(len(given)) if n in given]
    return module(*args, **{name: given[name] for name in given if isinstance(name, str)})


def check_routing(model, anatomy):
    """Logits, picks and weights are those that a computation by hand gives."""
    readers = {r.parameter: r for s in anatomy.sites for r in s.readers if r.kind == "router"}
    for routing in anatomy.routings:
        site = next(s for s in anatomy.sites for m in s.mixers if m.module == routing.mixture)
        enters = next(m.enters for m in site.mixers if m.module == routing.mixture)
        places = [routing.logits, routing.weights, routing.picked, *(routing.called or ()), enters]
        output = Place(routing.experts, "output", ()) if routing.called else None
        with Taken(model, [p for p in [*places, output] if p is not None]) as taken:
            zoo.run(model)
        mine = [readers[r.parameter] for r in site.readers if r.parameter in readers]
        if routing.logits is not None and len(mine) == 1:
            logits = rows(taken[routing.logits])
            weight = model.get_parameter(mine[0].parameter)
            if weight.shape[0] == logits.shape[1]:
                by_hand = rows(taken[enters]) @ weight.T
                bias = logits - by_hand  # the same for every token, or none
                assert (bias - bias.mean(0)).abs().max() < 1e-4 * logits.abs().max(), routing
        if (
            routing.picked is not None
            and routing.logits is not None
            and routing.sorted_by is not None
        ):
            scores = routing.scores(rows(taken[routing.logits]), model.state_dict().__getitem__)
            picked = rows(taken[routing.picked])
            if not routing.limited:
                by_hand = scores.topk(routing.top_k).indices
                assert torch.equal(by_hand.sort().values, picked.sort().values), routing
        if routing.called is not None:
            hidden, picked, weights = (taken[place] for place in routing.called)
            assert picked.shape[-1] == routing.top_k
            assert int(picked.max()) < routing.choices
            if routing.picked is not None:
                assert torch.equal(rows(taken[routing.picked]), rows(picked)), routing
                assert torch.equal(rows(taken[routing.weights]), rows(weights)), routing
            experts = model.get_submodule(routing.experts)
            once = torch.zeros_like(weights[:, :1]).repeat(1, 2)
            once[:, 0] = 1.0
            alone = [
                called(experts, routing.called, (hidden, picked[:, [k, k]], once))
                for k in range(routing.top_k)
            ]
            total = sum(weights[:, k : k + 1] * y for k, y in enumerate(alone))
            assert torch.allclose(rows(total), rows(taken[output]), rtol=1e-3, atol=1e-5), routing


CHECKS = (check_t1, check_t2, check_t3, check_readers, check_norms, check_routing)


def prove(model, anatomy):
    """Prove all of an anatomy."""
    for check in CHECKS:
        check(model, anatomy)
