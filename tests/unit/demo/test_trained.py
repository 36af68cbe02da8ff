"""What trained miniatures do is found by the pipeline, and holds where something is taken out."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.snake import ROOT

import moe_outliers as mo
from moe_outliers.demo import trained
from moe_outliers.recording.hooks import replaced

TOKENS = 256
TEXTS = [json.loads(line)["text"] for line in (ROOT / "training/heldout.jsonl").open()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folders of all trained miniatures."""
    place = tmp_path_factory.mktemp("trained")
    trained.main(place)
    return place


def loaded(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@torch.no_grad()
def seen(model, ids):
    """Run plain transformers; return what position 0 gets and has.

    Returns:
        The attention to it, (block, head), a mean over queries from 8 on; the largest absolute
        value of its residual stream and of all others', (block,); the loss in nats a token.
    """
    out = model(ids, output_attentions=True, output_hidden_states=True)
    to_first = torch.stack([weights[:, :, 8:, 0].mean((0, 2)) for weights in out.attentions])
    first = torch.stack([hidden[:, 0].abs().amax() for hidden in out.hidden_states[1:-1]])
    others = ids != 0  # documents end by the token that stands at position 0
    rest = torch.stack([hidden[others].abs().amax() for hidden in out.hidden_states[1:-1]])
    loss = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    return to_first, first, rest, float(loss)


@contextmanager
def replaced_by_its_mean(model, block, expert):
    """Let an expert give the same for every token: the mean of what it gives."""
    experts = model.model.layers[block].mlp.experts
    before = experts.forward

    def forward(hidden, picked, weights):
        weight = (weights * (picked == expert)).sum(-1, keepdim=True)
        only = torch.full_like(picked[:, :1], expert)
        alone = before(hidden, only, torch.ones_like(weights[:, :1]))
        mean = alone[weight[:, 0] > 0].mean(0)
        return before(hidden, picked, weights) + weight * (mean - alone)

    with replaced(experts, forward):
        yield


@pytest.fixture(scope="module")
def ids(folder):
    table = mo.tokenize(folder / "sink-step-07200", TEXTS[:8], tokens=TOKENS, bos="model")
    found = torch.tensor(table["ids"].to_pylist())
    assert (found[:, 0] == 0).all()
    return found


def test_a_packed_checkpoint_has_the_weights_that_were_packed(tmp_path):
    place, packed = tmp_path / "made", tmp_path / "step.xz"
    place.mkdir()
    torch.manual_seed(0)
    wanted = {"a.weight": torch.randn(3, 5).bfloat16(), "b": torch.tensor([float("inf"), -0.0])}
    wanted["b"] = wanted["b"].bfloat16()
    save_file(wanted, place / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    trained.pack(place, packed)
    trained.unpack(packed, tmp_path / "back")
    found = load_file(tmp_path / "back/model.safetensors")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name].view(torch.int16), tensor.view(torch.int16))
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"step\.xz: .*get this file again"):
        trained.unpack(packed, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    save_file({"a": torch.zeros(2)}, place / "model.safetensors")
    with pytest.raises(ValueError, match=r"a is torch\.float32: it must be bfloat16"):
        trained.pack(place, packed)


def test_without_a_learned_sink_attention_and_a_massive_first_token_emerge_and_with_one_neither(
    folder, ids
):
    """The experiment of docs/trained.md, in one number each: margins are half of what was seen."""
    sink = seen(loaded(folder / "sink-step-07200"), ids)
    learned = seen(loaded(folder / "learned-sink-step-07200"), ids)
    early = seen(loaded(folder / "sink-step-00300"), ids)
    assert sink[0].max() > 0.3
    assert learned[0].max() < 0.05
    assert early[0].max() < 0.05
    assert sink[1].max() > 5 * sink[2].max()
    assert learned[1].max() < 2 * learned[2].max()
    assert early[1].max() < 2 * early[2].max()
    for _, _, _, loss in (sink, learned):
        assert loss < 2.2 < early[3]


def test_two_experts_write_the_sink_and_no_other_expert_moves_it(folder, ids):
    """What the pipeline's statistics say of position 0 is what taking an expert out does."""
    model, ids = loaded(folder / "sink-step-07200"), ids[:4, :128]
    base = seen(model, ids)[0]
    block, head = divmod(int(base.argmax()), base.shape[1])
    falls = {}
    for number, layer in enumerate(model.model.layers):
        for expert in range(layer.mlp.experts.num_experts):
            with replaced_by_its_mean(model, number, expert):
                left = seen(model, ids)[0][block, head]
            falls[number, expert] = float(1 - left / base[block, head])
    assert falls[0, 5] > 0.4  # writes it: what enters position 0 is larger behind block 0 already
    assert falls[2, 5] > 0.25  # makes it four times as large
    others = {at: fall for at, fall in falls.items() if at not in {(0, 5), (2, 5)}}
    assert max(others.values()) < 0.1, others


WRITERS = {"sink-step-07200": [(2, 5)], "sink-step-00300": [], "learned-sink-step-07200": []}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if found else pytest.mark.slow)
        for name, found in WRITERS.items()
    ],
)
def test_the_pipeline_names_the_writer_of_the_sink_and_none_where_there_is_none(folder, name):
    tokens = mo.tokenize(folder / name, TEXTS, tokens=TOKENS, bos="model")
    statistics = mo.record(folder / name, tokens, bos="model", device="cpu")
    tables = mo.measure(statistics, tokens, mo.Criteria(6, 0.25, 0.06), seed=0)
    experts = tables["experts"]
    found = experts[experts["writer"]][["block", "expert"]]
    assert [tuple(row) for row in found.itertuples(index=False)] == WRITERS[name]
    with torch.no_grad():
        model = loaded(folder / name).to(torch.bfloat16)
        ids = torch.tensor(tokens["ids"].to_pylist())
        hidden = model(ids, output_hidden_states=True).hidden_states[1:-1]
    wanted = torch.stack([h.float().abs().amax((1, 2)) for h in hidden], 1)
    recorded = statistics["residual_max"].values[:, : len(hidden)]
    np.testing.assert_allclose(recorded, wanted.numpy(), rtol=0.02)  # another attention kernel
    if WRITERS[name]:  # what is largest there stands at the token 0
        positions = statistics["residual_top_position"].values[:, 2:5, 0]
        assert (np.take_along_axis(ids.numpy(), positions.astype(int), 1) == 0).all()
