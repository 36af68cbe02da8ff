"""A model is added to the table by a row that is counted from its checkpoint."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import tiny, zoo
from support.hub import COMMIT, Hub
from support.snake import ROOT

from moe_outliers.checkpoint import facts
from moe_outliers.cli import add as cli
from moe_outliers.workflow import settings

SCHEMAS = ROOT / "config/schemas"


@pytest.fixture
def table(tmp_path):
    """The shipped table, and a comment without an end of line after it."""
    text = (ROOT / "config/models.tsv").read_text()
    (tmp_path / "models.tsv").write_text(f"{text}# the end")
    return tmp_path / "models.tsv"


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    """Copy a tiny checkpoint, and give it a tokenizer."""

    def get(name):
        folder = shutil.copytree(tiny_checkpoint(name), tmp_path / name)
        (folder / "tokenizer.json").write_text("{}")
        return folder

    return get


def add(table, *words, server=None):
    """Run the command; return its status, and what it printed."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    if server:
        environment |= server.environment(table.parent / "cache")
    program = Path(sys.executable).with_name("moe-outliers")
    done = subprocess.run(
        [program, "add", *map(str, words), "--table", table],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def test_a_folder_is_counted_offline_and_its_row_is_right(table, checkpoint):
    folder, before = checkpoint("gpt_oss-mxfp4"), table.read_text()
    code, said = add(table, folder, "--name", "packed")
    assert code == 0, said
    assert table.read_text().startswith(before)
    row = settings.read_table(table, SCHEMAS)["packed"]
    true = facts.of_folder(folder)
    assert not list(facts.faults(row, true, "t"))
    assert (row["number"], row["repo"], row["revision"]) == ("09", str(folder), "local")
    assert (row["layers"], row["width"], row["experts"], row["top_k"]) == (2, 64, 8, 2)
    plain = facts.of_folder(checkpoint("gpt_oss"))
    assert row["params_b"] == float(f"{plain.params_b:.3g}")
    assert row["active_b"] == pytest.approx(plain.active_b[1], rel=0.01)
    assert row["stored_dtype"] == "mxfp4"
    assert "run it with: snakemake --config models=packed" in said
    assert "What it would cost" in said
    assert "extract packed" in said
    code, said = add(table, folder)
    assert (code, said.count("\n")) == (1, 1)
    assert f"has it: row packed is {folder} at local" in said


def test_a_repository_is_pinned_and_no_weight_is_fetched(table, checkpoint):
    folder = checkpoint("glm4_moe")
    with Hub() as server:
        server.models["org/GLM_tiny.1"] = folder
        code, said = add(table, "org/GLM_tiny.1", server=server)
    assert code == 0, said
    row = settings.read_table(table, SCHEMAS)["glm-tiny.1"]
    assert (row["repo"], row["revision"]) == ("org/GLM_tiny.1", COMMIT)
    assert not list(facts.faults(row, facts.of_folder(folder), "t"))
    assert "downloads 1 GB" in said
    ranges = [path for _, path in server.requests if path.endswith(".safetensors")]
    assert len(ranges) == 2 * len(list(folder.glob("*.safetensors")))  # headers, twice


def _without(pattern):
    def change(folder):
        found = tiny.tensors(folder)
        tiny.write(folder, {name: value for name, value in found.items() if pattern not in name})

    return change


def _pickled(folder):
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    torch.save({}, folder / "pytorch_model.bin")


REFUSED = {
    "quantised": (
        lambda f: tiny.change_config(f, quantization_config={"quant_method": "awq"}),
        "weights quantised by 'awq'",
    ),
    "incomplete": (_without("experts.1.w1"), "without a gap"),
    "no norm": (_without("model.norm"), "missing keys: model.norm.weight"),
    "pickled": (_pickled, "pickled weights are never opened"),
    "code": (
        lambda f: tiny.change_config(f, model_type="evil", auto_map={"AutoConfig": "evil.Evil"}),
        "evil",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer.json"),
    "no checkpoint": (lambda f: (f / "config.json").unlink(), "config.json"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_measured_is_refused_and_the_table_stays(kind, table, checkpoint):
    damage, reason = REFUSED[kind]
    folder = checkpoint("mixtral")
    before = table.read_text()
    damage(folder)
    with pytest.raises(ValueError, match=reason):
        list(cli.add(ROOT, table, str(folder), None, None))
    assert table.read_text() == before


def test_a_model_that_would_be_refused_when_it_is_extracted_is_not_added(table, tmp_path):
    zoo.build("mamba").save_pretrained(tmp_path / "mamba")
    (tmp_path / "mamba/tokenizer.json").write_text("{}")
    before = table.read_text()
    with pytest.raises(ValueError, match="block 0 of mamba has the sites attn_in; metrics are"):
        list(cli.add(ROOT, table, str(tmp_path / "mamba"), None, None))
    assert table.read_text() == before


@pytest.mark.parametrize(
    ("words", "reason"),
    [({"repo": "nowhere"}, "nowhere: no such folder, and no name of a repository: OWNER/NAME"),
     ({"revision": "main"}, "is a folder: --revision is for repositories"),
     ({"name": "olmoe-1b-7b"}, "has a row olmoe-1b-7b: choose another name"),
     ({"name": "No Slug"}, "No Slug"),
     ({"repo": "org/none"}, "could not fetch org/none")],
)  # fmt: skip
def test_what_cannot_be_added_is_said(words, reason, table, checkpoint):
    before = table.read_text()
    default = {"repo": str(checkpoint("mixtral")), "revision": None, "name": None}
    with pytest.raises(ValueError, match=reason):
        list(cli.add(ROOT, table, **default | words))
    assert table.read_text() == before


def test_a_table_without_some_columns_is_kept_as_it_is(table, checkpoint):
    lines = [line.rpartition("\t")[0] for line in table.read_text().splitlines()[:2]]
    table.write_text("\n".join(lines) + "\n")
    assert next(cli.add(ROOT, table, str(checkpoint("olmoe")), None, None))
    assert len(settings.read_table(table, SCHEMAS)) == 2
