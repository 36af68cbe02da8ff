"""Models against each other, against earlier work, and the tables of the sweep."""

import itertools
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import stats
from support import synthetic
from support.snake import ROOT
from support.synthetic import Plant, Shape

from moe_outliers.inference import bootstrap, comparison, simulate_classes, simulate_intervals
from moe_outliers.inference.simulate_classes import Truth
from moe_outliers.metrics.criteria import Criteria
from moe_outliers.metrics.measure import TABLES, measure
from moe_outliers.report import earlier_work, reader_warnings, sentences, summary, tables, words
from moe_outliers.stats import sign_flip
from moe_outliers.stats.multiplicity import holm
from moe_outliers.storage import parquet

CRITERIA = Criteria({"z": 4, "x": 6, "y": 4}, layer_share=0.25, position_share=0.06)
LEVEL = {"resamples": 199, "confidence": 0.95, "seed": 0}
MEASURED = {
    "data": {"source": "text", "path": "a.txt", "subset": "", "revision": "local", "bos": "none"},
    "extract": {"dtype": "auto", "alphas": [3, 4, 6]},
}
PLANTED = {
    "olmoe-1b-7b": [Plant(3, size=5), Plant(4, "band", 0.5, size=5)],
    "gpt-oss-20b": [Plant(3, size=6), Plant(5, "random", 0.4, size=5)],
    "quiet": [],
}


def _row(model, number):
    sizes = {"layers": 6, "width": 64, "experts": 8, "top_k": 2}
    shape = {"params_b": 7.0 * number, "active_b": 1.0, **sizes}
    return {"model": model, "number": f"0{number}", "repo": "r", "revision": "local", **shape}


@pytest.fixture(scope="module")
def sweep():
    shape = Shape(sequences=8, blocks=6, width=64, positions=96)
    found = {}
    for seed, (model, plants) in enumerate(PLANTED.items()):
        data, tokens = synthetic.planted(plants, shape, seed=seed, gain=1.3)
        found[model] = measure(model, data, tokens, CRITERIA, 0)
        own = found[model]
        own["intervals"] = bootstrap.bootstrap(own["values"], own["sequences"], CRITERIA, **LEVEL)
    rows = {model: _row(model, number) for number, model in enumerate(PLANTED, 1)}
    return found, rows


def _compare(sweep, models=tuple(PLANTED)):
    found, rows = sweep
    measured = {
        model: comparison.Measured(
            *(found[model][name] for name in ("values", "sequences", "tokens")), row=rows[model]
        )
        for model in models
    }
    return comparison.compare(measured, CRITERIA, **LEVEL)


@pytest.fixture(scope="module")
def compared(sweep):
    return _compare(sweep)


@pytest.fixture(scope="module")
def collected(sweep, compared):
    criteria = {"confidence": 0.95, "seed": 0}
    validated = {
        "coverage": simulate_intervals.coverage([8], sets=20, **criteria),
        "selection": simulate_intervals.selection([8], 0.25, sets=3, **criteria),
        **simulate_classes.simulate([8], CRITERIA, models=2, **criteria),
    }
    expectations = earlier_work.read(ROOT / "config/reference.yaml")
    return tables.collect(*sweep, compared, validated, expectations)


def test_every_model_is_in_every_table_of_models(collected):
    for name in [*tables.OF_MODELS, "models", "intervals", "stable_ranges", "legacy"]:
        table = collected[name]
        there = set(table["model"].to_pylist())
        assert there == set(PLANTED) - ({"quiet"} if name == "feature_tokens" else set()), name


def test_every_table_is_typed_and_every_column_explained(collected):
    assert list(collected) == list(tables.TABLES)
    for name, schema in tables.TABLES.items():
        assert collected[name].schema.equals(schema), name
    explained = collected["dictionary"].to_pylist()
    assert {(row["table"], row["column"]) for row in explained} == {
        (name, column) for name, schema in tables.TABLES.items() for column in schema.names
    }
    assert all(row["meaning"] for row in explained)
    for table, column in ((t, c) for t, s in tables.TABLES.items() for c in s.names):
        if column.endswith("_share"):
            values = collected[table][column].drop_null().to_numpy(zero_copy_only=False)
            assert column == "jump_share" or ((values >= 0) & (values <= 1)).all(), (table, column)


def test_the_rule_writes_exactly_these_tables():
    text = (ROOT / "rules/tables.smk").read_text()
    listed = text.partition("tables = [")[2].partition("]")[0]
    assert [word.strip(' ",') for word in listed.split()] == list(tables.TABLES)
    for name in TABLES:
        path = f"{{model}}{'' if name == 'values' else '.' + name}.parquet"
        assert f'{name}="results/metrics/{path}"' in (ROOT / "rules/metrics.smk").read_text()


def test_the_classes_of_the_models(collected):
    found = collected["models"].to_pandas().set_index("model")["model_class"]
    assert found.to_dict() == {
        "olmoe-1b-7b": "systematic", "gpt-oss-20b": "systematic", "quiet": "no_outliers",
    }  # fmt: skip


def test_the_summary_is_json_and_says_what_the_tables_say(collected):
    told = json.loads(
        json.dumps(summary.summarise(collected, vars(CRITERIA), 0, MEASURED), allow_nan=False)
    )
    model = told["models"]["gpt-oss-20b"]
    assert model["model_class"] == "systematic"
    assert model["features"][0]["feature"] == 3
    numbers = collected["intervals"].to_pandas()
    row = numbers[
        (numbers["model"] == "gpt-oss-20b")
        & (numbers["metric"] == "n_dims_sequence")
        & (numbers["basis"] == "z")
        & numbers["headline"]
    ].iloc[0]
    assert model["numbers"]["n_dims_sequence"]["z"]["estimate"] == row["estimate"]
    assert told["models"]["quiet"]["numbers"]["extent_site_share"]["z"]["estimate"] is None
    mass = numbers[numbers["class"].eq("systematic") & numbers["model"].eq("gpt-oss-20b")].iloc[0]
    told_mass = model["mass_shares"]["systematic"]
    assert [told_mass[name] for name in ("estimate", "low", "high")] == pytest.approx(
        mass[["estimate", "low", "high"]].tolist()
    )
    assert set(model["type_shares"]) == {"first", "delimiter", "other"}
    assert len(model["cross_batch"]) == 8
    assert model["features"][0]["held_out_extent_low"] < 1


def test_every_difference_that_survives_is_told_with_its_interval(collected):
    told = summary.summarise(collected, vars(CRITERIA), 0, MEASURED)
    rows = collected["differences"].to_pandas().query("p_holm <= 0.05")
    assert len(rows) > 2
    said = {}
    for sentence, found in sentences.differences(told):
        most = max(found, key=lambda row: abs(row["estimate"]))
        every = sum(row["n"] in (row["above"], row["below"]) for row in found)
        assert f"{len(found)} of 3 pairs differ, {every} of them in the same" in sentence
        assert f"{most['model_a']} less {most['model_b']} {words.interval(most)}." in sentence
        said |= {(r["metric"], r["basis"], r["model_a"], r["model_b"]): r for r in found}
    assert len(said) == len(rows)
    for row in rows.itertuples():
        basis = row.basis if isinstance(row.basis, str) else None
        found = said[row.metric, basis, row.model_a, row.model_b]
        assert found["estimate"] == pytest.approx(row.estimate)
        low = np.nan if found["low"] is None else found["low"]
        assert low == pytest.approx(row.low, nan_ok=True)
    assert not list(sentences.differences(told | {"differences": []}))


def test_the_mass_of_a_models_class_has_its_interval(collected):
    told = summary.summarise(collected, vars(CRITERIA), 0, MEASURED)["models"]["gpt-oss-20b"]
    mass = told["mass_shares"]["systematic"]
    share = words.interval(mass, percent=True)
    said = f"1 feature is systematic and holds {share} of the outlier mass;"
    assert mass["low"] < mass["estimate"] < mass["high"]
    assert said in sentences.how_sure("m", told)
    assert "Each of 8 sequences left out: 2 to 2 candidates" in sentences.cross_batch(told)


def _by_text(own, metric, basis):
    """A compared metric of one model by text, at the thresholds of the headline."""
    values = own["values"].to_pandas()
    values = values[(values["metric"] == metric) & values["sequence"].notna()]
    values = values[values["basis"].eq(basis) if isinstance(basis, str) else values["basis"].isna()]
    values = values[values[["kind", "mixer", "site", "block"]].isna().all(axis=1)]
    alpha = CRITERIA.at(basis) if isinstance(basis, str) else 6
    values = values[values["alpha"].isin([alpha]) | values["alpha"].isna()]
    values = values[values["position_share"].isin([0.06]) | values["position_share"].isna()]
    text = own["sequences"].to_pandas().set_index("sequence")["text_sha256"]
    return pd.Series(values["value"].to_numpy(), index=values["sequence"].map(text))


def test_differences_are_paired_by_text_with_the_p_values_of_all_signs(sweep, compared):
    rows = compared["differences"].to_pandas()
    assert len(rows) == 3 * len(comparison.COMPARED)
    told = 0
    for row in rows[rows["metric"] != "bits_per_byte_common"].itertuples():
        a, b = (_by_text(sweep[0][m], row.metric, row.basis) for m in (row.model_a, row.model_b))
        paired = (a - b).dropna()
        assert row.n == len(paired)
        assert (row.above, row.below) == ((paired > 0).sum(), (paired < 0).sum())
        if not len(paired):
            assert np.isnan(row.p)
            continue
        signs = np.array(list(itertools.product((1, -1), repeat=len(paired))))
        assert row.estimate == pytest.approx(paired.mean(), abs=1e-12)
        means = np.abs((signs * paired.to_numpy()).mean(axis=1))
        assert row.p == (means >= abs(paired.mean()) - 1e-9 * paired.abs().mean()).mean()
        if row.method == "t":
            ends = stats.ttest_1samp(paired, 0).confidence_interval(0.95)
            assert (row.low, row.high) == pytest.approx(tuple(ends))
            spread = np.sqrt((a[paired.index].var() + b[paired.index].var()) / 2)
            assert row.effect_sd == pytest.approx(paired.mean() / spread)
            told += 1
        else:
            assert np.isnan(row.low)
    assert told > 9
    assert (rows["estimate"].dropna() != 0).sum() > 9
    for _, family in rows.groupby("metric"):
        for _, pairs in family.groupby("basis", dropna=False):
            assert np.allclose(pairs["p_holm"], holm(pairs["p"].to_numpy()), equal_nan=True)
            tested = pairs["p"].notna().sum()
            there = pairs[pairs["n"] > 0]
            assert (there["least_p_holm"] == np.minimum(1, tested * 2.0 ** (1 - there["n"]))).all()


def test_a_difference_that_is_the_same_on_every_text_survives_and_is_told(sweep):
    """Planted: a number that is 2 more in one model than in another on each of eight texts."""
    found, rows = sweep
    values = found["quiet"]["values"].to_pandas()
    values.loc[values["metric"].eq("n_dims_alone"), "value"] = 40.0
    changed = found["quiet"] | {
        "values": pa.Table.from_pandas(values, schema=found["quiet"]["values"].schema,
                                       preserve_index=False)}  # fmt: skip
    compared = _compare((found | {"quiet": changed}, rows))["differences"].to_pandas()
    of = compared[compared["metric"].eq("n_dims_alone") & compared["model_b"].eq("quiet")]
    assert set(of["degenerate"]) == {"constant"}
    assert (of["p"] == 2.0**-7).all()
    assert (of["p_holm"] <= 0.05).all()
    assert (of[["above", "below"]].max(axis=1) == 8).all()


def test_a_pair_whose_verdict_hangs_on_one_text_names_it():
    """Seven texts differ by 1 and one by nothing: without it all differ, and the pair survives."""
    texts = [f"{n:02d}" for n in range(10)]
    documents = {text: f"sequence {n} (d{n})" for n, text in enumerate(texts)}
    hangs = pd.Series([1.0] * 5 + [-1.0] + [1.0] * 4, index=texts)
    sure, never = pd.Series(np.full(10, 2.0), index=texts), pd.Series(np.zeros(10), index=texts)
    found = comparison._deciding_texts([hangs, sure, never], documents, 0)
    p = [sign_flip.p_value(each.to_numpy(), np.random.default_rng(0)) for each in (hangs, sure)]
    assert 3 * p[1] <= 0.05 / 2  # of three pairs
    assert holm(np.array([*p, 1.0])).tolist()[0] <= 0.05
    assert found[1:] == [None, None]
    without = [hangs.drop(text) for text in texts]
    verdicts = [
        holm(np.array([sign_flip.p_value(each.to_numpy(), None), 2.0**-8, 1.0]))[0] <= 0.05
        for each in without
    ]
    assert found[0] == documents[texts[verdicts.index(False)]]


def test_correlations_are_those_of_the_models_means(sweep, compared):
    rows = compared["correlations"].to_pandas()
    found, models = sweep
    sizes = [models[model]["params_b"] for model in PLANTED]
    checked = 0
    for row in rows[rows["property"] == "params_b"].itertuples():
        if row.metric == "bits_per_byte_common":
            continue
        means = [_by_text(found[m], row.metric, row.basis).mean() for m in PLANTED]
        there = ~np.isnan(means)
        assert row.models == there.sum()
        if there.sum() == 3 and np.ptp(means) > 0:
            assert row.rho == pytest.approx(stats.spearmanr(sizes, means).statistic)
            checked += 1
    assert checked > 2
    assert np.allclose(rows["p_holm"], holm(rows["p"].to_numpy()), equal_nan=True)
    assert rows["least_abs_rho"].isna().all()  # three models show nothing


def test_bits_per_byte_are_compared_on_the_bytes_that_all_models_predict(sweep, compared):
    bits = compared["intervals"].to_pandas()
    assert set(bits["model"]) == set(PLANTED)
    assert set(bits["n"]) == {8}
    lengths = {
        model: found["sequences"].to_pandas()["last_end_byte"] for model, found in sweep[0].items()
    }
    assert pd.DataFrame(lengths).std(axis=1).min() > 0  # the tokenizers differ
    tokens = {model: found["tokens"].to_pandas() for model, found in sweep[0].items()}
    first = {m: f["sequences"].to_pandas().set_index("sequence")["first_end_byte"]
             for m, f in sweep[0].items()}  # fmt: skip
    wanted = dict.fromkeys(PLANTED, 0.0)
    for sequence in range(8):
        own = {m: rows[rows["sequence"] == sequence] for m, rows in tokens.items()}
        common = set.intersection(*({first[m][sequence], *own[m]["end_byte"]} for m in own))
        low, high = min(common), max(common)
        for model, rows in own.items():
            inside = rows["nll_nat"][(rows["end_byte"] > low) & (rows["end_byte"] <= high)]
            wanted[model] += inside.sum() / np.log(2) / (high - low) / 8
    assert bits.set_index("model")["estimate"].to_dict() == pytest.approx(wanted)


def test_one_model_alone_is_compared_with_nothing(sweep):
    alone = _compare(sweep, ["olmoe-1b-7b"])
    assert alone["differences"].num_rows == 0
    assert set(alone["correlations"]["rho"].to_pylist()) == {None}


def test_models_without_losses_are_compared_in_all_else(sweep):
    found, rows = sweep
    lean = {
        model: own | {"tokens": own["tokens"].slice(0, 0)} if model == "quiet" else own
        for model, own in found.items()
    }
    compared = _compare((lean, rows))
    bits = compared["intervals"].to_pandas().set_index("model")
    assert bits.loc["quiet", "degenerate"] == "not recorded"
    assert bits["n"].drop("quiet").tolist() == [8, 8]
    assert compared["differences"].num_rows == 3 * len(comparison.COMPARED)


def test_stable_ranges_hold_the_headline_and_stay_within_what_was_tried(collected):
    found = collected["stable_ranges"].to_pandas()
    assert (found["tried_low"] <= found["low"]).all()
    assert (found["low"] <= found["at"]).all()
    assert (found["at"] <= found["high"]).all()
    row = found.query(
        "model == 'gpt-oss-20b' and headline == 'model_class' and basis == 'z' and along == 'alpha'"
    ).iloc[0]
    assert row["low"] <= 4 == row["high"] == row["tried_high"]  # sqrt(64) / 2 is out of reach
    by_x = found.query("model == 'gpt-oss-20b' and basis == 'x' and along == 'alpha'")
    assert by_x["tried_high"].max() == 20


def test_what_was_expected_is_compared_and_never_read_before():
    sources = [p.read_text() for p in (ROOT / "src/moe_outliers").rglob("*.py")]
    sources += [p.read_text() for p in (ROOT / "scripts").glob("*.py")]
    assert sum("reference.yaml" in text for text in sources) == 1  # the module that reads it
    rules = {p.name: "reference.yaml" in p.read_text() for p in (ROOT / "rules").glob("*.smk")}
    assert [name for name, reads in rules.items() if reads] == ["tables.smk"]


def test_expectations_are_met_within_their_range_or_rounding(collected):
    rows = collected["reference"].to_pandas()
    assert set(rows["model"]) == {"olmoe-1b-7b", "gpt-oss-20b"}
    classes = rows[rows["quantity"] == "model_class"].set_index("model")
    assert classes["agrees"].to_dict() == {"olmoe-1b-7b": False, "gpt-oss-20b": True}
    wide = rows[rows["feature"] == 773]
    assert wide["agrees"].isna().all()  # these models have 64 features
    old = collected["legacy"].to_pandas().query("model == 'gpt-oss-20b' and quantity == 'count'")
    assert set(old["published"]) == {1465}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{ source: x, models: [m], quantity: q, low: 0, high: 1 }", "x is not among the sources"),
        ("{ source: s, models: [m], quantity: q, low: 0 }", "q needs `low` and `high`"),
    ],
)
def test_a_fault_in_the_expectations_is_named(tmp_path, entry, message):
    path = tmp_path / "reference.yaml"
    path.write_text(f"sources: {{ s: text }}\nexpectations: [{entry}]\npublished: []\n")
    with pytest.raises(ValueError, match=message):
        earlier_work.read(path)


def test_warnings_say_what_a_reader_must_know(sweep, compared):
    _, rows = sweep
    shape = Shape(sequences=3, blocks=6, width=64, positions=96)
    data, tokens = synthetic.planted([Plant(3, size=5)], shape, gain={9: 4.0})
    few = measure("olmoe-1b-7b", data.drop_vars("route"), tokens, CRITERIA, 0)
    few["intervals"] = bootstrap.bootstrap(few["values"], few["sequences"], CRITERIA, **LEVEL)
    validated = dict.fromkeys(("coverage", "selection", "classes"), compared["differences"])
    with pytest.raises(KeyError):
        tables.collect({"olmoe-1b-7b": few}, rows, compared, validated, {})
    expectations = {"sources": {}, "expectations": [], "published": []}
    validated = {
        "coverage": simulate_intervals.COVERAGE.empty_table(),
        "selection": simulate_intervals.SELECTION.empty_table(),
        "classes": simulate_classes.CLASSED.empty_table(),
        "discoveries": simulate_classes.DISCOVERIES.empty_table(),
    }
    one = tables.collect({"olmoe-1b-7b": few}, rows, compared, validated, expectations)
    named = set(one["warnings"]["warning"].to_pylist())
    assert {"few_sequences", "gain", "not_recorded"} <= named
    assert "dtype" not in named
    (row,) = one["models"].to_pylist()
    usual = "bfloat16" if row["dtype"] == "float32" else "float32"
    others = [row | {"model": "a", "dtype": usual}, row | {"model": "b", "dtype": usual}]
    mixed = one | {"models": parquet.of_rows(tables.MODELS, [row, *others])}
    told = reader_warnings.warnings(["olmoe-1b-7b"], mixed).to_pylist()
    (said,) = [each["detail"] for each in told if each["warning"] == "dtype"]
    assert said.startswith(f"computed in {row['dtype']}, most models of this sweep in {usual}")


def test_validation_names_every_interval_and_class():
    found = simulate_classes.simulate([8], CRITERIA, models=25, confidence=0.95, seed=0)
    rows, discoveries = (found[name].to_pandas() for name in ("classes", "discoveries"))
    labels = [c for c in rows if c.endswith("_share") and c != "wrong_share"]
    assert np.allclose(rows[labels].sum(axis=1), 1)
    null = rows[rows["truth"].isin(["random", "run", "attn_in", "trend", "gaussian"])]
    assert null["wrong_share"].max() <= 0.05
    assert discoveries["planted"].tolist() == ["all", "null"]
    assert discoveries["false_discovery_share"].max() <= 0.05
    assert discoveries["called"][0] > 12  # of 18 that are
    selected = simulate_intervals.selection([8], 0.25, sets=60, confidence=0.95, seed=0).to_pandas()
    bias = selected.set_index("estimator")["bias"]
    assert abs(bias["cross_fit"]) < 0.005
    assert bias["same_data"] > 0.02


def test_false_discoveries_are_counted_model_by_model():
    truths = (
        Truth("systematic", 1.0, "systematic"),
        Truth("banded", 0.5, "banded"),
        Truth("run", 0.4),
    )
    right = [["systematic"] * 2, ["banded"] * 2, ["probabilistic"] * 2]
    wrong = [["systematic", "banded"], ["indeterminate"] * 2, ["none", "systematic"]]
    nothing = [["indeterminate"] * 2] * 3
    label = np.array([right, wrong, nothing])
    found = simulate_classes._discoveries(truths, label, 0.95, np.random.default_rng(0))
    assert (found["features"], found["called"]) == (6, pytest.approx(7 / 3))
    assert found["false_discovery_share"] == pytest.approx((0 + 2 / 3 + 0) / 3)


@pytest.mark.slow
def test_validation_in_full():
    found = simulate_classes.simulate([8, 16, 32], CRITERIA, models=200, confidence=0.95, seed=1)
    rows, discoveries = (found[name].to_pandas() for name in ("classes", "discoveries"))
    assert discoveries["high"].max() <= 0.05
    null = rows[rows["truth"].isin(["random", "run", "attn_in", "trend", "gaussian"])]
    assert null["wrong_share"].max() <= 0.05
    planted = rows[rows["truth"].isin(["systematic", "banded"])]
    assert planted["wrong_share"].max() <= 0.02
    often = rows[rows["truth"] == "often"].set_index("n")["systematic_share"]
    assert often[16] == pytest.approx(0.60, abs=0.06)
    assert often[32] == pytest.approx(0.90, abs=0.03)
    selected = simulate_intervals.selection(
        [16], 0.25, sets=600, confidence=0.95, seed=1
    ).to_pandas()
    covered = selected.set_index("estimator")["coverage_share"]
    assert covered["cross_fit"] == pytest.approx(0.96, abs=0.03)
    assert covered["single_feature"] == pytest.approx(0.94, abs=0.03)
    assert covered["same_data"] < 0.35
