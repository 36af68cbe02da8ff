"""All metrics of a model: what must change no number, degenerate data, and what is not recorded."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from support import synthetic
from support.synthetic import Plant, Shape

from moe_outliers.inference import bootstrap
from moe_outliers.metrics import values
from moe_outliers.metrics.criteria import Criteria
from moe_outliers.metrics.measure import TABLES, VARIABLES, measure
from moe_outliers.metrics.values import METRICS, NOT_RECORDED
from moe_outliers.storage import statistics_file

CRITERIA = Criteria({"z": 4, "x": 6, "y": 4}, layer_share=0.25, position_share=0.06)
SHAPE = Shape(sequences=16, blocks=8, width=80, positions=96, dense=1)
PLANTS = [Plant(5, size=5), Plant(9, "band", 0.5, size=5), Plant(20, "random", 0.4, size=5)]


@pytest.fixture(scope="module")
def model():
    return synthetic.planted(PLANTS, SHAPE, gain=1.4)


@pytest.fixture(scope="module")
def tables(model):
    return measure("m", *model, CRITERIA, 0)


def _intervals(tables):
    return bootstrap.bootstrap(
        tables["values"], tables["sequences"], CRITERIA, resamples=199, confidence=0.95, seed=0
    )


def _same(one, other, ignore=()):
    """Compare tables by value, texts exactly and numbers to rounding."""
    assert set(one) == set(other)
    for name in one:
        a, b = (t[name].drop_columns([c for c in ignore if c in t[name].column_names]).to_pandas()
                for t in (one, other))  # fmt: skip
        keys = [c for c in a if a[c].dtype.kind not in "f"]
        for column in keys:
            assert a[column].equals(b[column]), (name, column)
        numbers = [c for c in a if c not in keys]
        assert np.allclose(a[numbers], b[numbers], rtol=1e-11, atol=1e-13, equal_nan=True), name


def test_every_table_has_its_columns_and_says_what_they_mean(tables):
    assert set(tables) == set(TABLES)
    for name, table in tables.items():
        assert table.schema.equals(TABLES[name]), name
        assert all((field.metadata or {})[b"meaning"] for field in TABLES[name]), name
        assert table.num_rows, name


def test_a_number_of_the_whole_model_has_no_key_that_narrows_it(monkeypatch):
    """A key that is added later narrows too, and no module must be told."""
    monkeypatch.setitem(values.KEYS, "quantile", (pa.float64(), "not there yet"))
    plain = dict.fromkeys(values.KEYS)
    table = pd.DataFrame([plain, *(plain | {key: "something"} for key in values.KEYS)])
    rows = values.of_whole_model(table).notna().to_numpy()
    found = [[key for key, there in zip(values.KEYS, row, strict=True) if there] for row in rows]
    assert found == [[], *([key] for key in values.WHOLE_MODEL_KEYS)]


def test_the_planted_truth_is_recovered(tables):
    found = tables["features"].to_pandas().set_index("feature")
    assert found["class"][[5, 9, 20]].tolist() == ["systematic", "banded", "probabilistic"]
    assert (found["class"].drop([5, 9, 20]) == "none").all()
    assert found["extent_share"][[5, 9]].tolist() == [1, 0.5]
    assert found["mass_rank"][5] == 1
    cells = tables["sensitivity"].to_pandas()
    at = cells[cells["headline"] & (cells["basis"] == "z")].iloc[0]
    assert (at["n_dims"], at["candidates"], at["surrogate_n_dims"]) == (3, 3, 0)


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.waits), 8, 16])
def test_how_sequences_are_grouped_into_files_changes_no_number(model, tables, size, tmp_path):
    data, tokens = model
    paths = []
    for start in range(0, 16, size):
        paths.append(tmp_path / f"{start:02d}.nc")
        statistics_file.write(data.isel(sequence=slice(start, start + size)), paths[-1])
    read = statistics_file.read_all(paths[::-1], VARIABLES)
    again = measure("m", read, tokens, CRITERIA, 0)
    for name in tables:
        assert again[name].equals(tables[name]), name


def test_the_order_of_the_sequences_changes_no_number(model, tables):
    data, tokens = model
    order = np.random.default_rng(1).permutation(16)
    # the same sequences under other indices
    moved = data.isel(sequence=order).assign_coords(sequence=np.arange(16, dtype="int32"))
    renumbered = tokens.take(order).set_column(0, "sequence", pa.array(range(16), pa.int32()))
    again = measure("m", moved, renumbered, CRITERIA, 0)
    names = ("sequence", "largest_sequence")
    for name in tables:
        mine, theirs = (t[name].drop_columns([c for c in names if c in t[name].column_names])
                        for t in (tables, again))  # fmt: skip
        if name != "provenance":
            assert mine.equals(theirs), name
    named = ["model", "one_text_decides"]  # it names a sequence by its index
    before, after = (_intervals(t).drop_columns(named) for t in (tables, again))
    assert before.equals(after)


def test_permuting_features_permutes_the_features_and_changes_no_number(model, tables):
    data, tokens = model
    order = np.random.default_rng(2).permutation(SHAPE.width)
    place = np.argsort(order)
    permuted = data.isel(feature=order)
    named = data["position_feature"]
    permuted["position_feature"] = (named.dims, place[named.values].astype("uint16"))
    again = measure("m", permuted, tokens, CRITERIA, 0)
    mine, theirs = (t["features"].to_pandas() for t in (tables, again))
    theirs = theirs.iloc[place].reset_index(drop=True)
    for column in set(mine) - {"feature", "mass_rank"}:  # ties of rank go by number
        if mine[column].dtype.kind == "f":
            assert np.allclose(mine[column], theirs[column], rtol=1e-11, equal_nan=True), column
        else:
            assert mine[column].equals(theirs[column]), column
    whole = ("sensitivity", "stability", "cross_batch", "tokens", "sequences")
    _same({n: tables[n] for n in whole}, {n: again[n] for n in whole})
    before, after = ({"i": pa.Table.from_pandas(_of_model(_intervals(t)))} for t in (tables, again))
    _same(before, after)


def _of_model(table):
    """Intervals that name no feature, by their keys."""
    frame = table.to_pandas()
    frame = frame[frame["feature"].isna()].drop(columns=["feature"])
    keys = [c for c in frame if c not in ("estimate", "low", "high", "degenerate")]
    return frame.sort_values(keys, ignore_index=True)


def test_statistics_that_are_in_order_are_not_copied(model):
    from moe_outliers.metrics.model_statistics import ModelStatistics

    data, tokens = model
    ordered = ModelStatistics.of("m", data, tokens, CRITERIA, 0).statistics
    again = ModelStatistics.of("m", ordered, tokens, CRITERIA, 0).statistics
    assert np.shares_memory(again.x_count.values, ordered.x_count.values)


def test_no_outliers_at_all(tmp_path):
    data, tokens = synthetic.planted([], Shape(sequences=8, blocks=2, width=64, positions=64))
    tables = measure("m", data, tokens, CRITERIA, 0)
    cells = tables["sensitivity"].to_pandas().query("headline")
    assert set(cells["model_class"]) == {"no_outliers"}
    found = _intervals(tables).to_pandas().query("headline").set_index(["metric", "basis"])
    row = found.loc[("extent_site_share", "z")]
    assert (row["method"], row["degenerate"]) == ("none", "no candidates")
    assert found.loc[("legacy_count", np.nan), "estimate"].item() == 0
    assert tables["stability"]["jaccard"].null_count == 200


@pytest.mark.parametrize("sequences", [2, 3, 8])
@pytest.mark.parametrize("blocks", [1, 2])
def test_few_sequences_and_blocks_give_every_table(sequences, blocks):
    shape = Shape(sequences=sequences, blocks=blocks, width=64, positions=64, experts=2, picks=1)
    data, tokens = synthetic.planted([Plant(1, size=6.5)], shape)
    tables = measure("m", data, tokens, CRITERIA, 0)
    assert (sequences < 8) == ("unclassified" in tables["sensitivity"]["model_class"].to_pylist())
    assert _intervals(tables).num_rows


def test_what_a_file_lacks_is_called_not_recorded(model):
    data, tokens = model
    lean = data.drop_vars(["route", "int8_error", "token_nll"])
    tables = measure("m", lean, tokens, CRITERIA, 0)
    assert tables["experts"].num_rows == 0
    found = _intervals(tables).to_pandas()
    missing = found[found["degenerate"] == NOT_RECORDED]
    assert {"load_cv", "int8_sqnr_db", "perplexity", "nll", "route_information"} <= set(
        missing["metric"]
    )
    assert missing["estimate"].isna().all()
    assert len(missing["metric"]) == missing["metric"].nunique()


def test_a_model_without_experts_is_measured():
    shape = Shape(sequences=8, blocks=2, width=64, positions=64, dense=2)
    data, tokens = synthetic.planted([Plant(1, size=6.5)], shape)
    tables = measure("m", data, tokens, CRITERIA, 0)
    assert tables["experts"].num_rows == 0
    assert set(tables["blocks"]["channel_mixer"].to_pylist()) == {"mlp"}


def test_extents_of_linear_and_full_attention_are_told_apart():
    shape = Shape(sequences=8, blocks=8, width=64, positions=64, linear=True)
    tables = measure("m", *synthetic.planted([Plant(1, size=6.5)], shape), CRITERIA, 0)
    mixers = tables["values"].to_pandas()["mixer"].dropna().unique()
    assert {"linear_attention", "attention"} <= set(mixers)


def test_every_metric_of_the_catalogue_is_measured_and_named_with_its_unit(tables):
    measured = set(tables["values"]["metric"].to_pylist())
    elsewhere = {"perplexity", "bits_per_byte_common"}  # of bootstrap, of comparison
    assert measured | elsewhere == set(METRICS)
    for name, metric in METRICS.items():
        assert name.endswith("_share") == (metric.unit == "share"), name
    shares = tables["values"].to_pandas()
    shares = shares[shares["metric"].str.endswith("_share")]["value"].dropna()
    assert shares.between(0, 1).all()


def test_intervals_hold_their_estimates_and_shares_stay_shares(tables):
    found = _intervals(tables).to_pandas()
    made = found[found["low"].notna()]
    assert (made["low"] <= made["estimate"] + 1e-12).all()
    assert (made["estimate"] <= made["high"] + 1e-12).all()
    shares = made[made["unit"] == "share"]
    assert shares["low"].min() >= 0
    assert shares["high"].max() <= 1
    unions = found[found["metric"].isin(["legacy_count", "n_dims", "consistency"])]
    assert unions["low"].isna().all()
    assert set(unions["method"]) == {"none"}
    ppl, nll = (found[found["metric"] == m].iloc[0] for m in ("perplexity", "nll"))
    assert ppl["high"] == pytest.approx(np.exp(nll["high"]))


def test_sequences_of_the_statistics_must_be_in_the_tokens_file(model):
    data, tokens = model
    with pytest.raises(ValueError, match=r"sequences \[15\] are not in the tokens file"):
        measure("m", data, tokens.slice(0, 15), CRITERIA, 0)


def test_single_features_are_chosen_on_even_and_scored_on_odd_sequences(model, tables):
    values = tables["values"].to_pandas()
    single = values[values["feature"].notna()]
    order = tables["sequences"]["sequence"].to_pylist()
    assert set(single["sequence"]) == set(order[1::2])
    assert set(single["feature"]) == {5, 9, 20}


def test_the_class_without_each_sequence_is_that_of_the_others(model, tables):
    """One sequence left out of the file altogether: the same class, up to its own draws."""
    data, tokens = model
    rows = tables["cross_batch"].to_pandas().query("basis == 'z'").set_index("sequence")
    for left in (0, 5):
        rest = data.isel(sequence=[s for s in range(16) if s != left])
        again = measure("m", rest, tokens, CRITERIA, 0)["sensitivity"].to_pandas()
        alone = again[again["headline"] & (again["basis"] == "z")].iloc[0]
        assert rows.loc[left, "model_class"] == alone["model_class"]


def _next_format(data):
    """Add what a file of the next format has: sums of z that make feature 5 wide, 9 constant."""
    t = float(data["positions"].values[0])
    square = np.full(data["z_max"].shape, t)
    square[:, :, [5, 9]] = 16 * t
    total = np.zeros_like(square)
    total[:, :, 9] = 4 * t
    dims = ("sequence", "site", "feature")
    added = {"z_sum": total, "z_square": square, "z_first": np.zeros_like(square)}
    data = data.assign({name: (dims, values) for name, values in added.items()})
    data = data.assign_coords(y_alpha=[4.0, 6.0])
    y = data["z_count"].values[:, :, [1, 3]].copy()
    y[..., 20] = 0  # what reads the sites does not feel this one
    data["y_count"] = (("sequence", "site", "y_alpha", "feature"), y)
    return data


def test_what_the_next_format_has_is_told_and_changes_nothing_else(model, tables):
    data, tokens = model
    again = measure("m", _next_format(data), tokens, CRITERIA, 0)
    one, other = (each["features"].to_pandas() for each in (tables, again))
    new = ["class_y", "felt", "z_kind", "y_extent_share"]
    assert one[new].isna().all().all()
    pd.testing.assert_frame_equal(one.drop(columns=new), other.drop(columns=new))
    assert other.loc[[5, 9], "z_kind"].tolist() == ["wide", "constant"]
    assert other.loc[[5, 9, 20], "felt"].tolist() == [True, True, False]
    assert other["class_y"].drop(20).equals(other["class"].drop(20))
    cells = again["sensitivity"].to_pandas()
    at = cells[cells["headline"]].set_index("basis")
    assert set(at.index) == {"z", "x", "y"}
    assert at.loc["z", "class_not_wide"] != at.loc["z", "model_class"] == "systematic"
    assert at.loc["z", "surrogate_wide"] == 0  # all other features are of one size
    old = tables["sensitivity"].to_pandas()
    assert old["class_not_wide"].isna().all()
    assert old["surrogate_wide"].isna().all()


@pytest.mark.parametrize("factor", [0.125, 8])
def test_scaling_the_gains_moves_x_alone(model, tables, factor):
    """The same network, its gains scaled against what reads them: z and all that is by it stay."""
    _, tokens = model
    scaled = synthetic.planted(PLANTS, SHAPE, gain=1.4 * factor)[0]
    assert np.array_equal(scaled["z_count"], model[0]["z_count"])
    again = measure("m", scaled, tokens, CRITERIA, 0)
    one, other = (each["features"].to_pandas() for each in (tables, again))
    by_z = ["class", "systematic_in", "extent_share", "mass_share", "kappa", "sd_firing_share"]
    pd.testing.assert_frame_equal(one[by_z], other[by_z])
    before, after = (
        each["sensitivity"].to_pandas().query("headline").set_index("basis")["model_class"]
        for each in (tables, again)
    )
    assert before["z"] == after["z"] == "systematic"
    assert before["x"] != after["x"]
    of_z = [
        each[~each["metric"].isin(OF_X)].reset_index(drop=True)
        for each in (_intervals(t).to_pandas().query("basis == 'z'") for t in (tables, again))
    ]
    pd.testing.assert_frame_equal(*of_z)


OF_X = ("magnitude", "feature_magnitude", "one_sided_share", "type_coverage_share")
"""Numbers of features chosen by z that are of x."""


def test_a_class_that_hangs_on_one_sequence_says_on_which():
    """A feature at .75 of the sites in 8 of 9 sequences: without one of them nothing is sure."""
    data, tokens = synthetic.planted(
        [Plant(5, size=4.5)], Shape(sequences=9, blocks=4, width=96, positions=64)
    )
    data["z_count"][3, :, :, 5] = 0
    found = measure("m", data, tokens, CRITERIA, 0)["cross_batch"].to_pandas()
    classes = found[found["basis"] == "z"].set_index("sequence")["model_class"]
    assert classes[3] == "systematic"
    assert set(classes.drop(3)) == {"indeterminate"}
