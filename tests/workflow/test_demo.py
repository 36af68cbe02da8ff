"""The demo: seven miniatures, texts to report; the planted truth is recovered."""

import json

import numpy as np
import pytest
import yaml
from support.slice import ROOT

from moe_outliers.report.figures.catalogue import FIGURES
from moe_outliers.storage import parquet, statistics_file
from moe_outliers.workflow import settings

MODELS = settings.read_table(ROOT / "config/demo.tsv", ROOT / "config/schemas")
MAGNITUDE, OWN, SHARE, SYSTEMATIC = 6, 3, 0.06, 0.75


def truth_of(demo, model):
    return json.loads((demo.folder.parent / "models" / model / "truth.json").read_text())


@pytest.fixture(scope="module")
def fires(demo):
    """By model: (sequence, site, feature), by x and z, by x alone."""
    found = {}
    for model in MODELS:
        paths = sorted((demo.folder / "results/extract" / model).glob("*.nc"))
        data = statistics_file.read_all(paths)
        least = SHARE * data.sizes["position"]
        x = data.x_count.sel(alpha=MAGNITUDE).values >= least
        z = data.z_count.sel(alpha=OWN).values >= least
        found[model] = (x & z, x)
    return found


@pytest.mark.parametrize("model", MODELS)
def test_the_planted_systematic_features_and_no_others_fire_everywhere(demo, fires, model):
    extent = fires[model][0].mean(1)
    assert (
        list(np.flatnonzero((extent >= SYSTEMATIC).all(0))) == truth_of(demo, model)["systematic"]
    )
    systematic = truth_of(demo, model)["systematic"]
    assert not (np.delete(extent, systematic, axis=1) >= SYSTEMATIC).any()


@pytest.mark.parametrize("model", MODELS)
def test_the_planted_banded_features_fire_at_their_sites_in_every_sequence(demo, fires, model):
    for feature, sites in truth_of(demo, model)["banded"].items():
        for sequence in fires[model][0][:, :, int(feature)]:
            assert list(np.flatnonzero(sequence)) == sites


@pytest.mark.parametrize("model", MODELS)
def test_the_gain_only_features_pass_on_x_and_fail_on_z(demo, fires, model):
    both, x = (each.mean(1).mean(0) for each in fires[model])
    explained = np.flatnonzero((x >= 0.25) & (both < 0.25))
    assert list(explained) == truth_of(demo, model)["gain_only"]


def test_the_tables_name_the_planted_classes(demo):
    features = parquet.read(demo.folder / "results/tables/features.parquet").to_pandas()
    for model in MODELS:
        truth = truth_of(demo, model)
        expected = dict.fromkeys(truth["systematic"], "systematic")
        expected |= dict.fromkeys(map(int, truth["banded"]), "banded")
        expected |= dict.fromkeys(truth["gain_only"], "gain_explained")
        rows = features[(features["model"] == model) & (features["class"] != "none")]
        assert dict(zip(rows["feature"], rows["class"], strict=True)) == expected


def test_the_planted_super_expert_is_named_with_its_feature(demo):
    experts = parquet.read(demo.folder / "results/tables/experts.parquet").to_pandas()
    block, expert, feature = truth_of(demo, "mini-olmoe")["super_expert"]
    rows = experts[(experts["model"] == "mini-olmoe") & experts["super_expert"]]
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
