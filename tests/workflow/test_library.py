"""`import moe_outliers as mo` beside the workflow: the same bytes, numbers, and a notebook."""

import copy
import re
import shutil

import nbclient
import nbformat
import numpy as np
import pandas as pd
import pytest
from support.slice import MODELS
from support.snake import ROOT

import moe_outliers as mo
from moe_outliers import texts
from moe_outliers.storage import files, parquet, statistics_file

NOTEBOOK = ROOT / "notebooks/thresholds.ipynb"


def _checkpoint(run, model):
    return str(run.overlay.parent / model)


@pytest.mark.parametrize("model", MODELS)
def test_a_dataset_of_record_written_by_batches_has_the_bytes_of_the_workflow(
    undisturbed, model, tmp_path
):
    table = parquet.read(undisturbed.folder / "results/texts.parquet", texts.SCHEMA)
    how = {"tokens": 64, "device": "cpu", "name": model}
    whole = mo.record(_checkpoint(undisturbed, model), table, **how)
    assert whole["sequence"].values.tolist() == [0, 1, 2]
    for batch in range(3):
        theirs = undisturbed.pair(model, batch)[0]
        statistics_file.write(whole, tmp_path / theirs.name, [batch])
        assert files.sha256(tmp_path / theirs.name) == files.sha256(theirs)
    given = mo.record(_checkpoint(undisturbed, model), table["text"].to_pylist(), **how)
    assert given.identical(whole)


def test_one_sequence_alone_has_the_same_bytes_as_among_others(undisturbed, tmp_path):
    model = MODELS[0]
    tokens = parquet.read(undisturbed.folder / f"results/tokens/{model}.parquet")
    alone = mo.record(_checkpoint(undisturbed, model), tokens.slice(1, 1), device="cpu", name=model)
    statistics_file.write(alone, tmp_path / "01.nc")
    theirs = undisturbed.pair(model, 1)[0]
    assert files.sha256(tmp_path / "01.nc") == files.sha256(theirs)


def test_tokens_of_the_face_are_those_of_the_workflow(undisturbed):
    table = parquet.read(undisturbed.folder / "results/texts.parquet")
    made = mo.tokenize(_checkpoint(undisturbed, MODELS[1]), table, tokens=64)
    theirs = parquet.read(undisturbed.folder / f"results/tokens/{MODELS[1]}.parquet")
    assert made.equals(theirs)


@pytest.mark.slow
def test_what_is_measured_in_a_notebook_is_what_the_sweep_says(demo, monkeypatch):
    sweep = mo.open(demo.folder)
    assert sweep.models == sweep.table("models")["model"].tolist()
    model = "mini-olmoe"
    statistics, tokens = sweep.statistics(model), sweep.tokens(model)
    seed = sweep.summary["settings"]["seed"]
    tables = mo.measure(statistics, tokens, sweep.criteria, seed)
    for name, table in tables.items():
        ending = "" if name == "values" else f".{name}"
        theirs = demo.folder / f"results/metrics/{model}{ending}.parquet"
        pd.testing.assert_frame_equal(table, parquet.read(theirs).to_pandas())
    assert set(tables["values"]["metric"]) <= set(mo.METRICS)
    extent = mo.firing(statistics, sweep.criteria).mean("site").mean("sequence")
    features = tables["features"].set_index("feature")["extent_share"]
    assert np.allclose(extent.values[features.index], features)
    figure = mo.plot("features_by_site", sweep)
    assert len(figure.axes) >= len(sweep.models)
    monkeypatch.chdir(demo.folder / "logs")
    assert mo.open().models == sweep.models


@pytest.mark.slow
def test_what_is_not_there_or_damaged_is_told_with_the_fix(demo, tmp_path, monkeypatch):
    run = demo.copy(tmp_path / "run")
    sweep = mo.open(run.folder)
    for wrong, message in [
        (lambda: sweep.table("feature"), "no table feature; did you mean features?"),
        (lambda: sweep.statistics("mini-olmo"), "no model mini-olmo; did you mean mini-olmoe?"),
        (lambda: sweep.tokens("olmoe"), "no model olmoe"),
        (lambda: sweep.statistics("mini-olmoe", ["x_counts"]), "did you mean x_count?"),
        (lambda: mo.plot("forrest", sweep), "no figure forrest; did you mean forest?"),
        (lambda: mo.open(tmp_path / "else"), "no finished sweep: run snakemake or `make demo`"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            wrong()
    statistics, receipt = run.pair("mini-olmoe", 1)
    data = bytearray(statistics.read_bytes())
    data[len(data) // 2] ^= 1
    statistics.write_bytes(data)
    with pytest.raises(ValueError, match=r"01\.nc: the content differs from its receipt"):
        sweep.statistics("mini-olmoe")
    statistics.unlink()
    with pytest.raises(ValueError, match=r"01\.nc is not there: run snakemake first"):
        sweep.statistics("mini-olmoe")
    assert receipt.exists()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no finished sweep"):
        mo.open()


def _told(notebook):
    """What each cell printed or returned as text; of figures, that there is one."""
    return [
        [
            output.get("text") or output["data"].get("text/plain")
            for output in cell.outputs
            if "image/png" not in output.get("data", {})
        ]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


@pytest.mark.slow
def test_the_notebook_runs_after_the_demo_and_is_committed_with_what_it_prints(demo, tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    before = copy.deepcopy(notebook)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/results").symlink_to(demo.folder / "results")
    where = {"metadata": {"path": str(tmp_path / "notebooks")}}
    nbclient.NotebookClient(notebook, timeout=120, resources=where).execute()
    assert _told(notebook) == _told(before)
    shown = [
        output
        for cell in before.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(shown) == 3
    shutil.rmtree(tmp_path / "notebooks")


def test_the_notebook_uses_the_face_only_and_types_no_threshold():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    assert not re.findall(r"moe_outliers\.|from moe_outliers", code)
    named = set(re.findall(r"\bmo\.(\w+)", code))
    assert named <= set(mo.__all__)
    assert {"open", "firing", "plot"} <= named
    bare = re.sub(r"\w+=\(?[\d., ]+\)?", "", code)  # sizes of figures are arguments
    assert not re.findall(r"(?<![\w.])\d*\.?\d+(?![\w.])", re.sub(r'".*?"|#.*', "", bare))
