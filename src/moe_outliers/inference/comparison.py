"""Compares models: paired differences on the same texts, correlations over models."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from moe_outliers.inference import bootstrap
from moe_outliers.metrics import language
from moe_outliers.metrics.criteria import Criteria
from moe_outliers.metrics.model_statistics import named_sequence
from moe_outliers.metrics.values import METRICS, NOT_RECORDED, Values, of_whole_model
from moe_outliers.stats import Array, correlation, draws, intervals, sign_flip
from moe_outliers.stats.multiplicity import LEVEL, holm
from moe_outliers.storage import parquet

COMPARED = (
    ("extent_site_share", "z"), ("extent_site_share", "x"), ("extent_block_share", "z"),
    ("extent_mass_share", "z"), ("sd_pair_share", "z"), ("sd_firing_share", "z"),
    ("n_dims_sequence", "z"), ("n_dims_alone", "z"), ("magnitude", "z"),
    ("k90", "z"), ("k90", "x"), ("gain_free_share", "x"), ("excess_kurtosis", None),
    ("int8_gain_db", None), ("load_entropy_share", None), ("residual_max", None),
    ("massive_ratio", None),
    ("bits_per_byte_common", None),
)  # fmt: skip
"""Metrics that are compared between models, with their basis."""

PROPERTIES = ("params_b", "active_b", "experts", "top_k", "layers", "width")
"""Columns of the table of models that metrics are correlated with, beside bits per byte."""

DIFFERENCES = parquet.schema(
    metric=(pa.string(), "name of the metric; the table `metrics` defines each"),
    basis=(pa.string(), "whose size is asked for: z, x or y"),
    model_a=(pa.string(), "first model of the pair, in order of the table of models"),
    model_b=(pa.string(), "second model"),
    estimate=(pa.float64(), "mean over texts of a's value less b's"),
    low=(pa.float64(), "lower end of the interval"),
    high=(pa.float64(), "upper end of the interval"),
    unit=(pa.string(), "unit of estimate, low and high"),
    method=(pa.string(), "t: Student's t of paired differences; none"),
    n=(pa.int32(), "texts on which both models have a value"),
    confidence=(pa.float64(), "nominal level of the interval, of this pair alone"),
    above=(pa.int32(), "texts on which a's value is the larger"),
    below=(pa.int32(), "texts on which b's is"),
    effect_sd=(
        pa.float64(),
        "estimate in standard deviations between texts, pooled over both models; empty for zero",
    ),
    p=(pa.float64(), "two-sided sign-flip test over texts, exact up to 20; 1 if no text differs"),
    p_holm=(pa.float64(), "p after Holm over all pairs of models, metric by metric"),
    least_p_holm=(
        pa.float64(),
        "smallest p_holm that so many texts and pairs can give: above .05 nothing can survive",
    ),
    one_text_decides=(
        pa.string(),
        "a sequence without whose text the verdict of Holm's correction is another, with its "
        "document; empty: none does",
    ),
    degenerate=(pa.string(), "constant, one sequence, no values; empty for nothing"),
)
"""One row a metric and pair of models."""

LEFT_OUT_DRAWS = 9_999
"""Choices of signs that are drawn where one text of more than 21 is left out."""

CORRELATIONS = parquet.schema(
    property=(pa.string(), "column of the table of models, or bits_per_byte_common"),
    metric=(pa.string(), "name of the metric"),
    basis=(pa.string(), "whose size is asked for: z, x or y"),
    models=(pa.int32(), "models with both"),
    rho=(pa.float64(), "Spearman's rank correlation over models"),
    p=(pa.float64(), "two-sided permutation test, exact up to nine models"),
    p_holm=(pa.float64(), "p after Holm over all rows of this table"),
    least_abs_rho=(
        pa.float64(),
        "smallest abs(rho) without ties whose p_holm can be .05 with so many models and rows; "
        "empty: none can",
    ),
    permutations=(pa.int32(), "permutations tried"),
)
"""One row a property and metric."""


@dataclass(frozen=True)
class Measured:
    """Three tables of one model, and its row of the table of models."""

    values: pa.Table
    sequences: pa.Table
    tokens: pa.Table
    row: Mapping[str, Any]


def compare(
    models: Mapping[str, Measured],
    criteria: Criteria,
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> dict[str, pa.Table]:
    """Compare all models.

    Args:
        models: by slug, in the order of the table of models.
        criteria: of the headline.
        resamples: of the bootstrap of bits per byte.
        confidence: nominal level, in (0, 1).
        seed: of all draws.

    Returns:
        `intervals` (bits per byte on the common span, of bootstrap.SCHEMA), `differences` and
        `correlations`.
    """
    common = _common_bits(models)
    bits = [
        bootstrap.bootstrap(
            common[model],
            measured.sequences,
            criteria,
            resamples=resamples,
            confidence=confidence,
            seed=seed,
        )
        for model, measured in models.items()
    ]
    by_text = {
        model: _by_text(pa.concat_tables([measured.values, common[model]]), measured, criteria)
        for model, measured in models.items()
    }
    return {
        "intervals": pa.concat_tables(bits),
        "differences": _differences(by_text, _documents(models), confidence, seed),
        "correlations": _correlations(models, by_text, seed),
    }


def _common_bits(models: Mapping[str, Measured]) -> dict[str, pa.Table]:
    """Compute bits per byte on the span of each text that every model predicts completely.

    A model whose losses are not recorded does not narrow the span of the others.
    """
    lists = {model: _likelihoods(measured) for model, measured in models.items()}
    recorded = [texts for texts in lists.values() if texts]
    shared = set.intersection(*map(set, recorded)) if recorded else set()
    spans = {text: language.common_span([each[text][0] for each in recorded]) for text in shared}
    tables = {}
    for model, measured in models.items():
        frame = measured.sequences.to_pandas()
        values, own = Values(model, frame["sequence"].to_numpy()), lists[model]
        if own:
            bits = [
                language.span_bits_per_byte(own[text][0][1:], own[text][1], *spans[text])
                if text in shared
                else np.nan
                for text in frame["text_sha256"]
            ]
            values.add("bits_per_byte_common", np.array(bits))
        else:
            values.lack(NOT_RECORDED, "bits_per_byte_common")
        tables[model] = values.table()
    return tables


def _likelihoods(measured: Measured) -> dict[str, tuple[Array, Array]]:
    """Ends of all tokens and likelihoods of the predicted ones, by the digest of the text."""
    frame = measured.tokens.to_pandas()
    by_sequence = dict(iter(frame.groupby("sequence")))
    by_text = {}
    for row in measured.sequences.to_pylist():
        if row["sequence"] in by_sequence:
            part = by_sequence[row["sequence"]]
            ends = np.concatenate([[row["first_end_byte"]], part["end_byte"].to_numpy()])
            by_text[row["text_sha256"]] = (ends, part["nll_nat"].to_numpy())
    return by_text


def _by_text(values: pa.Table, measured: Measured, criteria: Criteria) -> pd.DataFrame:
    """Arrange the compared metrics of one model: texts as rows, (metric, basis) as columns."""
    frame = values.to_pandas()
    frame = of_whole_model(frame[frame["sequence"].notna()])
    frame = frame[bootstrap.headline(frame, criteria)]
    text = dict(zip(*(measured.sequences[n].to_pylist() for n in _PAIRED_BY), strict=True))
    frame = frame.assign(text=frame["sequence"].map(text), basis=frame["basis"].fillna(""))
    table = frame.pivot(index="text", columns=["metric", "basis"], values="value")
    wanted = pd.MultiIndex.from_tuples([(m, b or "") for m, b in COMPARED])
    return table.reindex(columns=wanted).sort_index()


_PAIRED_BY = ("sequence", "text_sha256")


def _differences(
    by_text: Mapping[str, pd.DataFrame],
    documents: Mapping[str, str],
    confidence: float,
    seed: int,
) -> pa.Table:
    """Estimate the paired difference of every pair of models in every compared metric."""
    rows = []
    for metric, basis in COMPARED:
        column = (metric, basis or "")
        family = [
            {"metric": metric, "basis": basis, "model_a": a, "model_b": b}
            | _difference(by_text[a][column], by_text[b][column], confidence, seed)
            for a, b in itertools.combinations(by_text, 2)
        ]
        pairs = [
            (by_text[row["model_a"]][column] - by_text[row["model_b"]][column]).dropna()
            for row in family
        ]
        decides = _deciding_texts(pairs, documents, seed)
        p = np.array([row["p"] for row in family], dtype=float)
        made = int((~np.isnan(p)).sum())
        for row, adjusted, text in zip(family, holm(p), decides, strict=True):
            least = min(1.0, made * sign_flip.least(row["n"]))
            told = {"p_holm": adjusted, "least_p_holm": least, "one_text_decides": text}
            rows.append(row | told)
    rows = [row | {"unit": METRICS[row["metric"]].unit} for row in rows]
    return parquet.of_rows(DIFFERENCES, rows, confidence=confidence)


def _difference(
    a: "pd.Series[float]", b: "pd.Series[float]", confidence: float, seed: int
) -> dict[str, Any]:
    """Estimate one paired difference; the series are indexed by the digest of the text."""
    both = pd.DataFrame({"a": a, "b": b}).dropna()
    paired = (both["a"] - both["b"]).to_numpy(dtype=float)
    numbers = ("estimate", "low", "high", "p", "effect_sd")
    nothing = dict.fromkeys(numbers, np.nan) | dict.fromkeys(("n", "above", "below"), 0)
    if not len(paired):
        return nothing | {"method": intervals.NONE, "degenerate": bootstrap.NO_VALUES}
    interval = intervals.of_differences(paired[:, None], confidence=confidence)
    rng = draws.generator(seed, "sign flips", [str(text) for text in both.index])
    return {
        **{name: getattr(interval, name)[0] for name in ("estimate", "low", "high", "method")},
        "above": int((paired > 0).sum()),
        "below": int((paired < 0).sum()),
        "effect_sd": _effect(both, float(interval.estimate[0])),
        "p": sign_flip.p_value(paired, rng),
        "n": len(paired),
        "degenerate": interval.degenerate[0] or None,
    }


def _documents(models: Mapping[str, Measured]) -> dict[str, str]:
    """Return the sequence and document of each text, by the digest of the text."""
    return {
        row["text_sha256"]: named_sequence(row)
        for measured in models.values()
        for row in measured.sequences.to_pylist()
    }


def _deciding_texts(
    family: "list[pd.Series[float]]", documents: Mapping[str, str], seed: int
) -> list[str | None]:
    """Name, for each pair of a family, a text without which its verdict is another.

    Args:
        family: differences of each pair, indexed by the digest of the text.
        documents: of the texts.
        seed: of the signs that are drawn.
    """
    everywhere = _survive(family, seed)
    found: list[str | None] = [None] * len(family)
    for text in sorted({str(text) for pair in family for text in pair.index}):
        verdicts = _survive([pair.drop(text, errors="ignore") for pair in family], seed)
        for place, (now, before) in enumerate(zip(verdicts, everywhere, strict=True)):
            if now != before and text in family[place].index and found[place] is None:
                found[place] = documents[text]
    return found


def _survive(family: "list[pd.Series[float]]", seed: int) -> list[bool]:
    """Tell which pairs of a family survive Holm's correction."""
    p = np.full(len(family), np.nan)
    by_texts: dict[tuple[str, ...], list[int]] = {}
    for place, pair in enumerate(family):
        by_texts.setdefault(tuple(map(str, pair.index)), []).append(place)
    for texts, places in by_texts.items():
        rng = draws.generator(seed, "sign flips", list(texts))
        values = np.stack([family[place].to_numpy(dtype=float) for place in places], axis=1)
        p[places] = sign_flip.p_values(values, rng, LEFT_OUT_DRAWS)
    survive: list[bool] = (holm(p) <= LEVEL).tolist()
    return survive


def _effect(both: pd.DataFrame, difference: float) -> float:
    """Return a difference in standard deviations between texts; NaN where texts do not differ."""
    spread = np.sqrt(both.var(ddof=1).mean()) if len(both) > 1 else np.nan
    negligible = intervals.ROUNDING * np.abs(both.to_numpy()).max()
    return difference / spread if spread > negligible else np.nan


def _correlations(
    models: Mapping[str, Measured], by_text: Mapping[str, pd.DataFrame], seed: int
) -> pa.Table:
    """Correlate every compared metric with every property of the models."""
    means = pd.DataFrame({model: table.mean() for model, table in by_text.items()})
    properties = {
        name: np.array([measured.row[name] for measured in models.values()], dtype=float)
        for name in PROPERTIES
    }
    bits = ("bits_per_byte_common", "")
    properties[bits[0]] = means.loc[[bits]].to_numpy(dtype=float)[0]
    rng = draws.generator(seed, "models", list(models))
    rows = []
    for name, x in properties.items():
        for metric, basis in COMPARED:
            if metric == name:
                continue
            y = means.loc[[(metric, basis or "")]].to_numpy(dtype=float)[0]
            there = ~np.isnan(x) & ~np.isnan(y)
            correlated = correlation.spearman(x[there], y[there], rng)
            row = {"property": name, "metric": metric, "basis": basis, **vars(correlated)}
            rows.append(row | {"models": int(there.sum())})
    p = np.array([row["p"] for row in rows], dtype=float)
    level = LEVEL / max(1, int((~np.isnan(p)).sum()))
    least = {n: correlation.least_significant(n, level) for n in {row["models"] for row in rows}}
    rows = [
        row | {"p_holm": adjusted, "least_abs_rho": least[row["models"]]}
        for row, adjusted in zip(rows, holm(p), strict=True)
    ]
    return parquet.of_rows(CORRELATIONS, rows)
