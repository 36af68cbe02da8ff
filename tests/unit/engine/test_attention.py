import pytest
import torch
import transformers
from torch import nn

from moe_outliers.engine import attention


def reference(query, key, value, *, sinks, scaling, window):
    """Attend in float64, by the definition."""
    groups, positions = query.shape[1] // key.shape[1], query.shape[2]
    query, key, value = (part.double() for part in (query, key, value))
    key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
    place = torch.arange(positions)
    distance = place[:, None] - place
    seen = (distance >= 0) & (distance < (window or positions))
    scores = (query @ key.transpose(2, 3) * scaling).masked_fill(~seen, float("-inf"))
    column = sinks.double()[:, None, None].expand(*scores.shape[:3], 1)
    weights = torch.cat([scores, column], -1).softmax(-1)[..., :-1]
    return (weights @ value).transpose(1, 2)


def draw(positions, dtype=torch.float32):
    random = torch.Generator().manual_seed(0)
    query = torch.randn((2, 8, positions, 16), generator=random)
    key, value = (torch.randn((2, 2, positions, 16), generator=random) for _ in range(2))
    sinks = torch.tensor([-100.0, -2.0, 0.0, 1.0, 2.0, 5.0, 30.0, 100.0])
    return [part.to(dtype) for part in (query, key, value, sinks)]


@pytest.mark.parametrize("window", [None, 1, 16, 300])
@pytest.mark.parametrize("positions", [1, 5, 100])
def test_sinks_on_the_flash_kernel_are_those_of_the_definition(positions, window):
    query, key, value, sinks = draw(positions)
    out, weights = attention.sink_flash(
        None, query, key, value, None, scaling=0.25, s_aux=sinks, sliding_window=window
    )
    assert weights is None
    wanted = reference(query, key, value, sinks=sinks, scaling=0.25, window=window)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-6)


def test_a_model_with_sinks_is_the_same_as_with_eager_attention(tiny_checkpoint):
    transformers.AttentionInterface.register(attention.SINK_FLASH, attention.sink_flash)
    ids = torch.arange(64).view(1, -1)
    found = []
    for name in ("eager", attention.SINK_FLASH):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            tiny_checkpoint("gpt_oss"), dtype=torch.float32, attn_implementation=name
        )
        for layer in model.model.layers:
            nn.init.normal_(layer.self_attn.sinks, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            found.append(model(ids).logits)
    assert not torch.equal(*found)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_it_is_used_for_sinks_on_a_gpu_alone_and_takes_no_mask():
    assert attention.implementation("gpt_oss", "cuda") == attention.SINK_FLASH
    assert attention.implementation("gpt_oss", "cpu") is None
    assert attention.implementation("mixtral", "cuda") is None
    query, key, value, sinks = draw(4)
    with pytest.raises(ValueError, match="takes no mask"):
        attention.sink_flash(None, query, key, value, query, scaling=1.0, s_aux=sinks)
