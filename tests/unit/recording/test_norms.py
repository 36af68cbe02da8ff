"""What a norm does is found by what it makes of known inputs."""

import pytest
import torch
from torch import nn
from transformers.models.axk2.modeling_axk2 import AXK2Config, AXK2GatedRMSNorm
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.nanochat.modeling_nanochat import NanoChatRMSNorm
from transformers.models.nemotron.modeling_nemotron import NemotronLayerNorm1P
from transformers.models.olmo.modeling_olmo import OlmoLayerNorm

from moe_outliers.recording.norms import kind_of, normalised, probe_norm

WIDTH = 64


def random(module):
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            noise = torch.Generator().manual_seed(number)
            parameter.copy_(torch.randn(parameter.shape, generator=noise) + 0.5)
    return module


def weight(module):
    return module.weight.float()


def one_more(module):
    return 1 + module.weight.float()


def ones(module):
    return torch.ones(WIDTH)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("module", "kind", "gain", "eps"),
    [
        (LlamaRMSNorm(WIDTH, 1e-5), "rms", weight, 1e-5),
        (LlamaRMSNorm(WIDTH, 1e-12), "rms", weight, 1e-12),
        (GemmaRMSNorm(WIDTH, 1e-6), "rms", one_more, 1e-6),
        (NanoChatRMSNorm(1e-6), "rms", ones, 1e-6),
        (nn.RMSNorm(WIDTH, 1e-3), "rms", weight, 1e-3),
        (nn.LayerNorm(WIDTH, 1e-5), "layer", weight, 1e-5),
        (nn.LayerNorm(WIDTH, 1e-6, bias=False), "layer", weight, 1e-6),
        (CohereLayerNorm(WIDTH, 1e-5), "layer", weight, 1e-5),
        (OlmoLayerNorm(WIDTH), "layer", ones, 1e-5),
    ],
)
def test_gain_offset_and_epsilon_are_the_parameters(module, kind, gain, eps, dtype):
    module = random(module).to(dtype)
    norm = probe_norm(module, WIDTH, dtype)
    assert (norm.kind, norm.eps) == (kind, eps)
    assert torch.equal(norm.gain, gain(module))
    bias = getattr(module, "bias", None)
    assert torch.equal(norm.offset, torch.zeros(WIDTH) if bias is None else bias.float())


def test_a_gain_of_one_and_the_weight_is_right_to_rounding_where_the_norm_rounds_the_sum():
    module = random(NemotronLayerNorm1P(WIDTH, 1e-5))
    norm = probe_norm(module, WIDTH)
    torch.testing.assert_close(norm.gain, one_more(module))
    assert torch.equal(norm.offset, module.bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_norm_that_is_given_no_epsilon_has_that_of_what_it_computes_in(dtype):
    module = random(nn.RMSNorm(WIDTH)).to(dtype)
    norm = probe_norm(module, WIDTH, dtype)
    h = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0)) * 1e-3
    x = module(h.to(dtype)).float()
    made = norm.gain * normalised(h.to(dtype).float(), norm.kind, norm.eps) + norm.offset
    step = torch.finfo(dtype).eps
    assert (x - made).abs().max() <= 4 * step * made.abs().max()


def test_a_gated_norm_has_no_gain():
    config = AXK2Config()
    config.hidden_size = WIDTH
    norm = probe_norm(random(AXK2GatedRMSNorm(config)), WIDTH)
    assert (norm.kind, norm.gain, norm.offset) == ("gated", None, None)


class Clipped(nn.Module):
    def forward(self, h):
        return nn.functional.rms_norm(h, (WIDTH,)).clamp(-1, 1)


class Floored(nn.Module):
    """Divides by the size of its input, but by no less than a number."""

    def forward(self, h):
        return h / h.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-2)


class Pair(nn.Module):
    def forward(self, h):
        return h, h


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (nn.Linear(WIDTH, WIDTH), "not gain"),
        (nn.Identity(), "not gain"),
        (nn.Dropout(), "not gain"),
        (nn.Tanh(), "not gain"),
        (nn.ReLU(), "not gain"),
        (nn.GroupNorm(4, WIDTH), "does not run on one tensor alone"),
        (nn.Linear(WIDTH, 3), "does not return one tensor of the shape"),
        (Pair(), "does not return one tensor of the shape"),
        (Floored(), "its epsilon is none that is added to the mean square"),
        (LlamaRMSNorm(WIDTH).to("meta"), "the parameters of the norm are not there"),
    ],
)
def test_what_is_no_norm_is_refused(module, said):
    with pytest.raises(ValueError, match=said):
        probe_norm(module, WIDTH)


def test_an_output_that_is_clipped_is_no_gain():
    assert kind_of(Clipped(), WIDTH) != "rms"


def test_an_odd_number_of_features_is_refused():
    with pytest.raises(ValueError, match="odd number of features"):
        probe_norm(LlamaRMSNorm(63), 63)


def test_the_module_is_left_as_it_is():
    module = random(LlamaRMSNorm(WIDTH)).bfloat16()
    called = []
    module.register_forward_hook(lambda *args: called.append(args))
    before = module.weight.clone()
    probe_norm(module, WIDTH, torch.bfloat16)
    assert torch.equal(module.weight, before)
    assert module.weight.dtype == torch.bfloat16
    assert not called


def test_the_kind_is_known_without_parameters():
    with torch.device("meta"):
        modules = LlamaRMSNorm(WIDTH), nn.LayerNorm(WIDTH), nn.GELU()
    assert [kind_of(module, WIDTH) for module in modules] == ["rms", "layer", ""]
