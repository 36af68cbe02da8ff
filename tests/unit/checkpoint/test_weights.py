"""Weights of a checkpoint become what transformers, or the definition of a format, makes of it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import layouts, tiny
from support.running import hold, loaded, stream, weights
from transformers import AutoConfig, AutoModelForCausalLM

from moe_outliers.checkpoint import headers
from moe_outliers.engine import dequantise

E4M3 = torch.float8_e4m3fn


def by_hand(values, scales, block):
    """Dequantise by the definition: the value at (i, j) times the scale of its block."""
    out = torch.empty(values.shape)
    for i, row in enumerate(values.float().tolist()):
        for j, value in enumerate(row):
            out[i, j] = torch.tensor(value) * scales[i // block[0], j // block[1]]
    return out


@pytest.mark.parametrize(
    ("shape", "block"),
    [((64, 32), (40, 32)), ((192, 128), (128, 128)), ((66, 70), (16, 32)), ((5, 7), (128, 128)),
     ((48, 64), (16, 32)), ((7, 96), (1, 32)), ((96, 5), (40, 1))],
)  # fmt: skip
@pytest.mark.parametrize("part", [1 << 26, 200])
def test_fp8_blocks_have_the_size_that_is_stated_and_the_last_may_be_smaller(
    shape, block, part, monkeypatch
):
    monkeypatch.setattr(dequantise, "PART_ELEMENTS", part)
    random = torch.Generator().manual_seed(0)
    values = (torch.randn(shape, generator=random) * 20).to(E4M3)
    grid = [-(-n // m) for n, m in zip(shape, block, strict=True)]
    scales = torch.rand(grid, generator=random) + 0.1
    wanted, found = by_hand(values, scales, block), torch.empty(shape)
    dequantise.fp8(values, scales, block, found)
    assert torch.equal(found, wanted)
    assert torch.equal(by_hand(values, scales.double(), block).float(), wanted)
    exponents = torch.randint(100, 140, grid, generator=random, dtype=torch.uint8)
    dequantise.fp8(values, exponents, block, found)
    assert torch.equal(found, by_hand(values, torch.exp2(exponents.double() - 127), block))


def quantised(folder, block, scales_of, more=None, values=None):
    """Store every projection as FP8; return the same checkpoint with the weights written out."""
    plain = shutil.copytree(folder, folder.with_name("plain"))
    found, out, made = tiny.tensors(folder), {}, {}
    random = torch.Generator().manual_seed(1)
    for key, value in found.items():
        made[key] = out[key] = value
        if key.endswith("_proj.weight"):
            out[key] = (value.float() * 20).to(E4M3)
            rows, columns = value.shape
            size = block or (rows, columns)
            scales = torch.rand([-(-rows // size[0]), -(-columns // size[1])], generator=random)
            scales = scales / 20 + 0.01
            made[key] = by_hand(out[key], scales, size).to(value.dtype)
            out |= scales_of(key, scales)
    tiny.write(folder, out)
    tiny.write(plain, made)
    stated = {"quant_method": "fp8", "weight_block_size": list(block) if block else None}
    tiny.change_config(folder, quantization_config=stated | (more or {}))
    if block is None:  # `change_config` takes null for: remove it
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"]["weight_block_size"] = None
        (folder / "config.json").write_text(json.dumps(config))
    return plain


@pytest.fixture
def copy(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint("qwen3_moe"), tmp_path / "copy")


def inverse(key, scales):
    return {f"{key}_scale_inv": scales}


BESIDE = {"activation_scheme": "static"}
FORMS = {
    "blocks": ((16, 32), inverse, None),
    "one scale a weight": (None, lambda k, s: inverse(k, s.reshape(())), None),
    "one scale a row": ((1, 128), inverse, None),
    "activations' scales": (
        (16, 32),
        lambda k, s: inverse(k, s) | {k.replace("weight", "activation_scale"): torch.tensor(3.0)},
        BESIDE,
    ),
    "scales of another name": (
        (16, 32), lambda k, s: {k.replace(".weight", ".scale"): s}, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_fp8_is_read_in_every_form_that_transformers_reads(form, copy):
    plain = quantised(copy, *FORMS[form])
    assert stream(copy) == hold(plain)
    assert hold(copy) == hold(plain)


@pytest.mark.parametrize("block", [(40, 32), (24, 24), (48, 48)])
def test_fp8_with_smaller_last_blocks_is_right_streamed_and_refused_resident(block, copy):
    """64 by 64 in blocks of 40: transformers would let the second scale begin at row 32."""
    plain = quantised(copy, block, inverse)
    assert stream(copy) == hold(plain)
    with pytest.raises(ValueError, match=r"blocks that do not divide .* evenly.*engine=streamed"):
        hold(copy)


@pytest.mark.parametrize(
    ("stated", "message"),
    [([32, 32], "names 32 by 32, which makes"), (None, "names none"), ([16], "two whole numbers"),
     ([0, 16], "two whole numbers"), ("16", "two whole numbers"), ([16, True], "two whole")],
)  # fmt: skip
def test_fp8_whose_scales_are_not_those_of_the_stated_blocks_is_refused(stated, message, copy):
    quantised(copy, (16, 32), inverse)
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"]["weight_block_size"] = stated
    (copy / "config.json").write_text(json.dumps(config))
    for run in (stream, hold):
        with pytest.raises(ValueError, match=message):
            run(copy)


def test_fp8_without_a_stated_block_size_has_that_of_transformers(copy):
    plain = quantised(copy, (128, 128), inverse)
    config = json.loads((copy / "config.json").read_text())
    del config["quantization_config"]["weight_block_size"]
    (copy / "config.json").write_text(json.dumps(config))
    assert stream(copy) == hold(plain)


@pytest.mark.parametrize("said", [{}, {"group_size": 64, "bits": 4}, "awq", {"quant_method": 3}])
def test_a_quantisation_without_a_known_name_is_refused_in_words(said, copy):
    tiny.change_config(copy, quantization_config=said)
    with pytest.raises(ValueError, match=r"weights quantised (in a way that|by 'awq'|by 3)"):
        stream(copy)


@pytest.mark.parametrize(("name", "new"), [("qwen3_moe", 30), ("mixtral", 4), ("mixtral", 9)])
def test_experts_with_a_number_left_out_are_refused(name, new, tiny_checkpoint, tmp_path):
    """Numbered anew, as transformers does it, they would not be those that the router means."""
    folder = shutil.copytree(tiny_checkpoint(name), tmp_path / "copy")
    found = tiny.tensors(folder).items()
    tiny.write(folder, {k.replace(".experts.1.", f".experts.{new}."): v for k, v in found})
    for run in (stream, hold):
        with pytest.raises(ValueError, match=r"not numbered from 0 on without a gap"):
            run(folder)


SMALL = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
    "vocab_size": 128, "intermediate_size": 64, "moe_intermediate_size": 32, "num_experts": 8,
    "num_experts_per_token": 2, "num_experts_per_tok": 2, "kv_lora_rank": 16, "q_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "head_dim": 16,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 512,
    "num_expert_group": 1, "topk_group": 1, "n_routed_experts": 8, "n_head": 4, "n_embd": 64,
    "n_layer": 2, "n_positions": 64,
}  # fmt: skip
FEW = {"linear_head_dim": 16, "linear_num_heads": 4}
TYPES = {
    "gpt2": {},
    "axk1": {"head_dim": 8, "first_k_dense_replace": 1},
    "kimi_linear": FEW,
    "bailing_hybrid": {"head_dim": 8, "qk_head_dim": 24},
    "olmo_hybrid": {
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
    "inkling2_text": {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2,
                      "swa_head_dim": 16},
    "deepseek_v4": {
        "index_n_heads": 4, "index_head_dim": 16, "o_groups": 2, "o_lora_rank": 16,
        "sliding_window": 16,
    },
}  # fmt: skip
"""Types whose weights transformers converts, renames in a chain, or whose patterns go too far."""


@pytest.mark.parametrize("kind", TYPES)
def test_weights_are_converted_as_transformers_converts_them(kind, tmp_path):
    config = AutoConfig.for_model(kind)
    known = config.to_dict().keys() | type(config).attribute_map.keys()
    config = AutoConfig.for_model(
        kind, **{k: v for k, v in (SMALL | TYPES[kind]).items() if k in known}
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    wanted, found = loaded(tmp_path), weights(tmp_path)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def test_what_a_class_ignores_is_no_layer_of_the_model(tmp_path):
    """Glm4Moe ignores layers 46 and 92, the extra ones of two models: here 46 is one of the 92."""
    sizes = tiny._COMMON | tiny.FAMILIES["glm4_moe"] | {"num_hidden_layers": 92}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("glm4_moe", **sizes | {"n_routed_experts": 4}), dtype=torch.bfloat16
    )
    model.save_pretrained(tmp_path)
    more = {"model.layers.92.enorm.weight": torch.ones(64, dtype=torch.bfloat16)}
    tiny.write(tmp_path, tiny.tensors(tmp_path) | more)
    wanted, found = loaded(tmp_path), weights(tmp_path)
    assert any(name.startswith("model.layers.46.") for name in found)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("held", ["lm_head.weight", "model.embed_tokens.weight"])
def test_tied_weights_are_stored_once_under_either_name(held, copy):
    found = tiny.tensors(copy)
    both = {"lm_head.weight", "model.embed_tokens.weight"}
    tiny.write(copy, {k: v for k, v in found.items() if k == held or k not in both})
    tiny.change_config(copy, tie_word_embeddings=True)
    assert stream(copy) == hold(copy)
    tiny.write(copy, found | {name: found[held].clone() for name in both})
    both_stored = stream(copy)
    tiny.write(copy, {k: v for k, v in found.items() if k == held or k not in both})
    assert stream(copy) == both_stored


@pytest.mark.parametrize("family", ["qwen3_next", "glm4_moe"])
def test_the_index_may_list_what_no_shard_holds_if_the_model_ignores_it(
    family, tiny_checkpoint, tmp_path
):
    folder = shutil.copytree(tiny_checkpoint(family), tmp_path / "copy")
    extra = {"qwen3_next": "mtp.fc.weight", "glm4_moe": "model.layers.46.eh_proj.weight"}[family]
    wanted = stream(folder)
    path = folder / headers.INDEX
    index = json.loads(path.read_text())
    shard = next(iter(index["weight_map"].values()))
    index["weight_map"][extra] = shard
    path.write_text(json.dumps(index))
    assert stream(folder) == wanted
    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    save_file(load_file(folder / shard) | more, folder / shard, metadata={"format": "pt"})
    assert stream(folder) == hold(folder) == wanted
    gone = load_file(folder / shard)
    gone.pop("lm_head.weight", None)
    gone.pop(lost := next(name for name in gone if name.startswith("model.layers.0.")))
    save_file(gone, folder / shard, metadata={"format": "pt"})
    for run in (stream, hold):
        with pytest.raises(ValueError, match=rf"{lost}|lists .*, which no shard holds"):
            run(folder)


def test_one_shard_needs_no_index(copy):
    wanted = stream(copy)
    found = tiny.tensors(copy)
    for path in copy.glob("*.safetensors*"):
        path.unlink()
    save_file(found, copy / headers.ONLY, metadata={"format": "pt"})
    assert stream(copy) == hold(copy) == wanted
    (copy / headers.ONLY).rename(copy / "model-00001-of-00002.safetensors")
    with pytest.raises(ValueError, match=r"neither model\.safetensors nor .* fetch the index too"):
        stream(copy)


def test_a_stray_whole_file_is_named_as_what_was_read(copy):
    save_file({"model.norm.weight": torch.ones(64, dtype=torch.bfloat16)}, copy / headers.SINGLE)
    for run in (stream, hold):
        with pytest.raises(ValueError, match=r"model\.safetensors is there: .* shards of .* not"):
            run(copy)


def test_the_layout_of_mistral_is_told_apart(copy):
    for path in copy.glob("*.safetensors*"):
        path.unlink()
    save_file({"tok_embeddings.weight": torch.ones(3)}, copy / "consolidated.safetensors")
    for run in (stream, hold):
        with pytest.raises(ValueError, match=r"consolidated\.safetensors is in Mistral's own"):
            run(copy)


@pytest.mark.parametrize("said", ["torch.bfloat16", "auto", "float64", 16])
def test_a_dtype_that_cannot_be_computed_with_is_refused_by_both_engines(said, copy):
    tiny.change_config(copy, dtype=said)
    for run in (stream, hold):
        with pytest.raises(ValueError, match=r"dtype .* is not one of bfloat16, float16, float32"):
            run(copy)


@pytest.mark.parametrize("name", ["gpt_oss", "gpt_oss-mxfp4", "qwen3_next"])
def test_what_transformers_keeps_wide_in_float16_is_wide(name, tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint(name), tmp_path / "copy")
    found = tiny.tensors(folder).items()
    tiny.write(folder, {k: v.half() if v.dtype == torch.bfloat16 else v for k, v in found})
    tiny.change_config(folder, dtype="float16")
    found = weights(folder)
    assert (found["model.norm.weight"].dtype == torch.float32) == name.startswith("gpt_oss")
    if "mxfp4" not in name:
        wanted = loaded(folder)
        assert {k: v.dtype for k, v in found.items()} == {k: v.dtype for k, v in wanted.items()}
        assert stream(folder) == hold(folder)


RUN = ("olmoe", "gpt_oss", "qwen3", "mixtral", "qwen3_next", "phi")
"""Layouts of families that both engines run, of few layers."""


@pytest.mark.parametrize("name", layouts.LAYOUTS)
def test_the_layouts_of_the_hub_are_read_as_transformers_reads_them(name, tmp_path):
    layouts.LAYOUTS[name](tmp_path)
    found = weights(tmp_path)
    if name == "deepseek":  # transformers reads partial blocks wrongly
        stored, wanted = tiny.tensors(tmp_path), {}
        for key, value in stored.items():
            scales = stored.get(f"{key}_scale_inv")
            wanted[key] = value if scales is None else by_hand(value, scales, (16, 16)).bfloat16()
        first = [wanted[f"model.layers.1.mlp.experts.{e}.down_proj.weight"] for e in range(8)]
        assert torch.equal(found["model.layers.1.mlp.experts.down_proj"], torch.stack(first))
        same = [key for key in found if ".experts." not in key]
        assert all(torch.equal(found[key], wanted[key]) for key in same)
        assert not any("61" in key for key in found)
    elif name == "gpt_oss":
        plain = tiny.dequantised(tmp_path, tmp_path.with_name("plain"), torch.bfloat16)
        wanted = loaded(plain)
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    else:
        wanted = loaded(tmp_path)
        assert found.keys() == wanted.keys()
        assert all(found[key].dtype == wanted[key].dtype for key in wanted)
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    if name == "olmoe":
        assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    if name in RUN:
        assert stream(tmp_path) == hold(tmp_path)
