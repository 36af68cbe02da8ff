"""A checkpoint that is not what it says is refused before any number is computed."""

import json
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_outliers.checkpoint import headers
from moe_outliers.demo.miniatures import MINIATURES, PHIMOE, build
from moe_outliers.engine import resident


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "mini-qwen3"
    build("mini-qwen3", MINIATURES["mini-qwen3"], folder)
    return folder


@pytest.fixture
def broken(original, tmp_path):
    """A copy to break."""
    shutil.copytree(original, tmp_path / "broken")
    return tmp_path / "broken"


def _first(folder):
    return sorted(folder.glob("*.safetensors"))[0]


def _edit(folder, change):
    """Change the tensors of the first shard, and the index with them."""
    shard = _first(folder)
    tensors = load_file(shard)
    change(tensors)
    save_file(tensors, shard, metadata={"format": "pt"})
    index = json.loads((folder / headers.INDEX).read_text())
    others = {k: v for k, v in index["weight_map"].items() if v != shard.name}
    index["weight_map"] = others | dict.fromkeys(tensors, shard.name)
    (folder / headers.INDEX).write_text(json.dumps(index))


def _config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _drop(tensors):
    del tensors["model.layers.0.input_layernorm.weight"]


def _add(tensors):
    tensors["model.layers.0.surprise.weight"] = torch.zeros(3)


def _reshape(tensors):
    name = "model.layers.0.input_layernorm.weight"
    tensors[name] = torch.cat([tensors[name], tensors[name]])


def _truncate(folder):
    data = _first(folder).read_bytes()
    _first(folder).write_bytes(data[:-100])


def _append(folder):
    with _first(folder).open("ab") as file:
        file.write(bytes(10))


def _header(change):
    def rewrite(folder):
        data = _first(folder).read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        _first(folder).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])

    return rewrite


def _overlap(header):
    names = [n for n in header if n != "__metadata__"]
    one, other = (header[n] for n in sorted(names, key=lambda n: header[n]["data_offsets"])[:2])
    width = other["data_offsets"][1] - other["data_offsets"][0]
    other["data_offsets"] = [one["data_offsets"][0], one["data_offsets"][0] + width]


def _outside(header):
    name = max((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"])
    entry = header[name]
    entry["data_offsets"] = [offset + 10**9 for offset in entry["data_offsets"]]


def _pickled_only(folder):
    for path in [*folder.glob("*.safetensors"), folder / headers.INDEX]:
        path.unlink()
    torch.save({"a": torch.zeros(2)}, folder / "pytorch_model.bin")


def _missing_shard(folder):
    _first(folder).unlink()


def _shard_named(shard):
    def change(folder):
        index = json.loads((folder / headers.INDEX).read_text())
        index["weight_map"][next(iter(index["weight_map"]))] = shard
        (folder / headers.INDEX).write_text(json.dumps(index))

    return change


def _many_axes(header):
    name = next(n for n in header if n != "__metadata__")
    header[name]["shape"] = [999_999_999] * 100_000


def _hostile_tensor(header):
    header["\x1b]0;owned\x07\nFAKE"] = header.pop(next(n for n in header if n != "__metadata__"))


NO_SHARD = "is not the name of a safetensors file"
REFUSALS = {
    "truncated shard": (_truncate, "truncated"),
    "trailing bytes": (_append, "10 bytes behind the last tensor"),
    "missing tensor": (lambda f: _edit(f, _drop), "missing keys: model.layers.0.input_layernorm"),
    "extra tensor": (lambda f: _edit(f, _add), "unexpected keys: model.layers.0.surprise"),
    "mis-shaped tensor": (lambda f: _edit(f, _reshape), r"layernorm.weight must be \["),
    "overlapping tensors": (_header(_overlap), "overlaps"),
    "tensor outside the file": (_header(_outside), "truncated or its header wrong"),
    "missing shard": (_missing_shard, "the shard .* is missing"),
    "shard outside the folder": (_shard_named("../../secrets.safetensors"), NO_SHARD),
    "shard elsewhere": (_shard_named("/etc/secrets.safetensors"), NO_SHARD),
    "shard that moves the cursor": (_shard_named("\x1b[2J.safetensors"), NO_SHARD),
    "shard of two lines": (_shard_named("a\nb.safetensors"), NO_SHARD),
    "tensor of many axes": (_header(_many_axes), "malformed: 100000 axes"),
    "tensor that moves the cursor": (_header(_hostile_tensor), "is no name of a tensor"),
    "pickled weights only": (_pickled_only, "pickled weights are never opened"),
    "too many layers": (lambda f: _config(f, num_hidden_layers=10**9), "must be a whole number"),
    "negative width": (lambda f: _config(f, hidden_size=-1), "hidden_size is -1"),
    "no decoder": (lambda f: _config(f, model_type="vit"), "no causal language model.*'vit'"),
    "unknown type with code": (
        lambda f: _config(f, model_type="evil", auto_map={"AutoModelForCausalLM": "evil.Evil"}),
        "no causal language model of model_type 'evil'; code of a repository is never run",
    ),
    "config with NaN": (lambda f: (f / "config.json").write_text('{"a": NaN}'), "no valid JSON"),
    "config nested": (lambda f: (f / "config.json").write_text("[" * 10**5), "nested too deeply"),
    "config not of a model": (lambda f: (f / "config.json").write_text("{}"), "no model_type"),
}


@pytest.mark.fault(77, 78, 79)
@pytest.mark.parametrize("kind", REFUSALS)
def test_a_broken_checkpoint_is_refused_by_name(broken, kind):
    damage, message = REFUSALS[kind]
    damage(broken)
    with pytest.raises(ValueError, match=message) as refusal:
        resident.load(broken, device="cpu", dtype="bfloat16")
    assert "broken" in str(refusal.value) or "model-0000" in str(refusal.value)
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 2000


@pytest.mark.fault(78)
def test_code_of_a_repository_is_never_run(tmp_path):
    """The config names code, as the hub's Phi-3.5-MoE does; transformers' own class is used."""
    folder = tmp_path / "mini-phimoe"
    build("mini-phimoe", PHIMOE, folder)
    canary = tmp_path / "canary"
    (folder / "modeling_phimoe.py").write_text(f"open({str(canary)!r}, 'w')\n")
    assert "auto_map" in (folder / "config.json").read_text()
    model = resident.load(folder, device="cpu", dtype="bfloat16")
    assert type(model).__module__.startswith("transformers.")
    assert not canary.exists()


def test_tensors_that_transformers_ignores_are_no_fault(tmp_path):
    for slug in ("mini-glm", "mini-qwen3-next"):
        build(slug, MINIATURES[slug], tmp_path / slug)
        assert MINIATURES[slug].extra in headers.read_index(tmp_path / slug)
        resident.load(tmp_path / slug, device="cpu", dtype="bfloat16")


def test_the_digest_of_a_local_checkpoint_is_of_its_contents(original, broken):
    assert headers.digest(broken) == headers.digest(original)
    data = bytearray(_first(broken).read_bytes())
    data[-1] ^= 1
    _first(broken).write_bytes(data)
    assert headers.digest(broken) != headers.digest(original)


def test_equal_plans_give_equal_checkpoints(original, tmp_path):
    build("mini-qwen3", MINIATURES["mini-qwen3"], tmp_path / "again")
    for path in original.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
