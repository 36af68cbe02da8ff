"""Which models a sweep has, and what stops it before anything is done."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.snake import ROOT, Said, snakemake


@pytest.fixture(scope="module")
def default_run(tmp_path_factory):
    return snakemake("-n", directory=tmp_path_factory.mktemp("default"))


def test_the_default_sweep_has_one_extraction_a_model(default_run):
    assert default_run.code == 0, default_run.text
    assert {default_run.jobs[rule] for rule in ("tokenize", "extract", "verify")} == {7}
    assert default_run.jobs["texts"] == 1


def test_a_dry_run_in_a_fresh_folder_writes_no_result(tmp_path):
    snakemake("-n", directory=tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and ".snakemake" not in p.parts]


def test_models_are_chosen_by_slug_and_by_number(tmp_path):
    for chosen in ("olmoe-1b-7b,qwen3-30b-a3b", "01,03", "[1, 3]"):
        said = snakemake("-n", "--config", f"models={chosen}", directory=tmp_path)
        assert said.jobs["extract"] == 2, said.text
    assert snakemake("-n", "--config", "models=1", directory=tmp_path).jobs["extract"] == 1


def test_one_row_more_adds_exactly_that_models_jobs(default_run, tmp_path):
    table = tmp_path / "models.tsv"
    row = (ROOT / "config/models.tsv").read_text().splitlines()[1]
    more = row.replace("olmoe-1b-7b\t01", "olmoe-again\t09")
    table.write_text((ROOT / "config/models.tsv").read_text() + more + "\n")
    slugs = [line.split("\t")[0] for line in table.read_text().splitlines()[1:]]
    slugs.remove("phi-3.5-moe")
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(f"table: {table}\nmodels: [{', '.join(slugs)}]\n")
    said = snakemake("-n", directory=tmp_path, overlay=overlay)
    added = {rule: n - default_run.jobs[rule] for rule, n in said.jobs.items()}
    for_each_model = {rule for rule, n in default_run.jobs.items() if n == 7}
    assert {rule for rule, n in added.items() if n} == for_each_model
    assert {added[rule] for rule in for_each_model} == {1}


def test_a_study_in_a_folder_of_its_own_needs_two_keys(tmp_path):
    (tmp_path / "study.yaml").write_text("models: [1, 3]\nextract: {device: cpu}\n")
    words = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory"]
    words += [".", "--configfile", "study.yaml", "-n", "--quiet", "rules"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert Said(done.returncode, done.stdout + done.stderr).jobs["extract"] == 2, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"study.yaml", ".snakemake"}


@pytest.mark.fault(100)
@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ("models: olmo-1b-7b", "has no model olmo-1b-7b; did you mean olmoe-1b-7b?"),
        ("models: [99]", "has no number 99"),
        ("data: {sequnces: 3}", "data.sequnces is not a key; did you mean sequences?"),
        ("data: {revision: main}", "data.revision: 'main' does not match"),
        ("table: config/modles.tsv", "no such table of models"),
    ],
)
def test_a_fault_in_the_settings_stops_the_run_with_one_message(tmp_path, overlay, message):
    path = tmp_path / "overlay.yaml"
    path.write_text(overlay)
    said = snakemake(directory=tmp_path, overlay=path)
    assert said.code == 1
    assert message in said.text
    assert "Traceback" not in said.text
    assert not (tmp_path / "results").exists()


@pytest.mark.fault(74)
@pytest.mark.parametrize(
    ("revision", "message"),
    [
        ("main", "row olmoe-1b-7b: revision: 'main'"),
        ("", "pin a revision for olmoe-1b-7b in"),
        ("local", "allenai/OLMoE-1B-7B-0125/tokenizer.json"),  # no such folder
    ],
)
def test_a_model_that_cannot_be_had_at_its_revision_stops_the_run(tmp_path, revision, message):
    lines = (ROOT / "config/models.tsv").read_text().splitlines()
    cells = lines[1].split("\t")
    cells[3] = revision
    (tmp_path / "models.tsv").write_text("\n".join([lines[0], "\t".join(cells)]) + "\n")
    (tmp_path / "overlay.yaml").write_text(f"table: {tmp_path}/models.tsv\nmodels: [1]\n")
    said = snakemake("-n", directory=tmp_path, overlay=tmp_path / "overlay.yaml")
    assert said.code == 1
    assert message in said.text


@pytest.mark.fault(101)
@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")
def test_without_a_gpu_a_local_run_stops_before_any_job_and_names_two_ways_out(tmp_path):
    said = snakemake(directory=tmp_path)
    assert said.code == 1
    assert "snakemake --profile runpod" in said.text
    assert "make demo" in said.text
    assert not Path(tmp_path, "results").exists()
