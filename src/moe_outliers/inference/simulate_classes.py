"""Simulates features of known truth and measures false discovery and power of their classes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from moe_outliers.metrics.classes import (
    BANDED,
    CLASSES,
    INDETERMINATE,
    NO_CANDIDATE,
    PROBABILISTIC,
    SYSTEMATIC,
    UNCLASSIFIED,
    classify,
    subsets_of,
)
from moe_outliers.metrics.consistency import Shifts
from moe_outliers.metrics.criteria import Criteria
from moe_outliers.stats import Array, draws, intervals
from moe_outliers.storage import parquet
from moe_outliers.storage.statistics_file import KINDS

BLOCKS = 24
PERMUTATIONS = 999
RESAMPLES = 1_999
TOGETHER = 3
"""Features of each kind that one simulated model holds."""

CLASSED = parquet.schema(
    truth=(
        pa.string(),
        "what is planted: systematic (in every sequence), often (extent .9 in four of five "
        "sequences, .5 in the fifth), banded, random (sites anew in each sequence), run (one run "
        "of sites anew in each), mlp_in (at those sites of every block), some_mlp_in (at three in "
        "five of those sites, anew in each sequence), trend",
    ),
    extent=(pa.float64(), "mean extent over all sites that is planted"),
    n=(pa.int32(), "sequences"),
    features=(pa.int32(), "simulated features"),
    **{
        f"{name}_share": (pa.float64(), f"share of them that is called {name}")
        for name in (*CLASSES, UNCLASSIFIED, NO_CANDIDATE)
    },
    wrong_share=(
        pa.float64(),
        "share that is called systematic or banded and is not; for the planted ones, share that "
        "gets another class; indeterminate and no candidate are not wrong",
    ),
    standard_error=(pa.float64(), "Monte Carlo standard error of wrong_share, over models"),
)
"""One row a planted truth and number of sequences."""

DISCOVERIES = parquet.schema(
    planted=(
        pa.string(),
        "what each simulated model holds: all, features of every truth; null, of those alone that "
        "are neither systematic nor banded",
    ),
    n=(pa.int32(), "sequences"),
    models=(pa.int32(), "simulated models"),
    features=(pa.int32(), "features of each"),
    called=(pa.float64(), "features called systematic or banded, mean over models"),
    false_discovery_share=(
        pa.float64(), "share of these that are not what they are called; 0 in a model without any"
    ),
    low=(pa.float64(), "lower end of its interval over models, at the sweep's level"),
    high=(pa.float64(), "upper end"),
    method=(pa.string(), "expanded BCa or edge"),
)  # fmt: skip
"""One row a content of models and number of sequences."""


@dataclass(frozen=True)
class Truth:
    """What is planted.

    Attributes:
        name: as the column `truth` has it.
        extent: mean extent over all sites.
        right: the right class; None where only systematic and banded are wrong.
    """

    name: str
    extent: float
    right: str | None = None


TRUTHS = (
    Truth("systematic", 1.0, SYSTEMATIC),
    Truth("systematic", 0.9, SYSTEMATIC),
    Truth("often", 0.82, SYSTEMATIC),
    Truth("banded", 0.3, BANDED),
    Truth("banded", 0.5, BANDED),
    Truth("banded", 0.65, BANDED),
    Truth("random", 0.3, PROBABILISTIC),
    Truth("random", 0.5, PROBABILISTIC),
    Truth("random", 0.6, PROBABILISTIC),
    Truth("run", 0.4),
    Truth("mlp_in", 0.49, SYSTEMATIC),
    Truth("some_mlp_in", 0.3),
    Truth("trend", 0.45),
)
NULLS = tuple(truth for truth in TRUTHS if truth.right not in (SYSTEMATIC, BANDED))


def simulate(
    sizes: list[int], criteria: Criteria, *, models: int, confidence: float, seed: int
) -> dict[str, pa.Table]:
    """Class simulated models: some with planted features of every truth, as many with nulls only.

    Args:
        sizes: numbers of sequences.
        criteria: what counts as an outlier feature.
        models: simulated models a row, at least two.
        confidence: nominal level of the interval of the false discoveries, in (0, 1).
        seed: of all draws.

    Returns:
        `classes`, of CLASSED: by truth, from the mixed models; and `discoveries`, of DISCOVERIES.
    """
    classed: list[dict[str, Any]] = []
    discoveries: list[dict[str, Any]] = []
    for n in sizes:
        rng = draws.generator(seed, f"classes {n}", [])
        for planted, truths in (("all", TRUTHS), ("null", NULLS)):
            label = np.stack([_classed_model(truths, n, criteria, rng) for _ in range(models)])
            rate = _discoveries(truths, label, confidence, rng)
            discoveries.append({"planted": planted, "n": n, "models": models} | rate)
            for place, truth in enumerate(truths if planted == "all" else ()):
                keys = {"truth": truth.name, "extent": truth.extent, "n": n}
                classed.append(keys | _rates(truth, label[:, place]))
    return {
        "classes": parquet.of_rows(CLASSED, classed),
        "discoveries": parquet.of_rows(DISCOVERIES, discoveries),
    }


def plant(truth: Truth, n: int, features: int, rng: Any) -> Array:
    """Draw where features fire, (sequence, site, feature), bool."""
    sites = 2 * BLOCKS
    shape = (n, sites, features)
    depth = np.arange(sites)[None, :, None]
    if truth.name == "banded":
        size = round(truth.extent * sites)
        start = rng.integers(0, sites - size + 1, features)
        inside = (depth >= start) & (depth < start + size)
        fires = rng.random(shape) < np.where(inside, 0.97, 0.02)
    elif truth.name == "run":
        size = round(truth.extent * sites)
        fires = (depth - rng.integers(0, sites, (n, 1, features))) % sites < size
    elif truth.name == "often":
        fires = rng.random(shape) < np.where(rng.random((n, 1, features)) < 0.8, 0.9, 0.5)
    elif truth.name in ("mlp_in", "some_mlp_in"):
        chance = truth.extent * 2  # of the sites of that kind
        fires = np.broadcast_to(depth % 2 == 1, shape) & (rng.random(shape) < chance)
    elif truth.name == "trend":
        fires = rng.random(shape) < truth.extent + 0.15 * (1 - 2 * depth / (sites - 1))
    elif truth.extent == 1:
        fires = np.ones(shape, dtype=bool)
    else:
        level = np.clip(truth.extent + rng.normal(0, 0.03, (n, 1, 1)), 0, 1)
        fires = rng.random(shape) < level
    return np.asarray(fires)


def _classed_model(truths: tuple[Truth, ...], n: int, criteria: Criteria, rng: Any) -> Array:
    """Class one model that holds features of each truth; return their classes, (truth, feature)."""
    fires = np.concatenate([plant(truth, n, TOGETHER, rng) for truth in truths], axis=2)
    kind = np.tile(KINDS, BLOCKS)
    mixer = np.tile(("attention", "moe"), BLOCKS)
    classes = classify(
        fires,
        layer_share=criteria.layer_share,
        subsets=subsets_of(kind, mixer),
        shifts=Shifts.draw(fires, 1, rng, PERMUTATIONS),
    )
    return classes.label.reshape(len(truths), TOGETHER)


def _rates(truth: Truth, label: Array) -> dict[str, Any]:
    """Summarise the classes that features of one truth got, (model, feature)."""
    if truth.right in (SYSTEMATIC, BANDED):
        wrong = ~np.isin(label, [truth.right, INDETERMINATE, NO_CANDIDATE, UNCLASSIFIED])
    else:
        wrong = np.isin(label, [SYSTEMATIC, BANDED])
    by_model = wrong.mean(axis=1)
    names = (*CLASSES, UNCLASSIFIED, NO_CANDIDATE)
    return {
        "features": label.size,
        **{f"{name}_share": (label == name).mean() for name in names},
        "wrong_share": wrong.mean(),
        "standard_error": by_model.std(ddof=1) / np.sqrt(len(by_model)),
    }


def _discoveries(
    truths: tuple[Truth, ...], label: Array, confidence: float, rng: Any
) -> dict[str, Any]:
    """Summarise what models call systematic or banded, (model, truth, feature)."""
    right = np.array([truth.right or "" for truth in truths])[:, None]
    called = np.isin(label, [SYSTEMATIC, BANDED])
    number = called.sum(axis=(1, 2))
    false = (called & (label != right)).sum(axis=(1, 2)) / np.maximum(number, 1)
    drawn = intervals.resample(rng, len(false), RESAMPLES)
    interval = intervals.of_means(false[:, None], drawn, np.ones(1, bool), confidence=confidence)
    return {
        "features": label[0].size,
        "called": number.mean(),
        "false_discovery_share": interval.estimate[0],
        **{name: getattr(interval, name)[0] for name in ("low", "high", "method")},
    }
