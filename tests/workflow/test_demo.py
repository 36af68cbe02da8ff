"""The demo: seven miniatures, texts to report; the planted truth is recovered."""

import json

import numpy as np
import pytest
import yaml
from support.slice import ROOT

from moe_outliers.report import sentences
from moe_outliers.report.figures.catalogue import FIGURES
from moe_outliers.storage import parquet, statistics_file
from moe_outliers.workflow import settings

MODELS = settings.read_table(ROOT / "config/demo.tsv", ROOT / "config/schemas")
MAGNITUDE, SHARE, SYSTEMATIC = 6, 0.06, 0.75


def truth_of(demo, model):
    return json.loads((demo.folder.parent / "models" / model / "truth.json").read_text())


@pytest.fixture(scope="module")
def fires(demo):
    """By model and basis: (sequence, site, feature)."""
    found = {}
    for model in MODELS:
        paths = sorted((demo.folder / "results/extract" / model).glob("*.nc"))
        data = statistics_file.read_all(paths)
        least = SHARE * data.sizes["position"]
        found[model] = {
            basis: data[f"{basis}_count"].sel(alpha=MAGNITUDE).values >= least for basis in "zx"
        }
    return found


def constants_of(truth):
    """Features with one large value at every position: planted systematic, or held to a band."""
    written = [truth["super_expert"][2]] if truth["super_expert"] else []
    return sorted({*truth["systematic"], *map(int, truth["banded"])} - set(written))


@pytest.mark.parametrize("model", MODELS)
def test_what_is_large_in_the_residual_stream_fires_by_z_whatever_its_gains(demo, fires, model):
    """A gain of .1 holds a constant to a band by x; the constant itself is at every site."""
    extent = fires[model]["z"].mean(1)
    everywhere = np.flatnonzero((extent >= SYSTEMATIC).all(0))
    assert everywhere.tolist() == constants_of(truth_of(demo, model))


@pytest.mark.parametrize("model", MODELS)
def test_gains_hold_features_to_the_planted_bands_by_x(demo, fires, model):
    for feature, sites in truth_of(demo, model)["banded"].items():
        for sequence in fires[model]["x"][:, :, int(feature)]:
            assert list(np.flatnonzero(sequence)) == sites


@pytest.mark.parametrize("model", MODELS)
def test_the_gain_only_features_pass_by_x_and_not_by_z(demo, fires, model):
    z, x = (fires[model][basis].mean(1).mean(0) for basis in "zx")
    made = np.flatnonzero((x >= 0.25) & (z < 0.25))
    assert list(made) == truth_of(demo, model)["gain_only"]


def test_the_tables_name_the_planted_classes_by_each_basis(demo):
    features = parquet.read(demo.folder / "results/tables/features.parquet").to_pandas()
    for model in MODELS:
        truth, rows = truth_of(demo, model), features[features["model"] == model]
        rows = rows.set_index("feature")
        banded = {int(feature): "banded" for feature in truth["banded"]}
        by_x = banded | dict.fromkeys(truth["systematic"], "systematic")
        by_z = banded | dict.fromkeys(constants_of(truth), "systematic")
        candidates = rows.loc[rows["class"] != "none", "class"]
        assert candidates.to_dict() == by_z
        made = truth["gain_only"]
        assert rows.loc[rows["class_x"] != "none", "class_x"].drop(made).to_dict() == by_x
        assert set(rows.loc[made, "relation"]) <= {"gain_made"}
        assert set(rows.loc[list(by_z), "relation"]) <= {"both"}


def test_the_report_names_the_models_that_x_puts_in_another_class(demo):
    told = json.loads((demo.folder / "results/tables/summary.json").read_text())
    others = {m for m, own in told["models"].items() if own["class_x"] != own["model_class"]}
    assert others == {"mini-qwen3", "mini-mixtral", "mini-qwen3-next", "mini-glm"}
    page = (demo.folder / "results/report.html").read_text()
    (said,) = sentences.otherwise(told)
    assert said.partition(":")[2].strip() in page
    assert all(model in said for model in others)


def test_the_planted_expert_is_the_writer_and_no_other_model_has_one(demo):
    experts = parquet.read(demo.folder / "results/tables/experts.parquet").to_pandas()
    block, expert, feature = truth_of(demo, "mini-olmoe")["super_expert"]
    rows = experts[experts["writer"]]
    assert set(rows["model"]) == {"mini-olmoe"}
    assert [tuple(row) for row in rows[["block", "expert", "largest_feature"]].to_numpy()] == [
        (block, expert, feature)
    ]


def test_the_massive_activations_are_where_they_were_planted(demo):
    blocks = parquet.read(demo.folder / "results/tables/blocks.parquet").to_pandas()
    massive = blocks[blocks["massive_sequence_share"] > 0]
    assert set(massive["model"]) == {"mini-mixtral"}
    assert set(massive["top_feature"]) == {truth_of(demo, "mini-mixtral")["massive"]}


def test_the_demo_ends_in_figures_and_a_report(demo):
    names = {path.name for path in (demo.folder / "results/figures").iterdir()}
    expected = {f"{figure}.{ending}" for figure in FIGURES for ending in ("svg", "pdf", "png")}
    assert expected <= names
    assert len(FIGURES) >= 21
    assert (demo.folder / "report.html").stat().st_size > 1e6
    assert (demo.folder / "results/report.html").stat().st_size > 1e5
    verdicts = [json.loads(p.read_text()) for p in (demo.folder / "results/verify").glob("*.json")]
    assert len(verdicts) == len(MODELS)
    assert all(verdict["valid"] for verdict in verdicts)


def test_a_finished_demo_has_nothing_to_do(demo):
    assert demo("-n").nothing_to_do
    assert demo("-n", "results/figures").nothing_to_do


def test_a_damaged_figure_or_collected_file_is_built_again_and_nothing_else(demo, tmp_path):
    run = demo.copy(tmp_path / "run")
    before = run.digests()
    (run.folder / "results/figures/forest.png").unlink()
    assert run("-n").jobs == {"figures": 1}
    csv = run.folder / "results/tables/features.csv"
    kept = csv.rename(run.folder / "kept.csv")
    assert run("-n").jobs["tables"] == 1
    kept.rename(csv)
    with (run.folder / "results/plots/kurtosis.pdf").open("ab") as file:
        file.write(b"x")
    said = run()
    assert said.code == 0, said.text
    assert said.damaged.keys() == {"results/figures", "results/plots/kurtosis.pdf"}
    assert said.jobs == {"plot": 1, "figures": 1, "report": 1}
    assert run.digests() == before
    assert run("-n").nothing_to_do


@pytest.mark.slow
def test_a_damaged_table_is_built_again_and_no_number_with_it(demo, tmp_path):
    run = demo.copy(tmp_path / "run")
    before = run.digests()
    (run.folder / "results/tables/blocks.parquet").write_bytes(b"")
    said = run()
    assert said.damaged.keys() == {"results/tables/blocks.parquet"}
    assert not {"extract", "metrics", "bootstrap", "verify"} & said.jobs.keys()
    assert run.digests() == before


def test_a_changed_setting_of_the_bootstrap_extracts_nothing(demo, tmp_path):
    overlay = yaml.safe_load(demo.overlay.read_text()) | {"bootstrap": {"resamples": 999}}
    run = demo.copy(tmp_path / "run")
    run.overlay = tmp_path / "overlay.yaml"
    run.overlay.write_text(yaml.safe_dump(overlay))
    said = run("-n")
    assert "bootstrap" in said.jobs
    assert not {"texts", "tokenize", "extract", "verify"} & said.jobs.keys()


def test_deleting_one_batch_computes_that_batch_and_what_lies_behind_it(demo, tmp_path):
    run = demo.copy(tmp_path / "run")
    for path in run.pair("mini-glm", 4):
        path.unlink()
    said = run("-n", "results/figures")
    assert said.jobs["extract"] == 1
    assert said.jobs["verify"] == 1
    assert "tokenize" not in said.jobs


@pytest.mark.slow
def test_the_same_analysis_again_gives_the_same_bytes(demo, tmp_path):
    run = demo.copy(tmp_path / "run")
    before = run.digests()
    said = run("--forcerun", "comparison", "tables", "--until", "figures", "report")
    assert said.code == 0, said.text
    assert run.digests() == before
