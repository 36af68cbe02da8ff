import json
import math
import os
import re
import shutil
import struct
import time
from contextlib import closing

import pytest
import torch
from safetensors.torch import save_file
from support import tiny
from support.hub import Fault, Hub
from support.running import hold, remote, stream, taken

from moe_outliers.checkpoint import headers
from moe_outliers.checkpoint.source import Folder
from moe_outliers.engine import streamed
from moe_outliers.engine.loader import Loader


@pytest.fixture
def copy(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint("mixtral"), tmp_path / "copy")


def some_shard(folder):
    """Return the shard with the most tensors, its header and where its data begin."""
    path = max(folder.glob("*.safetensors"), key=lambda path: len(header_of(path)[0]))
    return path, *header_of(path)


def header_of(path):
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), 8 + length


def rewrite(path, header, begin, data=None):
    """Write a shard with another header before its data."""
    data = path.read_bytes()[begin:] if data is None else data
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def tensor_names(header):
    return sorted(
        (name for name in header if name != "__metadata__"),
        key=lambda name: header[name]["data_offsets"],
    )


def outside(path, header, begin):
    name = tensor_names(header)[-1]
    header[name]["data_offsets"] = [n + 64 for n in header[name]["data_offsets"]]


def overlapping(path, header, begin):
    second = tensor_names(header)[1]
    length = header[second]["data_offsets"][1] - header[second]["data_offsets"][0]
    header[second]["data_offsets"] = [0, length]


def misshapen(path, header, begin):
    header[tensor_names(header)[0]]["shape"].append(2)


def retyped(path, header, begin):
    header[tensor_names(header)[0]]["dtype"] = "F32"


def negative(path, header, begin):
    header[tensor_names(header)[0]]["data_offsets"][0] = -2


def renamed(path, header, begin):
    header["model.layers.0.nothing"] = header.pop(tensor_names(header)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (outside, "truncated or its header wrong|leaves a gap"),
        (overlapping, "overlaps its neighbour"),
        (misshapen, "truncated or its header wrong"),
        (retyped, "truncated or its header wrong"),
        (negative, "truncated or its header wrong"),
        (renamed, "lists .*, which no shard holds"),
    ],
)
def test_a_wrong_header_is_refused_with_the_name_of_the_shard_or_tensor(change, message, copy):
    path, header, begin = some_shard(copy)
    change(path, header, begin)
    rewrite(path, header, begin)
    with pytest.raises(ValueError, match=message):
        stream(copy)


@pytest.mark.parametrize("length", [0, 7, 8, 100, -1])
def test_a_truncated_shard_is_refused(length, copy):
    path, _, begin = some_shard(copy)
    data = path.read_bytes()
    path.write_bytes(data[: begin + length] if length == 100 else data[:length])
    with pytest.raises(ValueError, match=rf"{path.name}.*truncated"):
        stream(copy)


@pytest.mark.parametrize("length", [2**63, 10**8 + 1, 10**6])
def test_a_header_that_claims_to_be_longer_than_the_file_is_refused(length, copy):
    path, _, _ = some_shard(copy)
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    with pytest.raises(ValueError, match=f"{path.name}: truncated, or no safetensors"):
        stream(copy)


def test_a_long_header_is_read_whole(copy, monkeypatch):
    wanted = stream(copy)
    monkeypatch.setattr(headers, "HEADER_READ_BYTES", 100)
    assert stream(copy) == wanted


def test_a_flipped_bit_in_the_header_is_refused_or_harmless(copy):
    path, _, begin = some_shard(copy)
    whole, seen = path.read_bytes(), set()
    wanted = headers.read_index(copy)
    for place in range(0, begin, 7):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            found = headers.read_index(copy)
        except ValueError as error:
            seen.add(str(error).split(":")[0])
        else:
            if found.keys() != wanted.keys():  # a name: the model refuses that
                with pytest.raises(ValueError, match=r"lists .*, which no shard holds"):
                    stream(copy, wanted=[0])
                continue
            differ = {name for name in wanted if found[name] != wanted[name]}
            for name in differ:  # a shape of the same size: the model refuses that
                assert math.prod(found[name].shape) == math.prod(wanted[name].shape)
    assert seen


@pytest.mark.fault(79)
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, must be"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"num_hidden_layers": 3}, "missing keys: model.layers.2"),
        ({"num_hidden_layers": 1}, "unexpected keys: model.layers.1"),
        ({"num_local_experts": 3}, r"mlp\.\S+ must be \[3, "),
        ({"hidden_size": 32, "head_dim": 16}, r"must be \["),
        ({"num_hidden_layers": "null"}, "num_hidden_layers is 'null', must be"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok is 5, of 4 experts"),
        ({"vocab_size": [128]}, r"vocab_size is \[128\], must be"),
        ({"rms_norm_eps": "small"}, "can make no model of it: .*rms_norm_eps"),
        ({"hidden_act": "none"}, "can make no model of it: KeyError: 'none'"),
        ({"head_dim": 10**12}, "head_dim is 1000000000000, must be"),
        ({"dtype": "complex64"}, "is not one of bfloat16, float16, float32"),
        ({"dtype": ["bfloat16"]}, "is not one of bfloat16, float16, float32"),
        ({"hidden_act": "\x1b[2J"}, r"config\.json: .*can make no model of it: KeyError"),
        ({"use_cache": "x"}, r"config\.json: .*can make no model of it: .*use_cache"),
        ({"rope_parameters": 5}, r"config\.json: .*can make no model of it"),
        ({"model_type": "vit"}, "no causal language model of model_type 'vit'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised by 'awq'"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_with_the_key_or_tensor(keys, message, copy):
    tiny.change_config(copy, **keys)
    with pytest.raises(ValueError, match=message):
        stream(copy)


@pytest.mark.fault(79)
@pytest.mark.parametrize("key", ["hidden_size", "vocab_size", "num_attention_heads"])
def test_a_size_that_is_null_is_refused_by_its_key(key, copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {key: None}))
    with pytest.raises(ValueError, match=rf"config\.json: .*{key}"):
        stream(copy)


@pytest.mark.fault(87)
@pytest.mark.parametrize(
    ("name", "pattern", "change"),
    [
        ("mixtral", "q_proj", lambda t: t.to(torch.int8)),
        ("mixtral", "q_proj", lambda t: t.to(torch.float8_e4m3fn)),
        ("mixtral", "experts.1.w1", lambda t: t.abs().to(torch.uint16)),
        ("qwen3_moe-fp8", "_scale_inv", lambda t: None),
        ("qwen3_moe-fp8", "_scale_inv", lambda t: t.new_ones(3)),
        ("qwen3_moe-fp8", "_scale_inv", lambda t: t.to(torch.uint8)),
        ("qwen3_moe-fp8", "_scale_inv", lambda t: t.new_ones(3, 1)),
        ("gpt_oss-mxfp4", "_scales", lambda t: t[:, :, :1].contiguous()),
        ("gpt_oss-mxfp4", "_scales", lambda t: t.float()),
        ("gpt_oss-mxfp4", "_blocks", lambda t: t.flatten(2)),
    ],
)
def test_weights_that_are_no_numbers_as_stored_are_refused(
    name, pattern, change, tiny_checkpoint, tmp_path
):
    folder, changed = shutil.copytree(tiny_checkpoint(name), tmp_path / "copy"), {}
    for key, value in tiny.tensors(folder).items():
        new = change(value) if pattern in key else value
        changed |= {} if new is None else {key: new}
    tiny.write(folder, changed)
    with pytest.raises(ValueError, match=r"copy: \S+ is stored as .*: these are no weights"):
        stream(folder)


def test_a_whole_file_goes_before_an_index_as_with_transformers(copy):
    save_file({k: 2 * v for k, v in tiny.tensors(copy).items()}, copy / headers.SINGLE)
    assert stream(copy, wanted=[0]) == hold(copy, wanted=[0])


@pytest.mark.fault(77)
@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"layers\.1\.", "missing keys: model.layers.1"),
        (r"layers\.1\..*experts\.2\.w1", r"gate_up_proj .* without a gap"),
        (r"embed_tokens", "missing keys: model.embed_tokens.weight"),
        (r"^lm_head", "missing keys: lm_head.weight"),
    ],
)
def test_a_missing_tensor_is_refused_by_its_name(pattern, message, copy):
    found = {n: t for n, t in tiny.tensors(copy).items() if not re.search(pattern, n)}
    tiny.write(copy, found)
    with pytest.raises(ValueError, match=message):
        stream(copy)


def test_a_surplus_tensor_is_refused_by_its_name(copy):
    tiny.write(copy, tiny.tensors(copy) | {"model.layers.0.extra.weight": torch.ones(2)})
    with pytest.raises(ValueError, match=r"unexpected keys: model\.layers\.0\.extra\.weight"):
        stream(copy)


@pytest.mark.fault(77)
def test_a_missing_shard_is_refused_by_its_name(copy):
    path, _, _ = some_shard(copy)
    path.unlink()
    with pytest.raises(ValueError, match=f"the shard {path.name} of .* is missing"):
        stream(copy)


@pytest.mark.parametrize("how", ["content", "replaced", "removed", "truncated"])
def test_a_shard_that_changes_while_it_is_read_ends_the_sweep_without_a_result(how, copy):
    path, _, _ = some_shard(copy)

    def change():
        if how == "content":
            with path.open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"x")
        elif how == "replaced":
            shutil.copy(path, copy / "new")
            (copy / "new").replace(path)
        elif how == "removed":
            path.unlink(missing_ok=True)
        else:
            os.truncate(path, 100)

    with closing(Folder(copy, headers.shards(copy))) as source:
        engine = streamed.Streamed(source, device="cpu", dtype="auto")
        handle = engine.model.model.layers[0].register_forward_hook(lambda *_: change())
        with pytest.raises(ValueError, match=r"was changed|was truncated"):
            taken(engine.model, lambda *args, **how: _first(engine.run(*args, **how), handle))


def test_an_interruption_does_not_wait_for_a_shard_that_is_on_its_way(copy, tmp_path):
    with Hub() as server, closing(remote(copy, server, tmp_path)) as source:
        engine = streamed.Streamed(source, device="cpu", dtype="auto")
        source._ranges.patience_s = 60
        server.faults.append(Fault("stall", "safetensors", times=99))
        source.expect([layout.group.shards for layout in engine.layouts])
        slots = [torch.empty(engine.layouts[0].slot_bytes, dtype=torch.uint8)]
        how = {"first": 0, "readers": 2, "chunk_bytes": 1000}
        loader = Loader(source, engine.layouts, slots, **how)
        while not server.faults[0].fired:
            time.sleep(0.01)
        started = time.monotonic()
        loader.__exit__(KeyboardInterrupt)
    assert time.monotonic() - started < 15


def _first(rows, handle):
    for row in rows:
        handle.remove()
        yield row
