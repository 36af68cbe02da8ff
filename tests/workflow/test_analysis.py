"""From statistics files to tables, through the real workflow."""

import json

import pytest
from support.slice import MODELS, Slice

from moe_outliers.report import tables
from moe_outliers.storage import parquet

SUMMARY = "results/tables/summary.json"


@pytest.fixture(scope="module")
def analysed(undisturbed, tmp_path_factory) -> Slice:
    """The slice with its tables."""
    run = undisturbed.copy(tmp_path_factory.mktemp("analysed") / "run")
    said = run("--cores", "2", SUMMARY)
    assert said.code == 0, said.text
    assert said.jobs == {
        "metrics": 2, "bootstrap": 2, "comparison": 1, "validate": 1, "tables": 1,
    }, said.text  # fmt: skip
    return run


def test_the_tables_of_a_sweep_are_whole_and_hold_every_model(analysed):
    for name, schema in tables.TABLES.items():
        path = analysed.folder / f"results/tables/{name}.parquet"
        table = parquet.read(path, schema)
        assert path.with_suffix(".csv").read_text().count("\n") >= table.num_rows + 1
        if "model" in schema.names and name not in ("reference", "warnings", "feature_tokens"):
            assert set(table["model"].to_pylist()) == set(MODELS), name
    told = json.loads((analysed.folder / SUMMARY).read_text())
    assert set(told["models"]) == set(MODELS)


def test_differences_are_those_of_the_models_that_they_name(analysed):
    found = {
        name: parquet.read(analysed.folder / f"results/tables/{name}.parquet").to_pandas()
        for name in ("differences", "intervals")
    }
    bits = found["intervals"].query("metric == 'bits_per_byte_common'").set_index("model")
    row = found["differences"].query("metric == 'bits_per_byte_common'").iloc[0]
    assert (row["model_a"], row["model_b"]) == MODELS
    mean = bits["estimate"]
    assert row["estimate"] == pytest.approx(mean[MODELS[0]] - mean[MODELS[1]])
    assert mean[MODELS[0]] != mean[MODELS[1]]


def test_a_setting_of_the_bootstrap_reruns_neither_extraction_nor_metrics(analysed):
    overlay = analysed.overlay.with_name("resamples.yaml")
    settings = json.loads(analysed.overlay.read_text())
    overlay.write_text(json.dumps(settings | {"bootstrap": {"resamples": 99}}))
    said = Slice(analysed.folder, overlay)("-n", SUMMARY)
    assert set(said.jobs) == {"bootstrap", "comparison", "tables"}, said.text


def test_a_further_model_costs_itself_and_the_collectors(analysed, tmp_path):
    """The sweep of one model, then that of both."""
    settings = json.loads(analysed.overlay.read_text())
    overlay = analysed.overlay.with_name("one.yaml")
    overlay.write_text(json.dumps(settings | {"models": [MODELS[0]]}))
    run = analysed.copy(tmp_path / "run")
    for path in (run.folder / "results").rglob(f"{MODELS[1]}*.parquet"):
        if path.parent.name in ("metrics", "bootstrap"):
            path.unlink()
    said = Slice(run.folder, overlay)("--cores", "2", SUMMARY)
    assert said.code == 0, said.text
    assert set(said.jobs) == {"comparison", "tables"}, said.text
    said = run("-n", SUMMARY)
    assert said.jobs == {"metrics": 1, "bootstrap": 1, "comparison": 1, "tables": 1}, said.text


def test_the_metrics_of_an_invalid_model_fail_with_its_verdict(analysed, tmp_path):
    run = analysed.copy(tmp_path / "run")
    settings = json.loads(run.overlay.read_text())
    rows = (run.overlay.with_name("models.tsv")).read_text().replace("\t64\t", "\t65\t", 1)
    table = run.overlay.with_name("wrong.tsv")
    table.write_text(rows)
    overlay = run.overlay.with_name("wrong.yaml")
    overlay.write_text(json.dumps(settings | {"table": str(table)}))
    said = Slice(run.folder, overlay)("--cores", "2", SUMMARY)
    assert said.code != 0
    assert f"{MODELS[0]} is invalid: table" in said.text
    assert "leave the model out" in said.text
    assert not (run.folder / f"results/metrics/{MODELS[0]}.parquet").exists()
