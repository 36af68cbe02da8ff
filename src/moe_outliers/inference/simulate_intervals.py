"""Simulates data of known truth and measures the intervals that the pipeline makes of them.

Coverage of the intervals and bias of the selection, by the number of sequences; the report prints
them beside the nominal numbers. `simulate_classes` does the same for the classes.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import special

from moe_outliers.metrics.counts import reaches
from moe_outliers.metrics.selection import CrossFit, halves, select
from moe_outliers.stats import Array, draws, intervals
from moe_outliers.storage import parquet

Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]

RESAMPLES = 1_999
"""Resamples of each simulated interval; more change the coverage by less than can be measured."""

SAME_DRAWS = 100
"""Simulated data sets that share their resamples."""

SITES = 56
"""Sites of a simulated model."""

COVERAGE = parquet.schema(
    case=(
        pa.string(),
        "kind of data: smooth, near_one, skewed, rare, constant; paired: two models on the same "
        "texts; paired_rare: differences that are zero on 85 % of the texts",
    ),
    method=(pa.string(), "interval: expanded BCa and edge, t, or percentile (for contrast only)"),
    used=(pa.bool_(), "the pipeline uses this method for such data"),
    n=(pa.int32(), "sequences"),
    nominal=(pa.float64(), "nominal level"),
    coverage_share=(pa.float64(), "share of the intervals that were made that hold the truth"),
    none_share=(pa.float64(), "share of the data sets without an interval"),
    standard_error=(pa.float64(), "Monte Carlo standard error of coverage_share"),
    sets=(pa.int32(), "simulated data sets"),
    width=(pa.float64(), "mean width of the intervals"),
)
"""One row a kind of data, method and number of sequences."""

SELECTION = parquet.schema(
    estimator=(
        pa.string(),
        "cross_fit: mean extent of features chosen on other folds; single_feature: chosen on even "
        "sequences, scored on odd; same_data: chosen and scored on the same sequences (contrast)",
    ),
    used=(pa.bool_(), "the pipeline uses this estimator"),
    n=(pa.int32(), "sequences"),
    nominal=(pa.float64(), "nominal level"),
    coverage_share=(pa.float64(), "share of the intervals that hold the truth"),
    standard_error=(pa.float64(), "Monte Carlo standard error of coverage_share"),
    bias=(pa.float64(), "mean of estimate less truth"),
    sets=(pa.int32(), "simulated sweeps"),
)
"""One row an estimator and number of sequences."""


def _logit_normal(rng: np.random.Generator, size: tuple[int, ...]) -> Array:
    return np.asarray(special.expit(rng.normal(-1, 1, size)))


def _near_one(rng: np.random.Generator, size: tuple[int, ...]) -> Array:
    return rng.binomial(SITES, rng.beta(19, 1, size)) / SITES


def _skewed(rng: np.random.Generator, size: tuple[int, ...]) -> Array:
    return rng.lognormal(0, 0.8, size)


def _rare(rng: np.random.Generator, size: tuple[int, ...]) -> Array:
    return (rng.random(size) < 0.15) * rng.beta(2, 6, size)


def _constant(rng: np.random.Generator, size: tuple[int, ...]) -> Array:
    return np.ones(size)


_HERMITE = np.polynomial.hermite_e.hermegauss(80)

CASES: dict[str, tuple[Draw, float, bool]] = {
    "smooth": (
        _logit_normal,
        float(special.expit(_HERMITE[0] - 1) @ _HERMITE[1] / _HERMITE[1].sum()),
        True,
    ),
    "near_one": (_near_one, 0.95, True),
    "skewed": (_skewed, float(np.exp(0.8**2 / 2)), False),
    "rare": (_rare, 0.15 * 2 / 8, True),
    "constant": (_constant, 1.0, True),
}
"""Kinds of data: how they are drawn, their true mean, and whether they are shares."""


def coverage(sizes: list[int], *, sets: int, confidence: float, seed: int) -> pa.Table:
    """Measure how often intervals hold the truth.

    Args:
        sizes: numbers of sequences.
        sets: simulated data sets a row.
        confidence: nominal level, in (0, 1).
        seed: of all draws.

    Returns:
        One row a kind of data, method and size, of COVERAGE.
    """
    rows: list[dict[str, Any]] = []
    for n in sizes:
        for case, (draw, truth, share) in CASES.items():
            rng = draws.generator(seed, f"coverage {case} {n}", [])
            ours, contrast = _cover(draw, rng, (n, sets), share, confidence)
            keys = {"case": case, "n": n}
            rows.append(keys | {"method": "expanded BCa and edge"} | _covered(truth, ours))
            rows.append(keys | {"method": "percentile"} | _covered(truth, contrast))
        rng = draws.generator(seed, f"coverage paired {n}", [])
        text = rng.normal(0.4, 0.1, (n, sets))
        a, b = (text + rng.normal(0, 0.03, (n, sets)) for _ in range(2))
        paired = {"paired": (a - b, 0.0), "paired_rare": (_rare(rng, (n, sets)), CASES["rare"][1])}
        for case, (differences, truth) in paired.items():
            estimates = intervals.of_differences(differences, confidence=confidence)
            keys = {"case": case, "n": n, "method": intervals.T}
            rows.append(keys | _covered(truth, (estimates.low, estimates.high)))
    for row in rows:
        row["used"] = row["method"] != "percentile"
    return parquet.of_rows(COVERAGE, rows, nominal=confidence)


def selection(
    sizes: list[int], layer_share: float, *, sets: int, confidence: float, seed: int
) -> pa.Table:
    """Measure the bias of choosing features, and the coverage of what is reported of them.

    Six features that fire nearly everywhere, sixty about the border, and three hundred that hardly
    fire; sequences differ. The truth is the mean extent of the features that were chosen.

    Args:
        sizes: numbers of sequences.
        layer_share: the smallest mean extent that is chosen: the border.
        sets: simulated sweeps a row.
        confidence: nominal level, in (0, 1).
        seed: of all draws.

    Returns:
        One row an estimator and size, of SELECTION.
    """
    rows = []
    for n in sizes:
        rng = draws.generator(seed, f"selection {n}", [])
        by_estimator: dict[str, list[Array]] = defaultdict(list)
        for _ in range(sets):
            near = np.clip(layer_share + rng.uniform(-0.1, 0.1, 60), 0.01, 0.99)
            extent, truth = _sweep(np.r_[np.full(6, 0.95), near, np.full(300, 0.03)], n, rng)
            for name, estimate in _estimates(extent, truth, layer_share, confidence, rng).items():
                by_estimator[name].append(estimate)
        for name, several in by_estimator.items():
            low, high, estimate, true = np.concatenate(several, axis=1)
            rows.append(
                {"estimator": name, "n": n, "used": name != "same_data", "sets": sets}
                | {"bias": (estimate - true).mean()}
                | _rate((low <= true) & (true <= high), sets)
            )
    return parquet.of_rows(SELECTION, rows, nominal=confidence)


def _cover(
    draw: Draw, rng: np.random.Generator, size: tuple[int, int], share: bool, confidence: float
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Return the ends of our intervals and of percentile intervals, each (set,)."""
    (n, sets), ours, contrast = size, [], []
    tail = (1 - confidence) / 2
    for start in range(0, sets, SAME_DRAWS):
        together = min(SAME_DRAWS, sets - start)
        values = draw(rng, (n, together))
        drawn = intervals.resample(rng, n, RESAMPLES)
        shares = np.full(together, share)
        estimates = intervals.of_means(values, drawn, shares, confidence=confidence)
        ours.append([estimates.low, estimates.high])
        contrast.append(np.quantile(drawn @ values / n, [tail, 1 - tail], axis=0))
    first, second = (np.concatenate(parts, axis=1) for parts in (ours, contrast))
    return (first[0], first[1]), (second[0], second[1])


def _covered(truth: float, ends: tuple[Array, Array]) -> dict[str, Any]:
    """Summarise intervals, each end (set,)."""
    low, high = ends
    near = 1e-9
    made = ~np.isnan(low)
    held = (low <= truth + near) & (truth - near <= high)
    rest = {"sets": len(low), "width": np.nanmean(high - low), "none_share": 1 - made.mean()}
    return rest | _rate(held[made], int(made.sum()))


def _rate(held: Array, sets: int) -> dict[str, float]:
    """Return the share that held, with its standard error over independent sets."""
    share = float(held.mean())
    return {
        "coverage_share": share,
        "standard_error": float(np.sqrt(share * (1 - share) / sets)),
    }


def _sweep(chance: Array, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw extents, (sequence, feature), and return them with their expectations, (feature,)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(21)
    logit = special.logit(chance)
    each = special.expit(logit + rng.normal(0, 0.25, (n, 1)))
    truth = weights @ special.expit(logit + 0.25 * nodes[:, None]) / weights.sum()
    return rng.binomial(SITES, each) / SITES, truth


def _estimates(
    extent: Array, truth: Array, border: float, confidence: float, rng: np.random.Generator
) -> dict[str, Array]:
    """Return low, high, estimate and truth by estimator, each (4, estimate)."""
    fit = CrossFit.of(extent, border)
    even, odd = halves(len(extent))
    chosen = select(extent[even], border)
    alone = [reaches(row, border) for row in extent]
    scored: dict[str, tuple[Array, Any]] = {
        "cross_fit": (fit.mean(extent)[:, None], [truth[fit.chosen[k]].mean() for k in fit.fold]),
        "single_feature": (extent[odd][:, chosen], truth[chosen]),
        "same_data": (
            np.array([[row[own].mean()] for row, own in zip(extent, alone, strict=True)]),
            [truth[own].mean() for own in alone],
        ),
    }
    result = {}
    for name, (values, true) in scored.items():
        drawn = intervals.resample(rng, len(values), RESAMPLES)
        shares = np.ones(values.shape[1], dtype=bool)
        estimates = intervals.of_means(values, drawn, shares, confidence=confidence)
        aimed = true if name == "single_feature" else [np.mean(true)]
        ends = [estimates.low, estimates.high]
        result[name] = np.stack([*ends, estimates.estimate, np.asarray(aimed)])
    return result
