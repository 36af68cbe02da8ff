"""Weights of a checkpoint become what transformers, or the definition of a format, makes of it."""

import json
import shutil

import pytest
import tiny
import torch
from running import hold, stream

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
