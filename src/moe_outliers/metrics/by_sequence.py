"""Metrics with one value a sequence: extents, shares of positions, magnitudes, perplexity."""

from typing import Any

import numpy as np
import pyarrow as pa

from moe_outliers.metrics import counts, language, magnitude
from moe_outliers.metrics.classes import NO_CANDIDATE, fewest, mass, mass_by_class
from moe_outliers.metrics.consistency import consistency
from moe_outliers.metrics.counts import Basis
from moe_outliers.metrics.legacy import Dettmers, Legacy
from moe_outliers.metrics.magnitude import Extremes
from moe_outliers.metrics.model_statistics import ModelStatistics
from moe_outliers.metrics.selection import halves
from moe_outliers.metrics.values import NO_CANDIDATES, NO_FEATURES, NOT_RECORDED, Values
from moe_outliers.stats import Array
from moe_outliers.storage import parquet


def add_held_out(values: Values, model: ModelStatistics, extremes: Extremes) -> None:
    """Add, by basis, what is averaged over outlier features chosen on other sequences."""
    positions = model.counts.positions
    high = np.abs(extremes.signed).max(axis=1).astype(float)
    z_high = extremes.z.max(axis=1).astype(float)
    sided = magnitude.one_sidedness(
        model.statistics["x_positive"].values.sum(axis=1, dtype=np.int64),
        model.counts.at("x", 6).sum(axis=1, dtype=np.int64),
    )
    types = magnitude.type_shares(model.statistics, model.counts.at("x", 6))
    for basis in model.bases:
        fit, fires, keys = model.fit[basis], model.firing[basis], _keys(model, basis)
        if not fit.chosen.any():
            values.lack(NO_CANDIDATES, *HELD_OUT, **keys)
            continue
        above = model.counts.at(basis, model.alpha(basis))
        shared = {
            "extent_block_share": counts.block_extent(fires),
            "sd_firing_share": counts.firing_share(above, fires, positions),
            "magnitude": high,
            "magnitude_z": z_high,
            "one_sided_share": np.where(np.isnan(sided), np.nan, sided >= magnitude.ONE_SIDED),
        }
        for metric, table in shared.items():
            values.add(metric, fit.mean(table), **keys)
        weighted = fit.mean(model.extents[basis].whole, model.outliers[basis])
        values.add("extent_mass_share", weighted, **keys)
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
    values = Values(model.slug, model.sequences[odd])
    for basis in model.bases:
        keys = _keys(model, basis)
        on_even = model.extents[basis].of_sequences(even)
        chosen = np.flatnonzero(on_even.select(model.criteria.layer_share))
        if not len(chosen):
            values.lack(NO_CANDIDATES, *OF_FEATURES, **keys)
            continue
        above = model.counts.at(basis, model.alpha(basis))[odd][:, :, chosen]
        tables = {
            "feature_extent_share": model.extents[basis].whole[np.ix_(odd, chosen)],
            "feature_sd_pair_share": counts.pair_share(above, model.counts.positions[odd]),
            "feature_magnitude": np.abs(extremes.signed[odd][:, :, chosen]).max(axis=1),
        }
        for metric, table in tables.items():
            values.add(metric, table, axis={"feature": chosen}, **keys)
    return values.table()


OF_FEATURES = ("feature_extent_share", "feature_sd_pair_share", "feature_magnitude")
"""Metrics of single features."""


def add_whole(values: Values, model: ModelStatistics, extremes: Extremes) -> None:
    """Add what needs no selected features: masses, largest values, control, consistency."""
    values.add("x_abs_max", np.abs(extremes.signed).max(axis=(1, 2)))
    values.add("z_abs_max", extremes.z.max(axis=(1, 2)))
    magnitude_x = model.alpha("x")
    if any(np.isclose(magnitude_x, alpha) for alpha in model.counts.alphas["z"]):
        by_z = model.counts.firing("z", magnitude_x, model.criteria.position_share)
        free = magnitude.gain_free_share(model.firing["x"], by_z)
        values.add("gain_free_share", free, **_keys(model, "x"))
    for basis in model.bases:
        keys, label = _keys(model, basis), model.classes[basis].label
        values.add("k90", fewest(model.outliers[basis], 0.9), **keys)
        _add_masses(values, mass_by_class(mass(model.outliers[basis]), label), label, keys)
        rest = label == NO_CANDIDATE
        if rest.any():
            extent = model.extents[basis].whole[:, rest]
            values.add("control_extent_share", extent.mean(axis=1), **keys)
        passing = model.extents[basis].passing(model.criteria.layer_share)
        values.add("n_dims_alone", passing.sum(axis=1), **keys)
        if not rest.all():
            agreement = consistency(model.firing[basis][:, :, ~rest])
            values.add_whole("consistency", agreement.mean(), **keys)


def _add_masses(values: Values, held: dict[str, Array], label: Array, keys: dict[str, Any]) -> None:
    """Add the mass of each class of features; zero as a whole where no feature is of it."""
    for name, share in held.items():
        of_class = keys | {"class": name}
        if (label == name).any():
            values.add("mass_share", np.minimum(share, 1), **of_class)
        else:
            values.add_whole("mass_share", 0.0, note=NO_FEATURES, **of_class)


def add_dettmers(values: Values, model: ModelStatistics) -> None:
    """Add the numbers of Dettmers et al. 2022, by their definition."""
    union = model.statistics["union_count"].sel(union="all").values
    found = Dettmers.of(model.counts.at("x", 6), union, model.counts.positions)
    values.add("dettmers_n_dims", found.chosen.sum(axis=1))
    values.add("dettmers_layer_share", found.mean(found.layer_share))
    values.add("dettmers_position_share", found.mean(found.position_share))


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
