"""The results at all thresholds: every alpha, and several shares of positions."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from moe_outliers.metrics.classes import (
    CLASSES,
    NO_CANDIDATE,
    FeatureClasses,
    mass,
    mass_by_class,
    model_class,
)
from moe_outliers.metrics.counts import BASES, Basis, pair_share, reaches, site_extent
from moe_outliers.metrics.model_statistics import ModelStatistics
from moe_outliers.metrics.selection import CrossFit, select
from moe_outliers.metrics.surrogate import Surrogate
from moe_outliers.metrics.values import NO_CANDIDATES, Values
from moe_outliers.stats import Array
from moe_outliers.storage import parquet

POSITION_SHARES = (0.0, 0.01, 0.06, 0.25)
"""Shares of positions beside the headline's; 0 asks for one position."""

SCREEN = 999
"""Permutations of features that are not significant anyway, at thresholds beside the headline's."""

SCHEMA = parquet.schema(
    model=(pa.string(), "slug of the table of models"),
    basis=(pa.string(), "what fires: `fires` (x at alpha and z at 3), `x` or `z` at alpha"),
    alpha=(pa.float64(), "threshold of abs(x), for basis z of abs(z)"),
    position_share=(pa.float64(), "share of positions at which a site fires; 0: one position"),
    headline=(pa.bool_(), "the thresholds are those of the headline"),
    model_class=(
        pa.string(),
        "class of the model; empty where it is not computed: x and z beside the headline's share",
    ),
    candidates=(pa.int32(), "candidates over all sequences: for `fires`, by x alone"),
    n_dims=(pa.float64(), "M12: outlier features, chosen on three folds, found on the fourth"),
    surrogate_n_dims=(pa.int32(), "candidates that Gaussian activations at these gains would give"),
    surrogate_extent_share=(pa.float64(), "their mean extent"),
    **{f"n_{name}": (pa.int32(), f"features of class {name}") for name in CLASSES},
    **{
        f"mass_{name}_share": (pa.float64(), f"outlier mass in features of class {name}")
        for name in (*CLASSES, NO_CANDIDATE)
    },
)
"""One row a basis and pair of thresholds."""


@dataclass(frozen=True)
class Thresholds:
    """One combination of basis and thresholds: a cell of the table."""

    basis: Basis
    alpha: float
    position_share: float


def sweep(values: Values, model: ModelStatistics) -> pa.Table:
    """Add extents, shares and counts at all thresholds; return the table of SCHEMA."""
    surrogate = Surrogate.of(model.statistics)
    shares = sorted({*POSITION_SHARES, model.criteria.position_share})
    rows = []
    for alpha in model.counts.alphas.tolist():
        coverage = {basis: surrogate.coverage(basis, alpha) for basis in BASES}
        for share in shares:
            firing = {basis: model.counts.firing(basis, alpha, share) for basis in BASES}
            for basis in BASES:
                at = Thresholds(basis, alpha, share)
                rows.append(
                    vars(at)
                    | _expected(model, surrogate, coverage[basis], share)
                    | _selected(values, model, at, firing[basis])
                    | _classed(model, at, firing)
                )
    return parquet.of_rows(SCHEMA, rows, model=model.slug)


def _expected(
    model: ModelStatistics, surrogate: Surrogate, coverage: Array, share: float
) -> dict[str, Any]:
    number, extent = surrogate.features(coverage, share, model.criteria.layer_share)
    return {"surrogate_n_dims": number, "surrogate_extent_share": extent}


def _selected(
    values: Values, model: ModelStatistics, at: Thresholds, fires: Array
) -> dict[str, Any]:
    """Add the values by sequence of a cell; return its number of outlier features."""
    extent, layer_share = site_extent(fires), model.criteria.layer_share
    fit = CrossFit.of(extent, layer_share)
    keys = vars(at)
    values.add("n_dims_sequence", fit.count(reaches(extent, layer_share)), **keys)
    values.add_whole("n_dims", fit.features, **keys)
    if fit.chosen.any():
        counts = model.counts.at(at.basis, at.alpha)
        values.add("extent_site_share", fit.mean(extent), **keys)
        values.add("sd_pair_share", fit.mean(pair_share(counts, model.counts.positions)), **keys)
    else:
        values.lack(NO_CANDIDATES, "extent_site_share", "sd_pair_share", **keys)
    return {"n_dims": fit.features}


def _classed(model: ModelStatistics, at: Thresholds, firing: dict[Basis, Array]) -> dict[str, Any]:
    """Class the model in a cell; by x or z alone only at the headline's share of positions."""
    basis, share = at.basis, model.criteria.position_share
    headline = bool(np.isclose(at.alpha, model.alpha(basis)) and at.position_share == share)
    extent = site_extent(firing["x" if basis == "fires" else basis])
    row = {"headline": headline, "candidates": select(extent, model.criteria.layer_share).sum()}
    if headline:
        classes = model.classes[basis]
    elif basis == "fires" or at.position_share == share:
        classes = model.classify(firing[basis], extent, SCREEN)
    else:
        names = [name for name in SCHEMA.names if name[:2] == "n_" or name[:5] == "mass_"]
        return dict.fromkeys(["model_class", *names]) | row
    total = model.counts.at(basis, at.alpha).sum(axis=1, dtype=np.int64)
    return row | summarise(classes, total)


def summarise(classes: FeatureClasses, counts: Array) -> dict[str, Any]:
    """Count the features of each class and the mass that they hold, and class the model.

    Args:
        classes: of the features.
        counts: (sequence, feature), positions above the threshold, summed over sites.
    """
    by_class = mass_by_class(mass(counts), classes.label)
    held = {
        name: min(float(np.nanmean(share)), 1.0) if not np.isnan(share).all() else 0.0
        for name, share in by_class.items()
    }
    return {
        "model_class": model_class(held, classes.label),
        **{f"n_{name}": (classes.label == name).sum() for name in CLASSES},
        **{f"mass_{name}_share": held[name] for name in (*CLASSES, NO_CANDIDATE)},
    }
