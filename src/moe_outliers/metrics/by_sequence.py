"""Metrics with one value a sequence: extents, shares of positions, magnitudes, perplexity."""

from typing import Any

import numpy as np
import pyarrow as pa

from moe_outliers.metrics import counts, language, magnitude
from moe_outliers.metrics.classes import NO_CANDIDATE, fewest, mass, mass_by_class
from moe_outliers.metrics.consistency import consistency
from moe_outliers.metrics.counts import BASES, Basis
from moe_outliers.metrics.legacy import Legacy
from moe_outliers.metrics.magnitude import Extremes
from moe_outliers.metrics.model_statistics import ModelStatistics
from moe_outliers.metrics.selection import halves, select
from moe_outliers.metrics.values import NO_CANDIDATES, NO_FEATURES, NOT_RECORDED, Values
from moe_outliers.storage import parquet


def add_held_out(values: Values, model: ModelStatistics, extremes: Extremes) -> None:
    """Add, by basis, what is averaged over outlier features chosen on other sequences."""
    x = model.counts.at("x", model.criteria.magnitude)
    positions = model.counts.positions
    high = np.abs(extremes.signed).max(axis=1).astype(float)
    z_high = extremes.z.max(axis=1).astype(float)
    sided = magnitude.one_sidedness(
        model.statistics["x_positive"].values.sum(axis=1, dtype=np.int64),
        model.counts.at("x", 6).sum(axis=1, dtype=np.int64),
    )
    types = magnitude.type_shares(model.statistics, model.counts.at("x", 6))
    for basis in BASES:
        fit, fires, keys = model.fit[basis], model.firing[basis], _keys(model, basis)
        if not fit.chosen.any():
            values.lack(NO_CANDIDATES, *HELD_OUT, **keys)
            continue
        z = model.counts.at("z", model.alpha("z")) if basis == "z" else x
        shared = {
            "extent_block_share": counts.block_extent(fires),
            "sd_firing_share": counts.firing_share(z, fires, positions),
            "magnitude": high,
            "magnitude_z": z_high,
            "one_sided_share": np.where(np.isnan(sided), np.nan, sided >= magnitude.ONE_SIDED),
        }
        for metric, table in shared.items():
            values.add(metric, fit.mean(table), **keys)
        weights = z.sum(axis=1, dtype=np.int64)
        values.add("extent_mass_share", fit.mean(model.extent[basis], weights), **keys)
        for name, table in zip(magnitude.TYPES, types, strict=True):
            values.add("type_coverage_share", fit.mean(table), token_type=name, **keys)
        _add_groups(values, model, basis)


HELD_OUT = (
    "extent_block_share", "sd_firing_share", "magnitude", "magnitude_z", "one_sided_share",
    "extent_mass_share", "type_coverage_share",
)  # fmt: skip
"""Metrics that `add_held_out` adds for each basis, beside the extents by kind of site."""


def _add_groups(values: Values, model: ModelStatistics, basis: Basis) -> None:
    """Add the extents over the sites of each kind, and of each mixer if a kind has several."""
    fit, fires, keys = model.fit[basis], model.firing[basis], _keys(model, basis)
    for kind in np.unique(model.counts.kind):
        of_kind = model.counts.kind == kind
        extent = counts.site_extent(fires[:, of_kind])
        values.add("extent_site_share", fit.mean(extent), kind=kind, **keys)
        mixers = np.unique(model.counts.mixer[of_kind])
        for mixer in mixers if len(mixers) > 1 else []:
            extent = counts.site_extent(fires[:, of_kind & (model.counts.mixer == mixer)])
            values.add("extent_site_share", fit.mean(extent), kind=kind, mixer=mixer, **keys)


def add_features(model: ModelStatistics, extremes: Extremes) -> pa.Table:
    """Return values of single features, chosen on the even sequences and scored on the odd ones."""
    even, odd = halves(len(model.sequences))
    chosen = np.flatnonzero(select(model.extent["x"][even], model.criteria.layer_share))
    values = Values(model.slug, model.sequences[odd])
    of_feature: dict[str, Any] = {"axis": {"feature": chosen}}
    if not len(chosen):
        values.lack(NO_CANDIDATES, "feature_extent_share", "feature_sd_pair_share")
        return values.table()
    for basis in BASES:
        extent = model.extent[basis][np.ix_(odd, chosen)]
        values.add("feature_extent_share", extent, **of_feature, **_keys(model, basis))
    x = model.counts.at("x", model.criteria.magnitude)[odd][:, :, chosen]
    share = counts.pair_share(x, model.counts.positions[odd])
    high = np.abs(extremes.signed[odd][:, :, chosen]).max(axis=1)
    values.add("feature_sd_pair_share", share, **of_feature, **_keys(model, "x"))
    values.add("feature_magnitude", high, **of_feature, **_keys(model, "x"))
    return values.table()


def add_whole(values: Values, model: ModelStatistics, extremes: Extremes) -> None:
    """Add what needs no selected features: masses, largest values, control, consistency."""
    keys = _keys(model, "x")
    values.add("x_abs_max", np.abs(extremes.signed).max(axis=(1, 2)))
    values.add("z_abs_max", extremes.z.max(axis=(1, 2)))
    values.add("k90", fewest(model.outliers, 0.9), **keys)
    held = mass_by_class(mass(model.outliers), model.label)
    for name, share in held.items():
        of_class = keys | {"class": name}
        if (model.label == name).any():
            values.add("mass_share", np.minimum(share, 1), **of_class)
        else:
            values.add_whole("mass_share", 0.0, note=NO_FEATURES, **of_class)
    free = magnitude.gain_free_share(
        model.firing["x"],
        model.counts.firing("z", model.criteria.magnitude, model.criteria.position_share),
    )
    values.add("gain_free_share", free, **keys)
    for basis in BASES:
        label = model.classes[basis].label
        rest, keys = label == NO_CANDIDATE, _keys(model, basis)
        if rest.any():
            values.add("control_extent_share", model.extent[basis][:, rest].mean(axis=1), **keys)
        passing = model.extent[basis] >= model.criteria.layer_share - counts.ROUNDING
        values.add("n_dims_alone", passing.sum(axis=1), **keys)
        if not rest.all():
            agreement = consistency(model.firing[basis][:, :, ~rest])
            values.add_whole("consistency", agreement.mean(), **keys)


def add_legacy(values: Values, model: ModelStatistics, legacy: Legacy) -> None:
    """Add the old system's numbers."""
    values.add_whole("legacy_count", legacy.count)
    values.add_whole("legacy_distinct", legacy.distinct)
    for kind in ("mean", "median"):
        values.add_whole(f"legacy_layer_{kind}_share", legacy.average(legacy.layer_share, kind))
        covered = legacy.average(legacy.position_share, kind)
        values.add_whole(f"legacy_position_{kind}_share", covered)
    chosen = legacy.magnitude[legacy.chosen]
    values.add_whole("legacy_magnitude", chosen.max() if len(chosen) else np.nan)


def add_language(values: Values, model: ModelStatistics) -> pa.Table:
    """Add loss and bits per byte; return the likelihood of each token, of language.SCHEMA."""
    if not model.has("token_nll"):
        values.lack(NOT_RECORDED, "nll", "perplexity", "bits_per_byte", "bits_per_byte_common")
        return language.SCHEMA.empty_table()
    nll = model.statistics["token_nll"].values.astype(float)
    ends = np.array(model.tokens["ends"].to_pylist())
    values.add("nll", nll.mean(axis=1))
    own = [
        language.span_bits_per_byte(end[1:], row, int(end[0]), int(end[-1]))
        for end, row in zip(ends, nll, strict=True)
    ]
    values.add("bits_per_byte", np.array(own))
    return parquet.table(
        language.SCHEMA,
        {
            "model": model.slug,
            "sequence": np.repeat(model.sequences, nll.shape[1]),
            "end_byte": ends[:, 1:].ravel(),
            "nll_nat": nll.ravel(),
        },
    )


def _keys(model: ModelStatistics, basis: Basis) -> dict[str, Any]:
    return {
        "basis": basis,
        "alpha": model.alpha(basis),
        "position_share": model.criteria.position_share,
    }
