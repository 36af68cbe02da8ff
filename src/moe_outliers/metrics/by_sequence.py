"""The numbers of a model by sequence: extents, shares of positions, magnitudes, perplexity."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moe_outliers.metrics import counts, language, magnitude
from moe_outliers.metrics.classes import NO_CANDIDATE, fewest, mass, mass_by_class
from moe_outliers.metrics.consistency import consistency
from moe_outliers.metrics.counts import BASES, Basis
from moe_outliers.metrics.legacy import Legacy
from moe_outliers.metrics.magnitude import Extremes
from moe_outliers.metrics.model_statistics import Study
from moe_outliers.metrics.selection import halves, select
from moe_outliers.metrics.values import NO_CANDIDATES, NO_FEATURES, NOT_RECORDED, Values
from moe_outliers.storage import parquet

Array = NDArray[Any]


def add_held_out(values: Values, study: Study, extremes: Extremes) -> None:
    """Add what is averaged over outlier features chosen on other sequences, by basis."""
    x = study.counts.at("x", study.criteria.magnitude)
    positions = study.counts.positions
    high = np.abs(extremes.signed).max(axis=1).astype(float)
    z_high = extremes.z.max(axis=1).astype(float)
    sided = magnitude.one_sidedness(
        study.statistics["x_positive"].values.sum(axis=1, dtype=np.int64),
        study.counts.at("x", 6).sum(axis=1, dtype=np.int64),
    )
    types = magnitude.type_shares(study.statistics, study.counts.at("x", 6))
    for basis in BASES:
        fit, fires, keys = study.fit[basis], study.firing[basis], _keys(study, basis)
        if not fit.chosen.any():
            values.lack(NO_CANDIDATES, *HELD_OUT, **keys)
            continue
        z = study.counts.at("z", study.alpha("z")) if basis == "z" else x
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
        values.add("extent_mass_share", fit.mean(study.extent[basis], weights), **keys)
        for name, table in zip(magnitude.TYPES, types, strict=True):
            values.add("type_coverage_share", fit.mean(table), token_type=name, **keys)
        _add_groups(values, study, basis)


HELD_OUT = (
    "extent_block_share", "sd_firing_share", "magnitude", "magnitude_z", "one_sided_share",
    "extent_mass_share", "type_coverage_share",
)  # fmt: skip
"""What `add_held_out` adds for each basis, beside the extents of some kinds of site."""


def _add_groups(values: Values, study: Study, basis: Basis) -> None:
    """Add the extents over the sites of one kind, and of one mixer where a kind has several."""
    fit, fires, keys = study.fit[basis], study.firing[basis], _keys(study, basis)
    for kind in np.unique(study.counts.kind):
        of_kind = study.counts.kind == kind
        extent = counts.site_extent(fires[:, of_kind])
        values.add("extent_site_share", fit.mean(extent), kind=kind, **keys)
        mixers = np.unique(study.counts.mixer[of_kind])
        for mixer in mixers if len(mixers) > 1 else []:
            extent = counts.site_extent(fires[:, of_kind & (study.counts.mixer == mixer)])
            values.add("extent_site_share", fit.mean(extent), kind=kind, mixer=mixer, **keys)


def add_features(study: Study, extremes: Extremes) -> pa.Table:
    """Return values of single features: chosen on the even sequences, scored on the odd ones."""
    even, odd = halves(len(study.sequences))
    chosen = np.flatnonzero(select(study.extent["x"][even], study.criteria.layer_share))
    values = Values(study.model, study.sequences[odd])
    of_feature: dict[str, Any] = {"axis": {"feature": chosen}}
    if not len(chosen):
        values.lack(NO_CANDIDATES, "feature_extent_share", "feature_sd_pair_share")
        return values.table()
    for basis in BASES:
        extent = study.extent[basis][np.ix_(odd, chosen)]
        values.add("feature_extent_share", extent, **of_feature, **_keys(study, basis))
    x = study.counts.at("x", study.criteria.magnitude)[odd][:, :, chosen]
    share = counts.pair_share(x, study.counts.positions[odd])
    high = np.abs(extremes.signed[odd][:, :, chosen]).max(axis=1)
    values.add("feature_sd_pair_share", share, **of_feature, **_keys(study, "x"))
    values.add("feature_magnitude", high, **of_feature, **_keys(study, "x"))
    return values.table()


def add_whole(values: Values, study: Study, extremes: Extremes) -> None:
    """Add what needs no selection: masses, largest values, the control, consistency."""
    keys = _keys(study, "x")
    values.add("x_abs_max", np.abs(extremes.signed).max(axis=(1, 2)))
    values.add("z_abs_max", extremes.z.max(axis=(1, 2)))
    values.add("k90", fewest(study.outliers, 0.9), **keys)
    held = mass_by_class(mass(study.outliers), study.label)
    for name, share in held.items():
        of_class = keys | {"class": name}
        if (study.label == name).any():
            values.add("mass_share", np.minimum(share, 1), **of_class)
        else:
            values.add_whole("mass_share", 0.0, note=NO_FEATURES, **of_class)
    free = magnitude.gain_free_share(
        study.firing["x"],
        study.counts.firing("z", study.criteria.magnitude, study.criteria.position_share),
    )
    values.add("gain_free_share", free, **keys)
    for basis in BASES:
        label = study.classes[basis].label
        rest, keys = label == NO_CANDIDATE, _keys(study, basis)
        if rest.any():
            values.add("control_extent_share", study.extent[basis][:, rest].mean(axis=1), **keys)
        passing = study.extent[basis] >= study.criteria.layer_share - counts.ROUNDING
        values.add("n_dims_alone", passing.sum(axis=1), **keys)
        if not rest.all():
            agreement = consistency(study.firing[basis][:, :, ~rest])
            values.add_whole("consistency", agreement.mean(), **keys)


def add_legacy(values: Values, study: Study, legacy: Legacy) -> None:
    """Add the old system's numbers."""
    values.add_whole("legacy_count", legacy.count)
    values.add_whole("legacy_distinct", legacy.distinct)
    for kind in ("mean", "median"):
        values.add_whole(f"legacy_layer_{kind}_share", legacy.average(legacy.layer_share, kind))
        covered = legacy.average(legacy.position_share, kind)
        values.add_whole(f"legacy_position_{kind}_share", covered)
    chosen = legacy.magnitude[legacy.chosen]
    values.add_whole("legacy_magnitude", chosen.max() if len(chosen) else np.nan)


def add_language(values: Values, study: Study) -> pa.Table:
    """Add the perplexity's numbers; return the likelihood of each token, of language.SCHEMA."""
    if not study.has("token_nll"):
        values.lack(NOT_RECORDED, "nll", "perplexity", "bits_per_byte", "bits_per_byte_common")
        return language.SCHEMA.empty_table()
    nll = study.statistics["token_nll"].values.astype(float)
    ends = np.array(study.tokens["ends"].to_pylist())
    values.add("nll", nll.mean(axis=1))
    own = [
        language.span_bits_per_byte(end[1:], row, int(end[0]), int(end[-1]))
        for end, row in zip(ends, nll, strict=True)
    ]
    values.add("bits_per_byte", np.array(own))
    return parquet.table(
        language.SCHEMA,
        {
            "model": study.model,
            "sequence": np.repeat(study.sequences, nll.shape[1]),
            "end_byte": ends[:, 1:].ravel(),
            "nll_nat": nll.ravel(),
        },
    )


def _keys(study: Study, basis: Basis) -> dict[str, Any]:
    return {
        "basis": basis,
        "alpha": study.alpha(basis),
        "position_share": study.criteria.position_share,
    }
