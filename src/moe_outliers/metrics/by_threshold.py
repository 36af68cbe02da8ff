"""The results at all thresholds: every alpha, and several shares of positions."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from moe_outliers.metrics.classes import (
    ALL_SITES,
    CLASSES,
    NO_CANDIDATE,
    OUT_OF_REACH,
    SEQUENCES,
    SYSTEMATIC,
    WIDE,
    FeatureClasses,
    at_threshold,
    classify,
    mass,
    mass_by_class,
    model_class,
)
from moe_outliers.metrics.consistency import Shifts, period
from moe_outliers.metrics.counts import HEADLINE, Basis, at_firing, pair_share
from moe_outliers.metrics.model_statistics import ModelStatistics
from moe_outliers.metrics.selection import CrossFit, Extents
from moe_outliers.metrics.surrogate import Surrogate, expected_wide
from moe_outliers.metrics.values import NO_CANDIDATES, Values
from moe_outliers.stats import Array
from moe_outliers.storage import parquet

POSITION_SHARES = (0.0, 0.01, 0.06, 0.25)
"""Shares of positions beside the headline's; 0 asks for one position."""

SCREEN = 999
"""Permutations of features that are not significant anyway, at thresholds beside the headline's."""

SCHEMA = parquet.schema(
    model=(pa.string(), "slug of the table of models"),
    basis=(pa.string(), "whose size is asked for: z, x or y"),
    alpha=(pa.float64(), "threshold of its abs value"),
    position_share=(pa.float64(), "share of positions at which a site fires; 0: one position"),
    headline=(pa.bool_(), "the thresholds are those of the headline"),
    energy=(
        pa.bool_(),
        "of z, the stored threshold nearest to a feature with 1/80 of the token's energy",
    ),
    model_class=(
        pa.string(),
        "class of the model; out_of_reach: alpha is above sqrt(width) / 2; empty where it is not "
        "computed: x and y beside the headline's share of positions",
    ),
    class_not_wide=(
        pa.string(),
        "of z in the headline, the class without the wide features; empty: not recorded",
    ),
    at_threshold=(pa.bool_(), "the 95 % t interval of the largest mean extent holds layer_share"),
    candidates=(pa.int32(), "candidates over all sequences"),
    n_dims=(pa.float64(), "M12: outlier features, chosen on three folds, found on the fourth"),
    surrogate_n_dims=(
        pa.int32(),
        "candidates that Gaussian activations at these gains would give; empty for y",
    ),
    surrogate_extent_share=(pa.float64(), "their mean extent"),
    surrogate_wide=(
        pa.float64(),
        "wide features by z that a lognormal, fitted to the middle 90 % of the features' sizes, "
        "would give; empty: not recorded",
    ),
    **{f"n_{name}": (pa.int32(), f"features of class {name}") for name in CLASSES},
    n_in_subsets=(pa.int32(), "systematic features that are so in subsets of the sites alone"),
    subsets=(
        pa.int32(),
        "subsets of sites that were tested for each candidate beside all sites; 0: not testable "
        "with so few sequences, or no subset",
    ),
    mass_sequences=(pa.int32(), "sequences in which anything fires: those that the masses are of"),
    **{
        f"mass_{name}_share": (pa.float64(), f"outlier mass in features of class {name}")
        for name in (*CLASSES, NO_CANDIDATE)
    },
)
"""One row a basis and pair of thresholds."""

ENERGY = 1 / 80
"""Share of a token's energy at which models of different widths are compared: z^2 / width."""


def energy_alpha(alphas: Array, width: int) -> float:
    """Return the stored threshold of z that is nearest to 1/80 of a token's energy."""
    return float(alphas[np.abs(alphas - np.sqrt(ENERGY * width)).argmin()])


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
    energy = energy_alpha(model.counts.alphas[HEADLINE], model.features)
    rows = []
    for basis in model.bases:
        for alpha in model.counts.alphas[basis].tolist():
            coverage = surrogate.coverage(basis, alpha)
            for share in shares:
                at = Thresholds(basis, alpha, share)
                fires = model.counts.firing(basis, alpha, share)
                rows.append(
                    vars(at)
                    | _expected(model, surrogate, coverage, share)
                    | {"surrogate_wide": _expected_wide(model, at)}
                    | _selected(values, model, at, fires)
                    | _classed(model, at, fires)
                    | {"class_not_wide": None}
                    | _without_wide(model, at)
                    | {"energy": bool(basis == HEADLINE and alpha == energy)}
                )
    return parquet.of_rows(SCHEMA, rows, model=model.slug)


def _expected(
    model: ModelStatistics, surrogate: Surrogate, coverage: Array, share: float
) -> dict[str, Any]:
    if np.isnan(coverage).all():
        return {"surrogate_n_dims": None, "surrogate_extent_share": None}
    number, extent = surrogate.features(coverage, share, model.criteria.layer_share)
    return {"surrogate_n_dims": number, "surrogate_extent_share": extent}


def _expected_wide(model: ModelStatistics, at: Thresholds) -> float | None:
    rms = model.z_rms if at.basis == HEADLINE else None
    return None if rms is None else expected_wide(rms, at.alpha, at.position_share)


def _selected(
    values: Values, model: ModelStatistics, at: Thresholds, fires: Array
) -> dict[str, Any]:
    """Add the values by sequence of a cell; return its numbers of features."""
    extents, layer_share = Extents.of(fires, model.subsets.values()), model.criteria.layer_share
    fit = CrossFit.of(extents, layer_share)
    keys = vars(at)
    values.add("n_dims_sequence", fit.count(extents.passing(layer_share)), **keys)
    values.add_whole("n_dims", fit.features, **keys)
    if fit.chosen.any():
        counts = model.counts.at(at.basis, at.alpha)
        values.add("extent_site_share", fit.mean(extents.whole), **keys)
        values.add("sd_pair_share", fit.mean(pair_share(counts, model.counts.positions)), **keys)
    else:
        values.lack(NO_CANDIDATES, "extent_site_share", "sd_pair_share", **keys)
    return {
        "n_dims": fit.features,
        "candidates": extents.select(layer_share).sum(),
        "at_threshold": at_threshold(extents.whole, layer_share),
    }


def _classed(model: ModelStatistics, at: Thresholds, fires: Array) -> dict[str, Any]:
    """Class the model in a cell; by x or y only at the headline's share of positions."""
    basis, own_share = at.basis, at.position_share == model.criteria.position_share
    headline = bool(np.isclose(at.alpha, model.alpha(basis)) and own_share)
    row: dict[str, Any] = {"headline": headline}
    names = [name for name in SCHEMA.names if name[:2] == "n_" or name[:5] == "mass_"]
    row |= dict.fromkeys(["model_class", "subsets", *(set(names) - {"n_dims"})])
    if not (own_share or basis == HEADLINE):
        return row
    if not model.in_reach(basis, at.alpha):
        return row | {"model_class": OUT_OF_REACH}
    classes = model.classes[basis] if headline else model.classify(fires, SCREEN)
    return row | summarise(classes, at_firing(model.counts.at(basis, at.alpha), fires))


def _without_wide(model: ModelStatistics, at: Thresholds) -> dict[str, Any]:
    """Class the model without its wide features, in the headline's cell of z."""
    own = at.position_share == model.criteria.position_share
    if model.kinds is None or at.basis != HEADLINE or not own:
        return {}
    if not np.isclose(at.alpha, model.alpha(HEADLINE)) or not model.in_reach(HEADLINE, at.alpha):
        return {}
    kept = model.kinds != WIDE
    found = model.classes[HEADLINE]
    rest = replace(found, label=np.where(kept, found.label, NO_CANDIDATE))
    counts = np.where(kept, model.outliers[HEADLINE], 0)
    return {"class_not_wide": summarise(rest, counts)["model_class"]}


def class_without(model: ModelStatistics, basis: Basis, place: int) -> str | None:
    """Class the model from all sequences but one; None where these are too few, or out of reach."""
    alpha, others = model.alpha(basis), np.arange(len(model.sequences)) != place
    if others.sum() < SEQUENCES or not model.in_reach(basis, alpha):
        return None
    fires = model.firing[basis][others]
    shifts = Shifts.draw(fires, period(model.counts.mixer), model.rng("left out"))
    classes = classify(
        fires,
        layer_share=model.criteria.layer_share,
        subsets=model.subsets,
        shifts=shifts,
        screen=SCREEN,
    )
    found: str = summarise(classes, model.outliers[basis][others])["model_class"]
    return found


def summarise(classes: FeatureClasses, counts: Array) -> dict[str, Any]:
    """Count the features of each class and the mass that they hold, and class the model.

    Args:
        classes: of the features.
        counts: (sequence, feature), positions above the threshold, summed over firing sites.
    """
    by_class = mass_by_class(mass(counts), classes.label)
    held = {
        name: min(float(np.nanmean(share)), 1.0) if not np.isnan(share).all() else 0.0
        for name, share in by_class.items()
    }
    return {
        "model_class": model_class(held, classes.label),
        **{f"n_{name}": (classes.label == name).sum() for name in CLASSES},
        "n_in_subsets": ((classes.label == SYSTEMATIC) & (classes.where != ALL_SITES)).sum(),
        "subsets": classes.subsets,
        "mass_sequences": (counts.sum(axis=1) > 0).sum(),
        **{f"mass_{name}_share": held[name] for name in (*CLASSES, NO_CANDIDATE)},
    }
