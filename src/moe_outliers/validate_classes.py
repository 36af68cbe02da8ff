"""False discovery and power of the classes: features of known truth, classed as a model's are."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import stats

from moe_outliers import draws, parquet
from moe_outliers.metrics.classes import (
    BANDED,
    CLASSES,
    INDETERMINATE,
    NO_CANDIDATE,
    PROBABILISTIC,
    SYSTEMATIC,
    UNCLASSIFIED,
    classify,
)
from moe_outliers.metrics.counts import Z_MAGNITUDE, least, site_extent
from moe_outliers.metrics.study import Criteria

Array = NDArray[Any]

BLOCKS = 24
POSITIONS = 2048
PERMUTATIONS = 1_999
TOGETHER = 40
"""Features of each kind that one simulated model holds."""

CLASSED = parquet.schema(
    truth=(
        pa.string(),
        "what is planted: systematic (in every sequence), often (extent .9 in four of five "
        "sequences, .5 in the fifth), banded, random (sites anew in each sequence), run (one run "
        "of sites anew in each), attn_in, trend, gaussian",
    ),
    extent=(pa.float64(), "mean extent that is planted; for gaussian the gain"),
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


@dataclass(frozen=True)
class Truth:
    """What is planted.

    Attributes:
        name: as the column `truth` has it.
        extent: mean extent; for gaussian the gain.
        right: the class that is right; None where none but systematic and banded are wrong.
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
    Truth("attn_in", 0.5),
    Truth("trend", 0.45),
    Truth("gaussian", 2.0),
    Truth("gaussian", 3.5),
    Truth("gaussian", 4.0),
)


def classes(sizes: list[int], criteria: Criteria, *, models: int, seed: int) -> pa.Table:
    """Class planted features, as many models of mixed features as asked.

    Args:
        sizes: numbers of sequences.
        criteria: what counts as an outlier feature.
        models: simulated models a row.
        seed: of all draws.

    Returns:
        One row a truth and size, of CLASSED.
    """
    rows = []
    for n in sizes:
        rng = draws.generator(seed, f"classes {n}", [])
        labels: list[list[Array]] = [[] for _ in TRUTHS]
        for _ in range(models):
            found = _classed_model(n, criteria, rng)
            for collected, part in zip(labels, found, strict=True):
                collected.append(part)
        for truth, parts in zip(TRUTHS, labels, strict=True):
            rows.append(
                {"truth": truth.name, "extent": truth.extent, "n": n} | _rates(truth, parts)
            )
    return parquet.of_rows(CLASSED, rows)


def plant(truth: Truth, n: int, features: int, criteria: Criteria, rng: Any) -> tuple[Array, Array]:
    """Draw where features fire.

    Returns:
        By x and z together, and by x alone: each (sequence, site, feature), bool.
    """
    sites = 2 * BLOCKS
    shape = (n, sites, features)
    if truth.name == "gaussian":
        return _gaussian(truth.extent, shape, criteria, rng)
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
    elif truth.name == "attn_in":
        fires = np.broadcast_to(depth % 2 == 0, shape) & (rng.random(shape) < 0.98)
    elif truth.name == "trend":
        fires = rng.random(shape) < truth.extent + 0.15 * (1 - 2 * depth / (sites - 1))
    elif truth.extent == 1:
        fires = np.ones(shape, dtype=bool)
    else:
        level = np.clip(truth.extent + rng.normal(0, 0.03, (n, 1, 1)), 0, 1)
        fires = rng.random(shape) < level
    return fires, fires


def _gaussian(
    gain: float, shape: tuple[int, ...], criteria: Criteria, rng: Any
) -> tuple[Array, Array]:
    """Fire as Gaussian activations behind a gain do."""
    x_chance, z_chance = (2 * stats.norm.sf(a) for a in (criteria.magnitude / gain, Z_MAGNITUDE))
    common = rng.binomial(POSITIONS, max(x_chance, z_chance), shape)
    rarer = rng.binomial(common, min(x_chance, z_chance) / max(x_chance, z_chance))
    x, z = (common, rarer) if x_chance >= z_chance else (rarer, common)
    enough = int(least(np.array(POSITIONS), criteria.position_share))
    return (x >= enough) & (z >= enough), x >= enough


def _classed_model(n: int, criteria: Criteria, rng: Any) -> list[Array]:
    """Class one model that holds features of every truth; return their classes by truth."""
    planted = [plant(truth, n, TOGETHER, criteria, rng) for truth in TRUTHS]
    fires, by_x = (np.concatenate(parts, axis=2) for parts in zip(*planted, strict=True))
    found = classify(
        fires,
        site_extent(by_x),
        layer_share=criteria.layer_share,
        period=1,
        rng=rng,
        permutations=PERMUTATIONS,
    )
    return [found.label[i : i + TOGETHER] for i in range(0, len(found.label), TOGETHER)]


def _rates(truth: Truth, parts: list[Array]) -> dict[str, Any]:
    """Summarise the classes that features of one truth got, model by model."""
    label = np.stack(parts)
    if truth.right in (SYSTEMATIC, BANDED):
        wrong = ~np.isin(label, [truth.right, INDETERMINATE, NO_CANDIDATE, UNCLASSIFIED])
    else:
        wrong = np.isin(label, [SYSTEMATIC, BANDED])
    by_model = wrong.mean(axis=1)
    spread = by_model.std(ddof=1) / np.sqrt(len(by_model)) if len(by_model) > 1 else np.nan
    names = (*CLASSES, UNCLASSIFIED, NO_CANDIDATE)
    return {
        "features": label.size,
        **{f"{name}_share": (label == name).mean() for name in names},
        "wrong_share": wrong.mean(),
        "standard_error": spread,
    }
