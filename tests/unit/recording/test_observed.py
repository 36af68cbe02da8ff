"""What is observed of models, and the oracles that prove it while they run."""

import dataclasses
import re

import pytest
import torch
import transformers
from support import running, tiny, zoo
from support.proofs import prove
from support.unplugged import HouseConfig, HouseForCausalLM
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from moe_outliers.recording import observed
from moe_outliers.recording.anatomy import Place
from moe_outliers.recording.observed import observe
from moe_outliers.recording.oracles import NotAsObservedError, Oracles
from moe_outliers.recording.tracing import exceptions


def house(trick=""):
    torch.manual_seed(0)
    return zoo.shaken(HouseForCausalLM(HouseConfig(trick=trick)).eval())


def test_a_model_with_names_of_its_own_is_measured_right():
    model = house()
    anatomy = observe(model)
    assert not anatomy.unsure
    assert [block.module for block in anatomy.blocks] == [f"floors.floor {n}" for n in range(3)]
    assert {block.additive for block in anatomy.blocks} == {""}
    first, second = anatomy.sites_of(0)
    assert (first.kind, first.norm, first.mixer) == ("attn_in", "floors.floor 0.a", "attention")
    assert (second.kind, second.norm, second.mixer) == ("mlp_in", "floors.floor 0.b", "moe")
    assert [(r.parameter.rpartition("office.")[2], r.axis, r.kind) for r in second.readers] == [
        ("usher.ask.weight", 1, "router"),
        ("clerks.desk", 1, "routed"),
        ("boss.weight", 1, "shared"),
    ]
    routing = anatomy.routings[0]
    assert (routing.router, routing.experts) == (
        "floors.floor 0.office.usher",
        "floors.floor 0.office.clerks",
    )
    assert (routing.choices, routing.count, routing.top_k) == (8, 8, 2)
    assert routing.sorted_by == ("sigmoid", "+floors.floor 0.office.usher.fair")
    assert (anatomy.last_norm, anatomy.head) == ("roof", "speak")
    assert anatomy.after_head == ("div", "tanh", "mul")
    prove(model, anatomy)
    oracles = Oracles(model, anatomy)
    zoo.run(model)
    oracles.finish()
    assert not oracles.unchecked


def test_watching_changes_neither_the_model_nor_transformers():
    model = house()
    masks = dict(transformers.masking_utils.ALL_MASK_ATTENTION_FUNCTIONS)
    before = (model.config.to_dict(), {n: p.clone() for n, p in model.named_parameters()})
    observe(model)
    assert model.config.to_dict() == before[0]
    assert all(torch.equal(p, before[1][n]) for n, p in model.named_parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert dict(transformers.masking_utils.ALL_MASK_ATTENTION_FUNCTIONS) == masks


def test_it_does_not_matter_where_the_weights_are():
    with torch.device("meta"):
        outline = HouseForCausalLM(HouseConfig())
    assert observe(outline) == observe(house())


@pytest.mark.parametrize("engine", ["eager", "sdpa"])
def test_how_attention_and_experts_are_computed_does_not_matter(engine):
    model = zoo.build("qwen3_moe")
    model.set_attn_implementation(engine)
    model.set_experts_implementation("eager")
    assert observe(model) == observe(zoo.outline("qwen3_moe"))


# -- what is not understood is said ----------------------------------------------------------------


def test_a_norm_that_is_no_module_is_not_taken_for_the_stream():
    anatomy = observe(house("inline"))
    site = anatomy.sites_of(1)[1]
    assert (site.kind, site.source, site.norm) == ("mlp_in", "computed", "")
    assert any("block 1 mlp_in" in said and "no norm module" in said for said in anatomy.unsure)


def test_a_writer_without_a_linear_map_is_said():
    anatomy = observe(house("writer"))
    assert all("the stream goes through" in block.additive for block in anatomy.blocks)


def test_a_mixer_that_nobody_expects_is_a_site():
    model = house("attic")
    anatomy = observe(model)
    site = anatomy.sites_of(0)[2]
    assert (site.kind, site.source, site.mixer) == ("mlp_in", "stream", "mlp")
    assert [mixer.module for mixer in site.mixers] == ["floors.floor 0.attic"]
    prove(model, anatomy)


def test_a_linear_map_without_a_parameter_is_an_unknown_reader():
    site = observe(house("hidden")).sites_of(0)[2]
    assert site.unknown
    assert not site.readers


class Round(HouseForCausalLM):
    """Runs its blocks twice."""

    def forward(self, input_ids, use_cache=False):
        floors = list(self.floors.values())
        up = self.words(input_ids)
        hush = torch.zeros(input_ids.shape[1], input_ids.shape[1], device=up.device)
        for floor in [*floors, *floors]:
            up = floor(up=up, hush=hush)["up"]
        return CausalLMOutput(logits=self.speak(self.roof(up)))


class Shared(HouseForCausalLM):
    """Has one norm for all of its blocks."""

    def __init__(self, config):
        super().__init__(config)
        for floor in self.floors.values():
            floor.a = self.floors["floor 0"].a


class Bungalow(HouseForCausalLM):
    """Has no list of blocks."""

    def __init__(self, config):
        super().__init__(config)
        self.floor, self.floors = self.floors["floor 0"], None

    def forward(self, input_ids, use_cache=False):
        hush = torch.zeros(input_ids.shape[1], input_ids.shape[1], device=input_ids.device)
        up = self.floor(up=self.words(input_ids), hush=hush)["up"]
        return CausalLMOutput(logits=self.speak(self.roof(up)))


class Parted(HouseForCausalLM):
    """Does not say what embeds its ids."""

    def get_input_embeddings(self):
        raise NotImplementedError


class Quiet(HouseForCausalLM):
    """Returns logits that do not depend on its blocks."""

    def forward(self, input_ids, use_cache=False):
        super().forward(input_ids)
        return CausalLMOutput(logits=torch.zeros(1, input_ids.shape[1], 128))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Round, "floors.floor 0 runs more than once in a forward pass"),
        (Shared, "floors.floor 0.a runs 3 times in a forward pass"),
        (Bungalow, "it has no list of modules that could be its decoder blocks"),
        (Parted, "it does not say what embeds its token ids"),
        (Quiet, "it returns no logits that are made of its residual stream"),
    ],
)
def test_what_cannot_be_measured_is_refused(kind, said):
    with pytest.raises(
        ValueError, match=re.escape(f"house ({kind.__name__}) cannot be measured: {said}")
    ):
        observe(kind(HouseConfig()))


# -- what lists of names got wrong -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "norm", "mixer"),
    [
        ("afmoe", "pre_mlp_layernorm", "moe"),
        ("beam", "pre_feedforward_layernorm", "moe"),
        ("gemma2", "pre_feedforward_layernorm", "mlp"),
        ("gemma3_text", "pre_feedforward_layernorm", "mlp"),
        ("jetmoe", "post_attention_layernorm", "moe"),
    ],
)
def test_the_norm_behind_attention_is_not_taken_for_the_one_before_the_mlp(name, norm, mixer):
    anatomy = observe(zoo.outline(name))
    site = anatomy.sites_of(len(anatomy.blocks) - 1)[1]
    assert (site.kind, site.norm.rpartition(".")[2], site.mixer) == ("mlp_in", norm, mixer)
    kinds = {reader.kind for reader in site.readers}
    assert kinds >= ({"router", "routed"} if mixer == "moe" else {"mixer"})


def test_windows_that_are_holes_in_a_buffer_need_the_exception(monkeypatch):
    model = zoo.outline("gpt_neo")
    kinds = [site.mixer for site in observe(model).sites if site.kind == "attn_in"]
    assert kinds == ["attention", "sliding_attention"] * 2
    monkeypatch.delitem(exceptions.WINDOWED, "gpt_neo")
    monkeypatch.setattr(observed, "_known", {})
    assert {s.mixer for s in observe(model).sites if s.kind == "attn_in"} == {"attention"}


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("llama", (), ()),
        ("minicpm3", ("mul",), ()),
        ("cohere", (), ("mul",)),
        ("gemma2", (), ("div", "tanh", "mul")),
        ("modernbert-decoder", ("linear", "gelu", "layer_norm"), ()),
    ],
)
def test_what_happens_to_the_logits_is_known(name, before, after):
    anatomy = observe(zoo.outline(name))
    assert (anatomy.before_head, anatomy.after_head) == (before, after)


@pytest.mark.parametrize(
    ("name", "key", "source"),
    [
        ("glm_moe_dsa", "prev_topk_indices", Place("model.layers.2", "output", (1,))),
        ("zaya", 1, Place("model.layers.2", "output", (1,))),
        ("inkling2_text", 1, None),  # made of what several blocks returned
    ],
)
def test_what_blocks_hand_on_beside_the_stream_is_known(name, key, source):
    anatomy = observe(zoo.outline(name))
    late = [argument for argument in anatomy.blocks[3].arguments if argument.since >= 0]
    assert [(argument.key, argument.source) for argument in late] == [((key,), source)]
    assert not any(argument.since >= 0 for argument in anatomy.blocks[0].arguments)


# -- the oracles ----------------------------------------------------------------------------------


def proven(model, anatomy):
    oracles = Oracles(model, anatomy)
    try:
        zoo.run(model)
        oracles.finish()
    finally:
        oracles.close()
    return oracles


@pytest.mark.parametrize("name", zoo.FAST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_was_observed_passes_the_oracles(name, dtype):
    model = zoo.build(name, dtype)
    proven(model, observe(model))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def with_site(anatomy, number, **changes):
    sites = list(anatomy.sites)
    sites[number] = dataclasses.replace(sites[number], **changes)
    return dataclasses.replace(anatomy, sites=tuple(sites))


def with_routing(anatomy, **changes):
    first = dataclasses.replace(anatomy.routings[0], **changes)
    return dataclasses.replace(anatomy, routings=(first, *anatomy.routings[1:]))


def norm_behind(anatomy):
    name = "model.layers.0.post_attention_layernorm"
    return with_site(anatomy, 1, norm=name, norm_reads=Place(name, "input", (0,)))


def no_mlp(anatomy):
    return dataclasses.replace(
        anatomy, sites=tuple(s for s in anatomy.sites if s.kind == "attn_in")
    )


def no_attention(anatomy):
    return dataclasses.replace(anatomy, sites=tuple(s for s in anatomy.sites if s.kind == "mlp_in"))


def other_mixer(anatomy):
    down = "model.layers.0.mlp.down_proj"
    mixer = dataclasses.replace(
        anatomy.sites[1].mixers[0], module=down, enters=Place(down, "input", (0,))
    )
    return with_site(anatomy, 1, mixers=(mixer,))


def wrong_argument(anatomy):
    mixer = dataclasses.replace(
        anatomy.sites[0].mixers[0], enters=Place("model.layers.0.self_attn", "input", ("gone",))
    )
    return with_site(anatomy, 0, mixers=(mixer,))


@pytest.mark.parametrize(
    ("wrong", "module", "said"),
    [
        (norm_behind, "model.layers.0.mlp", "does not receive what"),
        (no_mlp, "model.layers.0", "something in it that was not observed writes"),
        (no_attention, "model.layers.0", "something in it that was not observed writes"),
        (other_mixer, "model.layers.0.mlp.down_proj", "does not receive what"),
        (wrong_argument, "model.layers.0.self_attn", "no tensor at input"),
    ],
)
def test_a_wrong_site_is_caught(wrong, module, said):
    model = zoo.build("gemma2")
    with pytest.raises(NotAsObservedError, match=f"^{re.escape(module)}: {said}"):
        proven(model, wrong(observe(model)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"top_k": 3}, "picks"),
        ({"choices": 7}, "has logits|is not there"),
        ({"logits": Place("model.layers.1.mlp.gate", "output", (1,))}, "has logits"),
        ({"picked": Place("model.layers.1.mlp.gate", "output", (1,))}, "picks"),
        ({"weights": Place("model.layers.1.mlp.gate", "output", (0,))}, "weighs"),
        ({"picked": Place("model.layers.1.mlp.act", "output", (2,))}, "did not run"),
    ],
)
def test_a_wrong_router_is_caught(changes, said):
    model = zoo.build("deepseek_v3")
    with torch.no_grad():
        model.model.layers[1].mlp.gate.e_score_correction_bias.uniform_(-1, 1)
    model.model.layers[1].mlp.act = nn.Identity()
    with pytest.raises(NotAsObservedError, match=said):
        proven(model, with_routing(observe(model), **changes))


def test_a_wrong_order_of_experts_is_caught():
    model = zoo.build("ernie4_5_moe")
    for layer in model.model.layers[1:]:
        torch.nn.init.uniform_(layer.mlp.gate.moe_statics.e_score_correction_bias, -1, 1)
    anatomy = observe(model)
    assert [step[0] for step in anatomy.routings[0].sorted_by] == ["s", "+"]
    with pytest.raises(NotAsObservedError, match="does not pick the largest scores"):
        proven(model, with_routing(anatomy, sorted_by=("softmax",)))


def test_a_norm_that_does_something_else_with_real_weights_is_caught():
    model = zoo.build("qwen3")
    anatomy = observe(model)
    norm = model.model.layers[0].input_layernorm
    plain = norm.forward
    norm.forward = lambda h: plain(h) + 0.01 * h
    with pytest.raises(NotAsObservedError, match="input_layernorm: does not return gain"):
        proven(model, anatomy)


def test_a_writer_that_was_not_there_when_it_was_observed_is_caught():
    model = zoo.build("granite")  # its stream is scaled: that alone is no reason
    anatomy = observe(model)
    proven(model, anatomy)
    layer = model.model.layers[0]
    plain = layer.forward
    layer.forward = lambda h, *args, **kwargs: plain(h, *args, **kwargs) + 0.01 * h.roll(1, -1)
    with pytest.raises(NotAsObservedError, match=r"^model\.layers\.0: something in it"):
        proven(model, anatomy)


def test_a_block_that_never_runs_is_caught():
    model = zoo.build("qwen3")
    oracles = Oracles(model, observe(model))
    with pytest.raises(NotAsObservedError, match=r"^model\.layers\.0: never ran"):
        oracles.finish()


@pytest.mark.parametrize("name", ["gpt_oss", "phimoe"])
@pytest.mark.parametrize("engine", [running.stream, running.hold])
def test_the_oracles_watch_both_engines_and_change_nothing(name, engine, tmp_path, monkeypatch):
    folder = tiny.make(name, tmp_path / name)
    plain = engine(folder)
    finished = []

    def watched(model, run, **how):
        oracles = Oracles(model, observe(model))

        def both(*args, **kwargs):
            yield from run(*args, **kwargs)
            oracles.finish()
            finished.append(oracles)

        return taken(model, both, **how)

    taken = running.taken
    monkeypatch.setattr(running, "taken", watched)
    assert engine(folder) == plain
    assert not finished[0].unchecked
