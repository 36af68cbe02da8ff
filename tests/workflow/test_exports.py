"""What others get of a finished sweep: post, data set, schemas."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from canaries import CANARIES, spilt
from support.snake import ROOT

from moe_outliers.report.figures.catalogue import FIGURES

BIN = Path(sys.executable).parent


def where(demo):
    return ["--directory", demo.folder, "--configfile", demo.overlay]


def export(demo, *words):
    done = subprocess.run(
        [BIN / "moe-outliers", "export", *words, *where(demo)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | CANARIES,
        timeout=120,
        check=False,
    )
    said = done.stdout + done.stderr
    assert not spilt(Path(words[-1]), said)
    return done.returncode, said


@pytest.fixture(scope="module")
def summary(demo):
    return json.loads((demo.folder / "results/tables/summary.json").read_text())


@pytest.mark.fault(98)
def test_a_post_says_what_the_report_says_and_shows_every_figure(demo, summary, tmp_path):
    code, said = export(demo, "post", tmp_path / "post")
    assert code == 0, said
    text = (tmp_path / "post/post.md").read_text()
    shown = re.findall(r"^!\[.+\]\(images/(\w+)\.svg\)$", text, re.M)
    assert sorted(shown) == sorted(FIGURES)
    for name in shown:
        image = (tmp_path / f"post/images/{name}.svg").read_bytes()
        assert image == (demo.folder / f"results/figures/{name}.svg").read_bytes()
    for model, found in summary["models"].items():
        assert f"{model} is called {found['model_class'].replace('_', ' ')}" in text
        estimate = found["numbers"]["bits_per_byte_common"]["whole"]["estimate"]
        assert f"| {estimate:.3g} [" in text
    assert export(demo, "post", tmp_path / "post")[0] == 1


def test_a_data_set_loads_offline_and_holds_the_tables_and_nothing_else(
    demo, summary, tmp_path, monkeypatch
):
    import datasets

    code, said = export(demo, "dataset", tmp_path / "data")
    assert code == 0, said
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    names = datasets.get_dataset_config_names(str(tmp_path / "data"))
    tables = {path.stem for path in (demo.folder / "results/tables").glob("*.parquet")}
    assert set(names) == tables
    cache = str(tmp_path / "cache")
    models = datasets.load_dataset(str(tmp_path / "data"), "models", cache_dir=cache)["train"]
    assert dict(zip(models["model"], models["model_class"], strict=True)) == {
        model: found["model_class"] for model, found in summary["models"].items()
    }
    card = (tmp_path / "data/README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert [config["config_name"] for config in front["configs"]] == names
    written = {str(p.relative_to(tmp_path / "data")) for p in (tmp_path / "data").rglob("*.*")}
    assert written == {"README.md", "summary.json", *(f"data/{name}.parquet" for name in tables)}


@pytest.mark.fault(99)
def test_a_file_that_is_no_table_is_not_published(demo, tmp_path):
    copy = demo.copy(tmp_path / "copy")
    (copy.folder / "results/tables/notes.csv").write_text("private\n")
    code, said = export(copy, "dataset", tmp_path / "data")
    assert code == 1
    assert "notes.csv is no table of this program" in said
    (copy.folder / "results/tables/notes.csv").unlink()
    table = copy.folder / "results/tables/legacy.parquet"
    table.write_bytes(table.read_bytes()[:-1])
    code, said = export(copy, "dataset", tmp_path / "data")
    assert code == 1
    assert "legacy.parquet: the content differs from its recorded digest" in said
    table.unlink()
    code, said = export(copy, "dataset", tmp_path / "data")
    assert "legacy.parquet is not there: run snakemake first" in said
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("form", ["post", "rocrate"])
def test_what_is_damaged_or_missing_is_not_exported(demo, tmp_path, form):
    copy = demo.copy(tmp_path / "copy")
    words = copy.folder / "results/plots/forest.txt"
    told = words.read_text()
    words.write_text(told + "x")
    if form == "post":
        code, said = export(copy, form, tmp_path / form)
        assert code == 1
        assert "forest.txt: the content differs from its recorded digest" in said
        words.unlink()
        assert (
            "forest.txt is not there: run snakemake first" in export(copy, form, tmp_path / form)[1]
        )
    words.write_text(told)
    (copy.folder / "results/figures/forest.pdf").unlink()
    code, said = export(copy, form, tmp_path / form)
    assert code == 1
    assert "results/figures: the content differs from its recorded digest" in said
    assert not (tmp_path / form).exists()


@pytest.mark.fault(61)
@pytest.mark.parametrize("form", ["post", "dataset", "rocrate"])
def test_an_export_that_fills_the_disk_names_the_fix_and_leaves_nothing(demo, small_disk, form):
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file:
        free = shutil.disk_usage(small_disk).free
        os.posix_fallocate(file.fileno(), 0, free - 128 * 1024)
    code, said = export(demo, form, small_disk / form)
    assert code == 1
    assert "a disk is full: free some and run the same command again" in said
    assert list(small_disk.iterdir()) == [ballast]
    ballast.unlink()
    assert export(demo, form, small_disk / form)[0] == 0


def test_a_research_object_is_of_whole_batches_only(demo, tmp_path):
    copy = demo.copy(tmp_path / "copy")
    statistics, receipt = copy.pair("mini-glm", 3)
    data = statistics.read_bytes()
    statistics.write_bytes(data[:-1])
    code, said = export(copy, "rocrate", tmp_path / "crate")
    assert code == 1
    assert re.search(r"results/extract/mini-glm/03\.nc: \d+ bytes, the receipt says \d+: run", said)
    statistics.unlink()
    receipt.unlink()
    said = export(copy, "rocrate", tmp_path / "crate")[1]
    assert "results/extract/mini-glm/03.nc: is not there: run snakemake first" in said
    assert not (tmp_path / "crate").exists()


def test_summary_and_status_are_as_their_schemas_say(demo, summary):
    jsonschema.validate(
        summary, json.loads((ROOT / "docs/schemas/summary.schema.json").read_text())
    )
    done = subprocess.run(
        [BIN / "moe-outliers", "status", "--json", *where(demo)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    found = json.loads(done.stdout)
    jsonschema.validate(found, json.loads((ROOT / "docs/schemas/status.schema.json").read_text()))
    assert {row["verify"] for row in found["models"].values()} == {"valid"}
    assert set(found["sweep"].values()) == {"done"}


@pytest.mark.fault(98)
def test_a_research_object_holds_every_result_with_its_digest(demo, summary, tmp_path):
    from rocrate.rocrate import ROCrate

    code, said = export(demo, "rocrate", tmp_path / "crate")
    assert code == 0, said
    crate = ROCrate(tmp_path / "crate")
    held = {entity.id: entity for entity in crate.get_entities() if entity.type == "File"}
    for name, entity in held.items():
        data = (tmp_path / "crate" / name).read_bytes()
        assert entity["sha256"] == hashlib.sha256(data).hexdigest()
        assert int(entity["contentSize"]) == len(data)
    made = {
        f"results/{path.relative_to(demo.folder / 'results')}"
        for path in (demo.folder / "results").rglob("[!.]*.*")
        if path.is_file() and ".digests" not in path.parts
    }
    assert made <= set(held)
    settings = yaml.safe_load(demo.overlay.read_text())
    table = f"workflow/config/{Path(settings['table']).name}"
    inputs = {table, "workflow/config/config.yaml", f"workflow/overlays/1/{demo.overlay.name}"}
    program = {"workflow/Snakefile", "workflow/src/moe_outliers/extract.py"}
    assert inputs | program <= set(held)
    (run,) = crate.get_by_type("CreateAction")
    assert {entity.id for entity in run["result"]} >= made
    assert inputs <= {entity.id for entity in run["object"]}
    names = {entity["name"]: entity.get("value") for entity in run["object"]}
    assert names["outliers.magnitude"] == "6.0"
    used = {entity["name"] for entity in crate.get_by_type("SoftwareApplication")}
    assert {"moe-outliers", "snakemake", "torch", "transformers"} <= used
    assert export(demo, "rocrate", tmp_path / "crate")[1].startswith("error: ")


@pytest.mark.fault(99)
def test_a_file_that_no_rule_made_is_in_no_research_object(demo, tmp_path):
    copy = demo.copy(tmp_path / "copy")
    for name in ("keys.json", "tokens/notes.txt", "extract/mini-olmoe/99.json"):
        (copy.folder / "results" / name).write_text("private\n")
    code, said = export(copy, "rocrate", tmp_path / "crate")
    assert code == 0, said
    held = [path.read_bytes() for path in (tmp_path / "crate").rglob("*.*")]
    for path in [copy.folder / "results/texts.parquet", *copy.pair("mini-olmoe", 0)]:
        assert path.read_bytes() in held
    assert b"private\n" not in held
