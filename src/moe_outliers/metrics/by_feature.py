"""The tables of features: the class of each with its evidence, and its profile over the depth."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from moe_outliers.metrics import counts, magnitude, moments
from moe_outliers.metrics.classes import NO_CANDIDATE, mass
from moe_outliers.metrics.consistency import consistency
from moe_outliers.metrics.counts import HEADLINE, Band
from moe_outliers.metrics.feature_tokens import FeatureTokens, seen_at
from moe_outliers.metrics.legacy import Legacy
from moe_outliers.metrics.magnitude import Extremes, Gains, Magnitudes
from moe_outliers.metrics.model_statistics import ModelStatistics
from moe_outliers.metrics.surrogate import Surrogate
from moe_outliers.stats import Array
from moe_outliers.storage import parquet

TEXT, WHOLE, REAL = pa.string(), pa.int32(), pa.float64()

PROFILED = 24
"""Features of the profile, and at most of which the tokens are told."""

BOTH, ABSORBED, GAIN_MADE = RELATIONS = ("both", "absorbed", "gain_made")
"""Whether a feature is a candidate by z and by x: the gain lets it through, hides or makes it."""

SCHEMA = parquet.schema(
    model=(TEXT, "slug of the table of models"),
    feature=(WHOLE, "number of the feature, from 0"),
    **{
        "class": (
            TEXT,
            "by z: systematic, indeterminate, shift_invariant, banded, probabilistic; "
            "none: no candidate; unclassified: fewer than 8 sequences",
        )
    },
    systematic_in=(
        TEXT,
        "of a systematic feature: `all` sites, or the subsets in which it is systematic alone, the "
        "largest first",
    ),
    class_x=(TEXT, "class by x, the rule of 2022; the gains' convention moves it"),
    class_y=(TEXT, "class by y; empty: not recorded"),
    relation=(
        TEXT,
        "in this checkpoint's parametrisation: both (candidate by z and by x), absorbed (by z "
        "alone: the gain hides it), gain_made (by x alone); empty: no candidate",
    ),
    felt=(pa.bool_(), "candidate by y: what reads the sites feels it; empty: not recorded"),
    z_kind=(
        TEXT,
        "constant, wide (a large ordinary Gaussian) or spiky, at firing sites; empty: it fires "
        "nowhere by z, or the sums of z are not recorded",
    ),
    extent_share=(REAL, "share of the sites that fire by z, mean over sequences"),
    x_extent_share=(REAL, "the same by x"),
    y_extent_share=(REAL, "the same by y; empty: not recorded"),
    extent_block_share=(REAL, "share of the blocks with a site that fires by z"),
    sequences_above=(WHOLE, "sequences whose extent is at least .75"),
    sign_p=(REAL, "one-sided sign test of `the median extent is below .75`"),
    extent_upper_share=(REAL, "upper limit of the mean extent, Student's t, one-sided at .975"),
    consistency=(REAL, "M5: mean Jaccard index of the firing sites of two sequences"),
    consistency_expected=(REAL, "its mean over circular shifts; only of tested features"),
    kappa=(REAL, "(consistency - expected) / (1 - expected); only of tested features"),
    shift_p=(REAL, "circular-shift test; only of candidates that are neither systematic, "
                   "indeterminate nor shift-invariant"),
    shift_q=(REAL, "shift_p after Benjamini and Hochberg over the tested features of the model"),
    mass_share=(REAL, "M11: share of the outlier values by z, mean over sequences"),
    x_mass_share=(REAL, "the same by x"),
    mass_rank=(WHOLE, "1 for the largest mass_share; ties by number"),
    sd_pair_share=(REAL, "M4: coverage by z over all sites, mean over sequences"),
    sd_firing_share=(REAL, "M4: coverage by z over the sites that fire by z"),
    onset_site=(WHOLE, "M6: first site that fires by z in at least half of the sequences"),
    offset_site=(WHOLE, "M6: the last such site"),
    band_fill_share=(REAL, "M6: share of pairs of sequence and site between these that fire"),
    magnitude_q25=(REAL, "M7: signed extreme x where it fires by x, lower quartile"),
    magnitude_median=(REAL, "M7: their median"),
    magnitude_q75=(REAL, "M7: their upper quartile"),
    magnitude_rms=(REAL, "M7: median there of its abs in multiples of the site's rms"),
    z_median=(REAL, "M7: median of the largest abs(z) where it fires by z"),
    largest=(REAL, "M7: x of largest abs anywhere, signed; a maximum: no interval"),
    largest_site=(WHOLE, "its site"),
    largest_z=(REAL, "largest abs(z) anywhere; a maximum: no interval"),
    one_sidedness=(REAL, "M8: |n+ - n-| / (n+ + n-) of positions with abs(x) >= 6"),
    gain_median=(REAL, "M14: median over sites of abs(gain)"),
    gain_z_score=(REAL, "M14: median over sites of abs(gain) in standard deviations from the "
                        "site's mean"),
    log2_gain_at_largest=(REAL, "M14: log2 abs(gain) at largest_site"),
    log2_z_at_largest=(REAL, "M14: log2 of abs(largest - offset) / abs(gain) at largest_site; "
                             "the two add up to log2 of abs(largest - offset)"),
    surrogate_extent_share=(REAL, "extent by x that a Gaussian behind this feature's gains has"),
    surrogate_coverage_share=(REAL, "coverage over all sites that it has"),
    first_share=(REAL, "M21: coverage at 6 at position 0, mean over sites and sequences"),
    delimiter_share=(REAL, "M21: coverage at 6 at delimiters, mean over sites and sequences"),
    other_share=(REAL, "M21: coverage at 6 at other positions, mean over sites and sequences"),
    token_half_share=(
        REAL,
        "frequency of the fewest token ids that hold half of the positions where it has the "
        "largest abs(x), at or above the magnitude: .5 where the token does not matter, near 0 for "
        "a token detector; only of the 24 candidates with most mass",
    ),
    token_positions=(WHOLE, "pairs of site and position that this is of"),
    folds_chosen=(WHOLE, "folds for which the feature is chosen, by z"),
    legacy_sequences=(WHOLE, "M13: sequences in which the old system counted it"),
    legacy_layer_share=(REAL, "M13: old L of the feature, mean over sequences; biased"),
)  # fmt: skip
"""One row a feature, in order of the features."""


def describe(
    model: ModelStatistics,
    extremes: Extremes,
    legacy: Legacy,
    tokens: Mapping[int, FeatureTokens],
) -> pa.Table:
    """Describe every feature, one row each, of SCHEMA.

    Args:
        model: of the model.
        extremes: of the model.
        legacy: of the model.
        tokens: as `tokens_of` returns them.
    """
    classes, fires = model.classes[HEADLINE], model.firing[HEADLINE]
    above = model.counts.at(HEADLINE, model.alpha(HEADLINE))
    mass_share = _mean(mass(model.outliers[HEADLINE]))
    band = Band.of(fires)
    columns = {
        "model": model.slug,
        "feature": np.arange(model.features),
        "class": classes.label,
        "systematic_in": np.where(classes.where == "", None, classes.where),  # type: ignore[call-overload]
        **_by_basis(model),
        "z_kind": [None] * model.features
        if model.kinds is None
        else np.where(model.kinds == "", None, model.kinds),  # type: ignore[call-overload]
        "extent_block_share": counts.block_extent(fires).mean(axis=0),
        "sequences_above": classes.above,
        "sign_p": classes.sign_p,
        "extent_upper_share": np.minimum(classes.upper, 1),
        "consistency": consistency(fires),
        "consistency_expected": classes.expected,
        "kappa": classes.kappa,
        "shift_p": classes.p,
        "shift_q": classes.q,
        "mass_share": mass_share,
        "x_mass_share": _mean(mass(model.outliers["x"])),
        "mass_rank": _ranks(mass_share),
        "sd_pair_share": counts.pair_share(above, model.counts.positions).mean(axis=0),
        "sd_firing_share": _mean(counts.firing_share(above, fires, model.counts.positions)),
        "onset_site": _or_null(band.onset),
        "offset_site": _or_null(band.offset),
        "band_fill_share": band.fill,
        "folds_chosen": model.fit[HEADLINE].chosen.sum(axis=0),
        "legacy_sequences": legacy.chosen.sum(axis=0),
        "legacy_layer_share": legacy.layer_share.mean(axis=0),
    }
    known = _tokens(model.features, tokens)
    return parquet.table(SCHEMA, columns | known | _sizes(model, extremes) | _types(model))


def tokens_of(model: ModelStatistics) -> dict[int, FeatureTokens]:
    """Return the tokens of the 24 candidates by z or x with most outlier mass, by feature."""
    if not model.has("position_feature", "position_max"):
        return {}
    candidate = np.logical_or.reduce(
        [model.classes[basis].label != NO_CANDIDATE for basis in (HEADLINE, "x")]
    )
    heavy = sum(np.nan_to_num(_mean(mass(model.outliers[basis]))) for basis in (HEADLINE, "x"))
    order = np.argsort(-np.asarray(heavy), kind="stable")
    statistics = model.statistics
    there = seen_at(
        statistics["position_feature"].values,
        statistics["position_max"].values,
        model.alpha("x"),
    )
    ids, delimiter = (np.array(model.tokens[name].to_pylist()) for name in ("ids", "delimiter"))
    return {
        int(feature): FeatureTokens.of((there == feature).sum(axis=1), ids, delimiter)
        for feature in order[candidate[order]][:PROFILED]
    }


def _tokens(features: int, tokens: Mapping[int, FeatureTokens]) -> dict[str, Any]:
    """Return the columns of tokens, empty for features whose tokens are not known."""
    half: list[float | None] = [None] * features
    seen: list[int | None] = [None] * features
    for feature, found in tokens.items():
        half[feature], seen[feature] = found.half_share, found.seen
    return {"token_half_share": half, "token_positions": seen}


def _by_basis(model: ModelStatistics) -> dict[str, Any]:
    """Return the columns that set the bases beside each other."""
    candidate = {b: found.label != NO_CANDIDATE for b, found in model.classes.items()}
    both = candidate["z"].astype(int) + 2 * candidate["x"]
    felt = candidate.get("y")
    unknown = [None] * model.features
    return {
        "class_x": model.classes["x"].label,
        "class_y": model.classes["y"].label if "y" in model.classes else unknown,
        "relation": np.array([None, ABSORBED, GAIN_MADE, BOTH], dtype=object)[both],
        "felt": unknown if felt is None else felt,
        "extent_share": model.extents["z"].whole.mean(axis=0),
        "x_extent_share": model.extents["x"].whole.mean(axis=0),
        "y_extent_share": model.extents["y"].whole.mean(axis=0) if felt is not None else unknown,
    }


def _sizes(model: ModelStatistics, extremes: Extremes) -> dict[str, Array]:
    """Return the columns of magnitudes, gains and the surrogate."""
    statistics = model.statistics
    by_x, by_z = model.firing["x"], model.firing["z"]
    size = Magnitudes.of(extremes, by_x, by_z, moments.rms(statistics))
    gains = Gains.of(statistics["gain"].values, size.largest_site)
    offset = statistics["offset"].values[size.largest_site, np.arange(model.features)]
    surrogate, criteria = Surrogate.of(statistics), model.criteria
    expected = surrogate.coverage("x", criteria.at("x"))
    quartiles = dict(
        zip(("magnitude_q25", "magnitude_median", "magnitude_q75"), size.quartiles, strict=True)
    )
    return quartiles | {
        "magnitude_rms": size.in_rms,
        "z_median": size.z,
        "largest": size.largest,
        "largest_site": size.largest_site,
        "largest_z": size.largest_z,
        "one_sidedness": magnitude.one_sidedness(
            statistics["x_positive"].values.sum(axis=(0, 1), dtype=np.int64),
            model.counts.at("x", 6).sum(axis=(0, 1), dtype=np.int64),
        ),
        "gain_median": gains.median,
        "gain_z_score": gains.z_score,
        "log2_gain_at_largest": _log2(gains.at_largest),
        "log2_z_at_largest": _log2(np.abs(size.largest - offset)) - _log2(gains.at_largest),
        "surrogate_extent_share": surrogate.extent(expected, criteria.position_share),
        "surrogate_coverage_share": expected.mean(axis=0),
    }


def _types(model: ModelStatistics) -> dict[str, Array]:
    shares = magnitude.type_shares(model.statistics, model.counts.at("x", 6))
    named = zip(magnitude.TYPES, shares, strict=True)
    return {f"{name}_share": _mean(share) for name, share in named}


PROFILE = parquet.schema(
    model=(TEXT, "slug of the table of models"),
    mass_rank=(WHOLE, "rank of the feature by outlier mass: 1 to 24"),
    feature=(WHOLE, "number of the feature"),
    **{"class": (TEXT, "its class")},
    site=(WHOLE, "number of the site, two a block in order of the forward pass"),
    block=(WHOLE, "number of the decoder block, from 0"),
    kind=(TEXT, "attn_in or mlp_in"),
    mixer=(TEXT, "what the site feeds: attention, linear_attention, mlp or moe"),
    coverage_share=(REAL, "M1: positions with abs(z) >= magnitude, mean over sequences"),
    x_coverage_share=(REAL, "positions with abs(x) >= magnitude, mean over sequences"),
    fires_sequence_share=(REAL, "share of the sequences in which the site fires by z"),
    x_fires_sequence_share=(REAL, "share in which it fires by x"),
    x_lowest=(REAL, "smallest x of a sequence, median over sequences"),
    x_highest=(REAL, "largest x of a sequence, median over sequences"),
    x_q25=(REAL, "signed extreme x of a sequence, lower quartile over sequences"),
    x_median=(REAL, "its median"),
    x_q75=(REAL, "its upper quartile"),
    x_largest=(REAL, "x of largest abs over all sequences, signed"),
    z_largest=(REAL, "largest abs(z) over all sequences"),
    gain=(REAL, "the norm's effective gain"),
    bound=(REAL, "sqrt(width) * abs(gain) + abs(offset): abs(x) cannot be larger"),
    first_abs_max=(REAL, "abs(x) at position 0, median over sequences"),
    delimiter_abs_max=(REAL, "largest abs(x) at delimiters, median over sequences"),
    other_abs_max=(REAL, "largest abs(x) at other positions, median over sequences"),
)
"""One row a site and feature, of the 24 features with the largest outlier mass."""


def profile(model: ModelStatistics, extremes: Extremes, features: pa.Table) -> pa.Table:
    """Describe the features with most outlier mass at every site, of PROFILE.

    Args:
        model: of the model.
        extremes: of the model.
        features: as `describe` returns it.
    """
    ranks = features["mass_rank"].to_numpy()
    chosen = np.argsort(ranks)[:PROFILED]
    positions = model.counts.positions[:, None, None]
    statistics, sites = model.statistics, model.counts.sites
    signed = extremes.signed[:, :, chosen].astype(float)
    gain, offset = (statistics[name].values[:, chosen].astype(float) for name in ("gain", "offset"))
    quartiles = np.quantile(signed, (0.25, 0.5, 0.75), axis=0)
    largest = np.take_along_axis(signed, np.abs(signed).argmax(axis=0)[None], axis=0)[0]
    z, x = (
        model.counts.at(basis, model.alpha(basis))[:, :, chosen] / positions
        for basis in (HEADLINE, "x")
    )
    by_type = np.median(extremes.by_type[:, :, :, chosen], axis=1)
    tables = {
        "coverage_share": z.mean(axis=0),
        "x_coverage_share": x.mean(axis=0),
        "fires_sequence_share": model.firing[HEADLINE][:, :, chosen].mean(axis=0),
        "x_fires_sequence_share": model.firing["x"][:, :, chosen].mean(axis=0),
        "x_lowest": np.median(extremes.low[:, :, chosen], axis=0),
        "x_highest": np.median(extremes.high[:, :, chosen], axis=0),
        **dict(zip(("x_q25", "x_median", "x_q75"), quartiles, strict=True)),
        "x_largest": largest,
        "z_largest": extremes.z[:, :, chosen].max(axis=0),
        "gain": gain,
        "bound": np.sqrt(model.features) * np.abs(gain) + np.abs(offset),
        **{f"{n}_abs_max": t for n, t in zip(magnitude.TYPES, by_type, strict=True)},
    }
    per_feature = {"mass_rank": ranks, "feature": np.arange(len(ranks)), "class": model.label}
    site = np.arange(sites)
    per_site = {"block": site // 2, "kind": model.counts.kind, "mixer": model.counts.mixer}
    return parquet.table(
        PROFILE,
        {"model": model.slug, "site": np.tile(site, len(chosen))}
        | {name: np.repeat(column[chosen], sites) for name, column in per_feature.items()}
        | {name: np.tile(column, len(chosen)) for name, column in per_site.items()}
        | {name: table.T.ravel() for name, table in tables.items()},
    )


def _mean(table: Array) -> Array:
    """Average over the sequences that have a value, exactly; NaN where none has."""
    there = ~np.isnan(table)
    number = there.sum(axis=0)
    total = np.where(there, table, 0).sum(axis=0)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def _ranks(values: Array) -> Array:
    """Rank from the largest, 1 first; NaN last, ties in order."""
    ranks = np.empty(len(values), dtype=int)
    ranks[np.argsort(-np.nan_to_num(values, nan=-1), kind="stable")] = np.arange(len(values)) + 1
    return ranks


def _or_null(sites: Array) -> Array:
    return np.where(sites < 0, np.nan, sites)


def _log2(values: Array) -> Array:
    values = values.astype(float)
    return np.where(values > 0, np.log2(np.where(values > 0, values, 1)), np.nan)
