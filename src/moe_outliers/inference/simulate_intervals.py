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
from moe_outliers.metrics.selection import CrossFit, Extents, halves
from moe_outliers.stats import Array, betting, draws, intervals
from moe_outliers.storage import parquet

Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]

RESAMPLES = 1_999
"""Resamples of each simulated interval; more change the coverage by less than can be measured."""

SAME_DRAWS = 100
"""Simulated data sets that share their resamples."""

SITES = 56
"""Sites of a simulated model."""

BETTING = "betting"
BETTED_SETS = 400
"""The most data sets of which betting intervals are made: each bets in a hundred orders."""

COVERAGE = parquet.schema(
    case=(
        pa.string(),
        "kind of data: smooth, near_one, skewed, heavy (lognormal, sigma 1.5), rare, rare_jitter "
        "(no two values equal), bump (.5, but 5 % of the texts 1), two_kinds (85 % of the texts "
        "about .1, the others about .9), constant, normal; paired: two models on the same texts; "
        "paired_rare: differences that are zero on 85 % of the texts; one_document: parts of one "
        "document (intraclass correlation .3); one_text: stretches of one text (AR(1), .6)",
    ),
    method=(
        pa.string(),
        "interval: expanded BCa and edge, t, betting, or percentile (for contrast)",
    ),
    used=(pa.bool_(), "the pipeline uses this method for such data"),
    dependent=(pa.bool_(), "the texts depend on each other: no interval of this report is valid"),
    n=(pa.int32(), "sequences"),
    nominal=(pa.float64(), "nominal level"),
    coverage_share=(pa.float64(), "share of the intervals that were made that hold the truth"),
    none_share=(pa.float64(), "share of the data sets without an interval"),
    flagged_share=(
        pa.float64(),
        "share of the data sets in which one text decides: without it the estimate moves by more "
        "than a third of the interval's half width",
    ),
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


def _normal(rng: np.random.Generator, size: tuple[int, ...]) -> Array:
    return rng.normal(0, 1, size)


def _heavy(rng: np.random.Generator, size: tuple[int, ...]) -> Array:
    return rng.lognormal(0, 1.5, size)


def _rare_jitter(rng: np.random.Generator, size: tuple[int, ...]) -> Array:
    return _rare(rng, size) * (1 - JITTER) + rng.random(size) * JITTER


def _bump(rng: np.random.Generator, size: tuple[int, ...]) -> Array:
    return np.where(rng.random(size) < 0.05, 1, rng.uniform(0.48, 0.52, size))


def _two_kinds(rng: np.random.Generator, size: tuple[int, ...]) -> Array:
    return np.where(rng.random(size) < 0.85, rng.beta(2, 18, size), rng.beta(18, 2, size))


def _one_document(rng: np.random.Generator, size: tuple[int, ...]) -> Array:
    common = rng.normal(0, np.sqrt(0.3), (1, *size[1:]))
    return special.ndtr(common + rng.normal(0, np.sqrt(0.7), size))


def _one_text(rng: np.random.Generator, size: tuple[int, ...]) -> Array:
    noise = rng.normal(0, 1, size)
    values = [noise[0]]
    for each in noise[1:]:
        values.append(0.6 * values[-1] + 0.8 * each)
    return special.ndtr(np.stack(values))


JITTER = 1e-6

_HERMITE = np.polynomial.hermite_e.hermegauss(80)

CASES: dict[str, tuple[Draw, float, bool]] = {
    "smooth": (
        _logit_normal,
        float(special.expit(_HERMITE[0] - 1) @ _HERMITE[1] / _HERMITE[1].sum()),
        True,
    ),
    "near_one": (_near_one, 0.95, True),
    "skewed": (_skewed, float(np.exp(0.8**2 / 2)), False),
    "heavy": (_heavy, float(np.exp(1.5**2 / 2)), False),
    "rare": (_rare, 0.15 * 2 / 8, True),
    "rare_jitter": (_rare_jitter, 0.15 * 2 / 8 * (1 - JITTER) + JITTER / 2, True),
    "bump": (_bump, 0.95 * 0.5 + 0.05, True),
    "two_kinds": (_two_kinds, 0.85 * 0.1 + 0.15 * 0.9, True),
    "constant": (_constant, 1.0, True),
    "normal": (_normal, 0.0, False),
    "one_document": (_one_document, 0.5, True),
    "one_text": (_one_text, 0.5, True),
}
"""Kinds of data: how they are drawn, their true mean, and whether they are shares."""

DEPENDENT = ("one_document", "one_text")
"""Kinds whose texts depend on each other."""


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
            by_method = _cover(draw, rng, (n, sets), share, confidence)
            keys = {"case": case, "n": n}
            rows += [keys | {"method": m} | _covered(truth, e) for m, e in by_method.items()]
        rng = draws.generator(seed, f"coverage paired {n}", [])
        text = rng.normal(0.4, 0.1, (n, sets))
        a, b = (text + rng.normal(0, 0.03, (n, sets)) for _ in range(2))
        paired = {"paired": (a - b, 0.0), "paired_rare": (_rare(rng, (n, sets)), CASES["rare"][1])}
        for case, (differences, truth) in paired.items():
            estimates = intervals.of_differences(differences, confidence=confidence)
            keys = {"case": case, "n": n, "method": intervals.T}
            flagged = intervals.deciding(differences, estimates) >= 0
            ends = np.stack([estimates.low, estimates.high, flagged])
            rows.append(keys | _covered(truth, ends))
    for row in rows:
        row["used"] = row["method"] != "percentile"
        row["dependent"] = row["case"] in DEPENDENT
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
) -> dict[str, Array]:
    """Return the ends of intervals by method, and whether one text decides: each (3, set)."""
    (n, sets), tail = size, (1 - confidence) / 2
    by_method: dict[str, list[Array]] = defaultdict(list)
    for start in range(0, sets, SAME_DRAWS):
        together = min(SAME_DRAWS, sets - start)
        values = draw(rng, (n, together))
        drawn, order = intervals.resample(rng, n, RESAMPLES), betting.orders(rng, n)
        shares = np.full(together, share)
        ours = intervals.of_means(values, drawn, shares, confidence=confidence)
        flagged = intervals.deciding(values, ours) >= 0
        ends: dict[str, tuple[Array, Array] | Array] = {
            "expanded BCa and edge": (ours.low, ours.high),
            "percentile": np.quantile(drawn @ values / n, [tail, 1 - tail], axis=0),
        }
        if share and start < BETTED_SETS:
            ends[BETTING] = betting.of_means(values, order, confidence=confidence)
        for method, (low, high) in ends.items():
            by_method[method].append(np.stack([low, high, flagged]))
    return {method: np.concatenate(parts, axis=1) for method, parts in by_method.items()}


def _covered(truth: float, ends: Array) -> dict[str, Any]:
    """Summarise intervals: low, high and whether one text decides, (3, set)."""
    low, high, flagged = ends
    near = 1e-9
    made = ~np.isnan(low)
    held = (low <= truth + near) & (truth - near <= high)
    rest = {"sets": len(low), "width": np.nanmean(high - low), "none_share": 1 - made.mean()}
    return rest | {"flagged_share": flagged.mean()} | _rate(held[made], int(made.sum()))


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
    fit = CrossFit.of(Extents(extent), border)
    even, odd = halves(len(extent))
    chosen = Extents(extent[even]).select(border)
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
