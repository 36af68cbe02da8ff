"""Confidence intervals of one model's metrics, from the table of values."""

import numpy as np
import pandas as pd
import pyarrow as pa

from moe_outliers.metrics.counts import BASES
from moe_outliers.metrics.criteria import Criteria
from moe_outliers.metrics.model_statistics import named_sequence
from moe_outliers.metrics.values import KEYS, METRICS
from moe_outliers.stats import Array, betting, draws, intervals
from moe_outliers.storage import parquet

SCHEMA = parquet.schema(
    model=(pa.string(), "slug of the table of models"),
    **KEYS,
    headline=(
        pa.bool_(),
        "the row has the headline's thresholds, or needs none; false in a sweep of thresholds",
    ),
    estimate=(pa.float64(), "mean over sequences; for method `none` without n, the value itself"),
    low=(pa.float64(), "lower end of the interval; empty where there is none"),
    high=(pa.float64(), "upper end of the interval; empty where there is none"),
    sure_low=(
        pa.float64(),
        "lower end of the betting interval, valid for independent texts at every n; of shares",
    ),
    sure_high=(pa.float64(), "its upper end"),
    one_text_decides=(
        pa.string(),
        "the sequence without which the estimate moves by more than a third of the interval's "
        "half width, with its document; empty: none does",
    ),
    unit=(pa.string(), "unit of estimate, low and high; share: in [0, 1]"),
    method=(pa.string(), "expanded BCa, edge, or none; for perplexity: of nll, exp of its ends"),
    n=(pa.int32(), "sequences with a value; empty for a quantity of the model as a whole"),
    resamples=(pa.int32(), "bootstrap resamples; empty where none were drawn"),
    seed=(pa.int64(), "seed of the sweep"),
    confidence=(pa.float64(), "nominal level of the interval"),
    degenerate=(
        pa.string(),
        "what is special: constant, two values (exact quantiles), one sequence, no values, no "
        "candidates, not recorded, `not a mean over sequences`; empty for nothing",
    ),
)
"""One row a metric and combination of keys."""

NO_MEAN = "not a mean over sequences"
"""Counts over folds, unions, maxima: resampling sequences would bias them, so no interval."""

NO_VALUES = "no values"


def bootstrap(
    values: pa.Table,
    sequences: pa.Table,
    criteria: Criteria,
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> pa.Table:
    """Estimate every metric of one model, with its interval.

    The sequences are drawn with replacement, the same draws for every quantity that has values in
    the same sequences.

    Args:
        values: of metrics.values.SCHEMA.
        sequences: of metrics.model_statistics.SEQUENCE_SCHEMA, in the order of ids_sha256. The
            bets take them in orders that are keyed by the digests of the texts.
        criteria: of the headline.
        resamples: how often the sequences are drawn.
        confidence: nominal level, in (0, 1).
        seed: of the draws.

    Returns:
        One row a quantity, of SCHEMA.
    """
    frame = values.to_pandas()
    single = frame["sequence"].notna()
    whole = frame[~single]
    rows, matrix = _by_quantity(frame[single], sequences["sequence"].to_pylist())
    estimated = _estimate(
        rows, matrix, sequences, resamples=resamples, confidence=confidence, seed=seed
    )
    special = whole["note"].fillna(whole["value"].notna().map({True: NO_MEAN, False: NO_VALUES}))
    given = whole[list(KEYS)].assign(
        estimate=whole["value"], method=intervals.NONE, degenerate=special
    )
    table = pd.concat([estimated, _perplexity(estimated), given], ignore_index=True)
    table = table.assign(
        model=frame["model"].iloc[0],
        unit=[METRICS[metric].unit for metric in table["metric"]],
        headline=headline(table, criteria),
        seed=seed,
        confidence=confidence,
    )
    return pa.Table.from_pandas(
        table.reindex(columns=SCHEMA.names), schema=SCHEMA, preserve_index=False
    ).replace_schema_metadata(None)


def _by_quantity(frame: pd.DataFrame, sequences: list[int]) -> tuple[pd.DataFrame, Array]:
    """Return the quantities, as rows of keys, and their values, (sequence, quantity), with NaN."""
    keys = list(KEYS)
    groups = frame.groupby(keys, dropna=False, sort=False, observed=True)
    number = groups.ngroup().to_numpy()
    rows = frame[keys].iloc[np.unique(number, return_index=True)[1]].reset_index(drop=True)
    place = {sequence: row for row, sequence in enumerate(sequences)}
    matrix = np.full((len(sequences), len(rows)), np.nan)
    matrix[frame["sequence"].map(place).to_numpy(dtype=int), number] = frame["value"].to_numpy()
    return rows, matrix


def _estimate(
    rows: pd.DataFrame,
    matrix: Array,
    sequences: pa.Table,
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> pd.DataFrame:
    """Estimate each column of (sequence, quantity) from the sequences that have a value."""
    ids = np.array(sequences["ids_sha256"].to_pylist())
    share = np.array([METRICS[metric].unit == "share" for metric in rows["metric"]], dtype=bool)
    names = ("estimate", "low", "high", "sure_low", "sure_high", "resamples")
    columns: dict[str, Array] = {name: np.full(len(rows), np.nan) for name in names}
    decides = np.full(len(rows), None, dtype=object)
    method = np.full(len(rows), intervals.NONE, dtype=object)
    degenerate = np.full(len(rows), NO_VALUES, dtype=object)
    there = ~np.isnan(matrix)
    patterns, which = np.unique(there, axis=1, return_inverse=True)
    for number, present in enumerate(patterns.T):
        if not present.any():
            continue
        chosen = np.flatnonzero(which == number)
        own, n = matrix[np.ix_(present, chosen)], int(present.sum())
        rng = draws.generator(seed, "bootstrap", ids[present].tolist())
        drawn = intervals.resample(rng, n, resamples)
        part = intervals.of_means(own, drawn, share[chosen], confidence=confidence)
        decides[chosen] = _named(intervals.deciding(own, part), sequences.filter(present))
        bounded = chosen[share[chosen]]
        text = np.array(sequences["text_sha256"].to_pylist())[present]
        order = betting.orders(draws.generator(seed, "bets", text.tolist()), n)
        columns["sure_low"][bounded], columns["sure_high"][bounded] = betting.of_means(
            own[np.argsort(text, kind="stable")][:, share[chosen]], order, confidence=confidence
        )
        for name in ("estimate", "low", "high"):
            columns[name][chosen] = getattr(part, name)
        method[chosen], degenerate[chosen] = part.method, part.degenerate
        resampled = (part.method == intervals.EXPANDED_BCA) & (
            part.degenerate != intervals.TWO_VALUES
        )
        columns["resamples"][chosen] = np.where(resampled, resamples, np.nan)
    special = np.where(degenerate == "", None, degenerate)  # type: ignore[call-overload]
    return rows.assign(
        **columns,
        method=method,
        degenerate=special,
        one_text_decides=decides,
        n=there.sum(axis=0),
    )


def _named(places: Array, sequences: pa.Table) -> list[str | None]:
    """Name sequences by their index and document; None for place -1."""
    names = [named_sequence(row) for row in sequences.select(["sequence", "document"]).to_pylist()]
    return [None if place < 0 else names[place] for place in places]


def _perplexity(estimated: pd.DataFrame) -> pd.DataFrame:
    """Turn the mean negative log-likelihood and its ends into perplexities."""
    nll = estimated[estimated["metric"] == "nll"]
    ends = {name: np.exp(nll[name]) for name in ("estimate", "low", "high")}
    return nll.assign(metric="perplexity", **ends)


def headline(table: pd.DataFrame, criteria: Criteria) -> Array:
    """Tell which rows have the headline's thresholds, or need none."""
    wanted = table["basis"].map({basis: criteria.at(basis) for basis in BASES}).astype(float)
    alpha = table["alpha"].isna() | np.isclose(table["alpha"].astype(float), wanted)
    share = table["position_share"].isna() | (table["position_share"] == criteria.position_share)
    return (alpha & share).to_numpy()
