"""Blocks written in other ways than those of transformers: measured right, or it is said."""

import re

import pytest
import torch
from support import zoo
from support.proofs import CHECKS, check_readers, check_t1, check_t2
from torch import nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from moe_outliers.recording.observed import observe

WIDTH = 64


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(WIDTH))

    def forward(self, h):
        return h * (h.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * self.w


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (4, 16)).transpose(1, 2) for f in (self.q, self.k, self.v))
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(seen.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width=WIDTH):
        super().__init__()
        self.up, self.down = nn.Linear(width, 96), nn.Linear(96, WIDTH)

    def forward(self, x):
        return self.down(functional.gelu(self.up(x)))


class Block(nn.Module):
    """Plain: a norm before each mixer."""

    def __init__(self, mlp=None):
        super().__init__()
        self.a, self.b = Norm(), Norm()
        self.attention, self.mlp = Attention(), mlp or Mlp()

    def forward(self, h):
        h = h + self.attention(self.a(h))
        return h + self.mlp(self.b(h))


class OwnAttention(Block):
    """Has attention in its own code."""

    def forward(self, h):
        h = h + self.attention.forward(self.a(h))
        return h + self.mlp(self.b(h))


class Containers(nn.Module):
    """Has norms and mixers in containers."""

    def __init__(self):
        super().__init__()
        self.one = nn.Sequential(Norm(), Attention())
        self.two = nn.Sequential(Norm(), nn.Linear(WIDTH, 96), nn.ReLU(), nn.Linear(96, WIDTH))

    def forward(self, h):
        h = h + self.one(h)
        return h + self.two(h)


class Parallel(Block):
    """Runs both mixers side by side, each behind a norm of its own."""

    def forward(self, h):
        return h + self.attention(self.a(h)) + self.mlp(self.b(h))


class Shifted(Block):
    """Lets the norm of the MLP read the stream and what it was one position before."""

    def forward(self, h):
        h = h + self.attention(self.a(h))
        return h + self.mlp(self.b(h + functional.pad(h, (0, 0, 1, -1))))


class Loop(nn.Module):
    """Experts in a list, visited one after the other."""

    def __init__(self):
        super().__init__()
        self.gate, self.all = nn.Linear(WIDTH, 8, bias=False), nn.ModuleList(map(Mlp, [WIDTH] * 8))

    def forward(self, x):
        rows = x.flatten(0, 1)
        weights, picked = self.gate(rows).softmax(-1).topk(2, -1)
        out = torch.zeros_like(rows)
        mask = functional.one_hot(picked, 8).permute(2, 1, 0)
        for expert in mask.sum((-1, -2)).nonzero():
            rank, token = torch.where(mask[expert].squeeze(0))
            made = self.all[expert](rows[token]) * weights[token, rank, None]
            out.index_add_(0, token, made)
        return out.view_as(x)


class Looped(Block):
    """Has a mixture of experts in a list."""

    def __init__(self):
        super().__init__(Loop())


class Sorted(nn.Module):
    """Experts in one tensor, each of which is given a part of the sorted tokens."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(WIDTH, 8, bias=False)
        self.up = nn.Parameter(torch.randn(8, WIDTH, 32) / 8)
        self.down = nn.Parameter(torch.randn(8, 32, WIDTH) / 6)

    def forward(self, x):
        rows = x.flatten(0, 1)
        weights, picked = self.gate(rows).topk(2, -1)
        order = picked.flatten().argsort(stable=True)
        given = rows[order // 2]
        ends = torch.bincount(picked.flatten(), minlength=8).cumsum(0)
        made, start = torch.zeros_like(given), torch.zeros_like(ends[0])
        for expert in range(8):
            made[start : ends[expert]] = (
                torch.relu(given[start : ends[expert]] @ self.up[expert]) @ self.down[expert]
            )
            start = ends[expert]
        weighed = made * weights.flatten()[order, None]
        return torch.zeros_like(rows).index_add(0, order // 2, weighed).view_as(x)


class Dispatched(Block):
    """Has a mixture of experts that sorts its tokens."""

    def __init__(self):
        super().__init__(Sorted())


class InPlace(Block):
    """Multiplies what a norm returned by a number, in place."""

    def forward(self, h):
        x = self.a(h)
        x *= 2
        h = h + self.attention(x)
        return h + self.mlp(self.b(h))


class PairOfState(Block):
    """Hands on a pair."""

    def forward(self, state):
        h, steps = state
        return super().forward(h), steps + 1


class Flat(Block):
    """Hands on (token, feature)."""

    def forward(self, h):
        return super().forward(h[None])[0]


class NoNorm(Block):
    """Has nothing before attention."""

    def __init__(self):
        super().__init__()
        self.a = nn.Identity()


class Written(Block):
    """Has norms written out in its own code."""

    def forward(self, h):
        h = h + self.attention(functional.rms_norm(h, (WIDTH,), self.a.w))
        return h + self.mlp(functional.layer_norm(h, (WIDTH,), self.b.w))


class Stretched(Block):
    """Multiplies what a norm returned feature by feature."""

    def forward(self, h):
        h = h + self.attention(self.a(h))
        return h + self.mlp(self.b(h) * (torch.arange(WIDTH) / WIDTH + 1))


class Flipped(Block):
    """Hands the features on in another order."""

    def forward(self, h):
        h = h + self.attention(self.a(h))
        return h + self.mlp(self.b(h).flip(-1))


class Summed(Block):
    """Lets the MLP read what attention read and made."""

    def forward(self, h):
        x = self.a(h)
        made = self.attention(x)
        return h + made + self.mlp(x + made)


class Weighed(Block):
    """Weighs what the MLP makes by something that is no linear map of what it reads."""

    def forward(self, h):
        h = h + self.attention(self.a(h))
        x = self.b(h)
        return h + self.mlp(x) * torch.sigmoid(x.abs().mean(-1, keepdim=True))


class OwnWeights(Block):
    """Makes the weights of its MLP out of parameters."""

    def forward(self, h):
        h = h + self.attention(self.a(h))
        made = functional.linear(self.b(h), self.mlp.up.weight * self.mlp.up.bias[:, None])
        return h + functional.linear(made, self.mlp.down.weight)


class Times(Block):
    """Multiplies the stream by what the MLP makes."""

    def forward(self, h):
        h = h + self.attention(self.a(h))
        return h * (1 + self.mlp(self.b(h)))


class Doubled(Block):
    """Lets the MLP read the stream beside what the norm returned."""

    def __init__(self):
        super().__init__(Mlp(2 * WIDTH))

    def forward(self, h):
        h = h + self.attention(self.a(h))
        return h + self.mlp(torch.cat([self.b(h), h], -1))


class Halved(Block):
    """Lets the MLP read half of the features."""

    def __init__(self):
        super().__init__(Mlp(WIDTH // 2))

    def forward(self, h):
        h = h + self.attention(self.a(h))
        return h + self.mlp(self.b(h)[..., : WIDTH // 2])


class Twice(Block):
    """Uses one norm for two things."""

    def forward(self, h):
        h = h + self.attention(self.b(h))
        return h + self.mlp(self.b(h))


def halved(x):
    with torch._C.DisableTorchFunction():
        return x / 2


class Opaque(Block):
    """Has an operation in its MLP that nobody can look into."""

    def forward(self, h):
        h = h + self.attention(self.a(h))
        return h + halved(self.mlp(self.b(h)))


class PlainConfig(PretrainedConfig):
    model_type = "plain"


class Model(PreTrainedModel):
    """Two blocks of a kind."""

    config_class = PlainConfig
    kind: type[nn.Module] = Block

    def __init__(self, config):
        super().__init__(config)
        self.ids, self.norm, self.head = nn.Embedding(128, WIDTH), Norm(), nn.Linear(WIDTH, 128)
        self.blocks = nn.ModuleList(self.kind() for _ in range(2))
        self.post_init()

    def _init_weights(self, module):
        """Leave everything as it was made."""

    def get_input_embeddings(self):
        return self.ids

    def forward(self, input_ids, use_cache=False):
        h = self.ids(input_ids)
        flat, pair = issubclass(self.kind, Flat), issubclass(self.kind, PairOfState)
        state = (h, torch.zeros(1, device=h.device)) if pair else h[0] if flat else h
        for block in self.blocks:
            state = block(state)
        h = state[0] if pair else state[None] if flat else state
        return CausalLMOutput(logits=self.head(self.norm(h)))


def model_of(block):
    torch.manual_seed(0)
    return zoo.shaken(type("Model", (Model,), {"kind": block})(PlainConfig()).eval())


RIGHT = (
    Block,
    Containers,
    Parallel,
    Shifted,
    Looped,
    Dispatched,
    InPlace,
    PairOfState,
    Flat,
    NoNorm,
)


@pytest.mark.parametrize("block", RIGHT)
def test_it_is_measured_right(block):
    model = model_of(block)
    anatomy = observe(model)
    assert not anatomy.unsure
    assert [site.kind for site in anatomy.sites_of(1)] == ["attn_in", "mlp_in"]
    assert not any(site.unknown for site in anatomy.sites)
    assert not any(b.additive for b in anatomy.blocks)
    for check in CHECKS:
        check(model, anatomy)


def test_attention_in_the_code_of_a_block_is_three_maps_that_read_one_site():
    model = model_of(OwnAttention)
    anatomy = observe(model)
    site = anatomy.sites_of(1)[0]
    assert [mixer.module for mixer in site.mixers] == [f"blocks.1.attention.{n}" for n in "qkv"]
    assert {mixer.kind for mixer in site.mixers} == {"attention"}
    check_t1(model, anatomy)
    check_readers(model, anatomy)


def test_all_experts_of_a_list_read():
    site = observe(model_of(Looped)).sites_of(0)[1]
    paths = [f"blocks.0.mlp.all.{number}.up.weight" for number in range(8)]
    assert [r.parameter for r in site.readers if r.kind == "routed"] == paths


@pytest.mark.parametrize("block", [Written, Stretched, Flipped, Summed])
def test_what_no_norm_module_wrote_is_said(block):
    model = model_of(block)
    anatomy = observe(model)
    sites = [site for site in anatomy.sites_of(1) if site.source == "computed"]
    assert sites[-1].kind == "mlp_in"
    assert not any(site.norm for site in sites)
    for site in sites:
        assert any(site.name in said and "no norm module" in said for said in anatomy.unsure)
    check_t2(model, anatomy)
    check_readers(model, anatomy)


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (Weighed, "blocks.1.b: mul, no linear map"),
        (OwnWeights, "blocks.1: not a parameter as it is stored"),
    ],
)
def test_a_reader_that_is_not_known_is_said(block, said):
    model = model_of(block)
    anatomy = observe(model)
    assert said in anatomy.sites_of(1)[1].unknown
    check_readers(model, anatomy)  # of those that are known


def test_a_stream_that_is_multiplied_is_said():
    anatomy = observe(model_of(Times))
    assert anatomy.blocks[1].additive == "the stream goes through mul"
    assert anatomy.blocks[1].beside == ("blocks.1.mlp",)


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (Doubled, "its sites have several widths: [64, 128]"),
        (Halved, "its sites have several widths: [32, 64]"),
        (Opaque, "blocks.0.mlp reads the residual stream, but what it makes was not seen to reach"),
        (Twice, "blocks.0.b runs 2 times in a forward pass"),
    ],
)
def test_it_is_refused(block, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        observe(model_of(block))
