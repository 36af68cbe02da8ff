"""The table of models is compared with what checkpoints are, before anything is rented."""

import re
import shutil
import subprocess
import sys

import pytest
from support import tiny
from support.hub import COMMIT, Fault, Hub

from moe_outliers.checkpoint import facts

TRUE = {
    "olmoe": ("bfloat16", 2, 64, 8, 2),
    "gpt_oss-mxfp4": ("mxfp4", 2, 64, 8, 2),
    "qwen3_moe-fp8": ("fp8", 2, 64, 8, 2),
    "glm4_moe": ("bfloat16", 2, 64, 8, 2),
}


def row_of(found, **other):
    """Write the row that describes a checkpoint."""
    active = found.active_b[1] if found.active_b else 1.0
    row = {name: getattr(found, name) for name in ("layers", "width", "experts", "top_k")}
    row |= {"weights_gb": found.weights_gb, "stored_dtype": found.stored_dtype}
    return row | {"model": "it", "params_b": found.params_b, "active_b": active} | other


@pytest.mark.parametrize("name", TRUE)
def test_the_facts_of_a_folder_are_those_of_its_weights(name, tiny_checkpoint):
    folder = tiny_checkpoint(name)
    found = facts.of_folder(folder)
    shape = (found.stored_dtype, found.layers, found.width, found.experts, found.top_k)
    assert shape == TRUE[name]
    assert found.weights_gb == sum(p.stat().st_size for p in folder.glob("*.safetensors")) / 1e9
    if "-" not in name:
        counted = sum(tensor.numel() for tensor in tiny.tensors(folder).values())
        assert found.params_b == counted / 1e9
        routed = sum(t.numel() for n, t in tiny.tensors(folder).items() if ".experts." in n)
        assert found.active_b[1] == pytest.approx((counted - routed * 6 / 8) / 1e9)
    assert not list(facts.faults(row_of(found), found, "t"))


def test_quantised_weights_are_counted_as_what_they_stand_for(tiny_checkpoint):
    plain, packed = (facts.of_folder(tiny_checkpoint(n)) for n in ("gpt_oss", "gpt_oss-mxfp4"))
    assert packed.params_b == plain.params_b
    assert packed.weights_gb < plain.weights_gb / 1.5
    plain, eight = (facts.of_folder(tiny_checkpoint(n)) for n in ("qwen3_moe", "qwen3_moe-fp8"))
    assert eight.params_b == plain.params_b


@pytest.mark.parametrize(
    ("column", "said", "shown"),
    [("weights_gb", 13.8, "27.7"), ("params_b", 13.8, "6.92"), ("active_b", 3.0, "1.28"),
     ("layers", 17, "16"), ("width", 4096, "2048"), ("experts", 8, "64"), ("top_k", 2, "8"),
     ("stored_dtype", "bfloat16", "float32")],
)  # fmt: skip
def test_a_wrong_cell_is_named_with_the_value_to_write(column, said, shown):
    """The true ones are those of OLMoE-1B-7B at its pinned commit."""
    true = facts.Facts(27.677, "float32", 16, 2048, 64, 8, 6.919, (1.18, 1.28))
    right = {"weights_gb": 27.7, "params_b": 6.9, "active_b": 1.3}
    row = row_of(true, model="olmoe-1b-7b") | right
    assert not list(facts.faults(row, true, "config/models.tsv"))
    assert list(facts.faults(row | {column: said}, true, "config/models.tsv")) == [
        f"config/models.tsv: row olmoe-1b-7b: {column} is {said}, the checkpoint has {shown}: "
        f"write {shown}"
    ]


@pytest.mark.parametrize("name", TRUE)
def test_the_hub_tells_the_same_as_the_folder(name, tiny_checkpoint, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_checkpoint(name), tmp_path / "copy")
    (folder / "consolidated.safetensors").write_bytes(b"another layout")
    with Hub() as server:
        server.models["org/model"] = folder
        told = _in_a_process(server, tmp_path, "facts.of_hub('org/model', COMMIT)")
    found, own = eval(told, {"Facts": facts.Facts}), facts.of_folder(tiny_checkpoint(name))
    assert found.params_b == pytest.approx(own.params_b, rel=0.02)
    assert found.active_b is None
    known = ("weights_gb", "stored_dtype", "layers", "width", "experts", "top_k")
    assert all(getattr(found, key) == getattr(own, key) for key in known)
    asked = [path for method, path in server.requests if method == "GET"]
    assert not [path for path in asked if path.endswith(".safetensors")]


def _in_a_process(server, tmp_path, expression, **more):
    """Evaluate an expression in a process whose hub is the server."""
    program = f"from moe_outliers.checkpoint import facts\nCOMMIT = {COMMIT!r}\n"
    if not any(fault.kind == "stall" for fault in server.faults):
        program += "facts.PATIENCE_S = 60\n"  # for a machine that is busy
    program += f"print({expression})"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path, env=server.environment(tmp_path / "cache") | {"PATH": "/bin"} | more,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


COMPARE = (
    "facts.compare([{'model': 'it', 'repo': 'org/model', 'revision': COMMIT, 'layers': 3}],"
    " str, 'models.tsv')"
)


def test_the_hub_is_asked_once_for_a_commit(tiny_checkpoint, tmp_path):
    with Hub() as server:
        server.models["org/model"] = tiny_checkpoint("olmoe")
        first = _in_a_process(server, tmp_path, COMPARE)
        count = len(server.requests)
        assert _in_a_process(server, tmp_path, COMPARE) == first
        assert len(server.requests) == count > 0
    assert "layers is 3, the checkpoint has 2: write 2" in first


@pytest.mark.parametrize(
    ("faults", "more", "why"),
    [
        ([], {"HF_HUB_OFFLINE": "1"}, "the hub is not asked: HF_HUB_OFFLINE is set"),
        ([Fault("401", "/api/", times=9)], {}, "org/model is gated"),
        ([Fault("503", "", method="any", times=99)], {}, "could not fetch org/model"),
        ([Fault("stall", "", method="any", times=99)], {}, "did not answer within 3 s|time"),
        ([Fault("page", "/api/")], {}, "did not answer as the hub does"),
    ],
    ids=["offline", "gated", "down", "silent", "a login page"],
)
def test_where_the_hub_is_not_reached_a_row_is_not_checked_and_it_says_why(
    faults, more, why, tiny_checkpoint, tmp_path
):
    with Hub(faults=faults) as server:
        server.models["org/model"] = tiny_checkpoint("olmoe")
        told = _in_a_process(server, tmp_path, COMPARE, **more)
        asked = [path for method, path in server.requests if path.startswith("/api/")]
    assert len(asked) == (0 if more else 1)  # once: nothing waits for a hub that is down
    wrong, unknown = eval(told)
    assert wrong == {}
    assert re.search(why, unknown["it"])


def test_a_folder_that_changed_is_looked_at_again(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(tiny_checkpoint("olmoe"), tmp_path / "copy")
    true = facts.of_folder(folder)
    row = row_of(true, repo=str(folder), revision="local")
    assert facts.compare([row], str, "t") == ({}, {})
    read = []
    monkeypatch.setattr(facts.headers, "read_index", lambda f: read.append(f) or {})
    assert facts.compare([row], str, "t") == ({}, {})
    assert not read
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    tiny.change_config(folder, num_experts=4)
    wrong, _ = facts.compare([row], str, "t")
    assert wrong["it"][0].endswith("experts is 8, the checkpoint has 4: write 4")
    (tmp_path / ".snakemake/moe-outliers/facts.json").write_text("{")
    assert facts.compare([row], str, "t")[0] == wrong
    (folder / "config.json").unlink()
    assert "config.json" in facts.compare([row], str, "t")[1]["it"]


def test_nothing_heavy_is_imported_to_compare_rows():
    code = (
        "import sys\nfrom moe_outliers.checkpoint import facts\n"
        "print({'torch', 'transformers', 'numpy', 'huggingface_hub'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
