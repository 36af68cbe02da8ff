"""The class of a feature and of a model by one basis, computed from the data alone.

The thresholds of this module belong to the protocol; docs/method.md gives the reason for each.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from moe_outliers.metrics.consistency import Shifts, shift_test
from moe_outliers.metrics.counts import ROUNDING, reaches, site_extent
from moe_outliers.metrics.selection import Extents
from moe_outliers.stats import Array
from moe_outliers.stats.multiplicity import LEVEL, benjamini_hochberg
from moe_outliers.storage.statistics_file import KINDS

SYSTEMATIC, INDETERMINATE, SHIFT_INVARIANT, BANDED, PROBABILISTIC = CLASSES = (
    "systematic", "indeterminate", "shift_invariant", "banded", "probabilistic",
)  # fmt: skip
NO_CANDIDATE = "none"
"""Not a class: the feature is no candidate."""

UNCLASSIFIED = "unclassified"
"""A candidate without a class, since there are too few sequences."""

MIXED, NO_OUTLIERS, OUT_OF_REACH = "mixed", "no_outliers", "out_of_reach"
"""Further classes of a model; out of reach: the basis can hardly be as large as the threshold."""

NOT_RESOLVED = (INDETERMINATE, SHIFT_INVARIANT)
"""Classes of features that could belong to any other."""

ALL_SITES = "all"
"""Where a feature is systematic over all sites, not in a subset alone."""

SYSTEMATIC_EXTENT = 0.75
SIGN_LEVEL = 0.025
FALSE_DISCOVERY = LEVEL
KAPPA = 0.5
SEQUENCES = 8
"""The fewest sequences for a class."""

MIXER_SITES = 4
"""The fewest sites of a mixer that are a subset of their own."""

MASS = 0.5
"""The share of the outlier mass that makes a model's class."""


@dataclass(frozen=True)
class FeatureClasses:
    """Classes with their evidence; all axes are (feature,).

    What belongs to the circular-shift test is NaN for features that did not reach it.

    Attributes:
        label: one of CLASSES, NO_CANDIDATE or UNCLASSIFIED.
        where: of systematic features `all`, or the subsets of sites in which they are, the largest
            first, separated by commas; empty for all others.
        extent: mean over sequences of the extent over all sites.
        above: sequences with an extent of at least .75.
        sign_p: one-sided sign test of "the median extent is below .75", over all sites.
        upper: upper limit of the mean extent over all sites, Student's t, one-sided at .975.
        consistency: J of the circular-shift test.
        expected, kappa, p: of that test.
        q: p after Benjamini and Hochberg over the tested features of the model.
        subsets: how many subsets of sites were tested beside all sites; 0 if there are too many of
            them for so few sequences.
    """

    label: Array
    where: Array
    extent: Array
    above: Array
    sign_p: Array
    upper: Array
    consistency: Array
    expected: Array
    kappa: Array
    p: Array
    q: Array
    subsets: int


def subsets_of(kind: Array, mixer: Array) -> dict[str, Array]:
    """Return the subsets of sites in which a feature may be systematic, the largest first.

    Args:
        kind: (site,), attn_in or mlp_in.
        mixer: (site,), what the site's output enters.

    Returns:
        Sites, (site,) bool, by name: attn_in, mlp_in, and each mixer with at least four sites. One
        that is all sites, or the same sites as one before it, is left out.
    """
    named = {name: kind == name for name in KINDS}
    named |= {str(name): mixer == name for name in np.unique(mixer)}
    found: dict[str, Array] = {}
    for name, sites in named.items():
        few = name not in KINDS and sites.sum() < MIXER_SITES
        known = any(np.array_equal(sites, other) for other in found.values())
        if sites.any() and not (few or sites.all() or known):
            found[name] = sites
    return dict(sorted(found.items(), key=lambda item: -int(item[1].sum())))


def classify(
    fires: Array,
    *,
    layer_share: float,
    subsets: Mapping[str, Array],
    shifts: Shifts,
    screen: int | None = None,
) -> FeatureClasses:
    """Class every feature by where it fires.

    Args:
        fires: (sequence, site, feature), bool, by one basis.
        layer_share: the smallest mean extent.
        subsets: of the sites, as `subsets_of` returns them.
        shifts: the permutations of the test.
        screen: permutations of features that it cannot reject; None for all.
    """
    extents = Extents.of(fires, subsets.values())
    candidate, extent = extents.select(layer_share), extents.whole
    n, mean = len(extent), extent.mean(axis=0)
    above, sign_p, upper = _over(extent, SIGN_LEVEL)
    label = np.where(candidate, UNCLASSIFIED, NO_CANDIDATE).astype(object)
    where = np.full(len(mean), "", dtype=object)
    tested = np.zeros(len(mean), dtype=bool)
    number = len(subsets) if n >= SEQUENCES and len(subsets) * 0.5**n <= SIGN_LEVEL else 0
    if n >= SEQUENCES:
        everywhere = candidate & (sign_p <= SIGN_LEVEL)
        label[everywhere], where[everywhere] = SYSTEMATIC, ALL_SITES
        left = np.flatnonzero(candidate & ~everywhere)
        inside, open_ = _in_subsets(fires[:, :, left], subsets if number else {})
        label[left[inside != ""]] = SYSTEMATIC
        where[left] = inside
        left, open_ = left[inside == ""], open_[inside == ""]
        unresolved = open_ | reaches(upper[left], SYSTEMATIC_EXTENT)
        label[left[unresolved]] = INDETERMINATE
        tested[left[~unresolved]] = True
        label[tested] = PROBABILISTIC
    agreement, expected, kappa, p = np.full((4, len(mean)), np.nan)
    if tested.any():
        test = shift_test(fires[:, :, tested], shifts, screen)
        agreement[tested], expected[tested] = test.consistency, test.expected
        kappa[tested], p[tested] = test.kappa, np.where(np.isnan(test.kappa), np.nan, test.p)
    same = tested & np.isnan(kappa)
    label[same] = SHIFT_INVARIANT
    tested &= ~same
    q = benjamini_hochberg(p)
    label[tested & (q <= FALSE_DISCOVERY) & (kappa >= KAPPA)] = BANDED
    if tested.any() and shifts.least_p > FALSE_DISCOVERY:
        label[tested] = INDETERMINATE
    evidence = (mean, above, sign_p, upper, agreement, expected, kappa, p, q)
    return FeatureClasses(label.astype(str), where.astype(str), *evidence, subsets=number)


def _over(extent: Array, level: float) -> tuple[Array, Array, Array]:
    """Test extents against .75: sequences above, p of the sign test, upper limit of the mean.

    Args:
        extent: (sequence, feature).
        level: of the upper limit, one-sided.
    """
    n = len(extent)
    above = reaches(extent, SYSTEMATIC_EXTENT).sum(axis=0)
    sign_p = special.bdtrc(above - 1, n, 0.5)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = extent.std(axis=0, ddof=1) / np.sqrt(n)
    return above, sign_p, extent.mean(axis=0) + stats.t.ppf(1 - level, n - 1) * error


def _in_subsets(fires: Array, subsets: Mapping[str, Array]) -> tuple[Array, Array]:
    """Test whether features are systematic in some subset of the sites, by Holm over the subsets.

    Args:
        fires: (sequence, site, feature), bool.
        subsets: of the sites; none are tested if there are none.

    Returns:
        Names of the subsets, (feature,) separated by commas; and whether the extent over some
        subset is not resolved, (feature,).
    """
    features, number = fires.shape[2], len(subsets)
    names: Array = np.full(features, "", dtype=object)
    open_: Array = np.zeros(features, dtype=bool)
    if not number or not features:
        return names, open_
    level = SIGN_LEVEL / number
    tests = [_over(site_extent(fires[:, sites]), level) for sites in subsets.values()]
    p = np.stack([sign_p for _, sign_p, _ in tests])
    open_ = np.any([reaches(upper, SYSTEMATIC_EXTENT) for *_, upper in tests], axis=0)
    rising = np.sort(p, axis=0) * np.arange(number, 0, -1)[:, None]
    adjusted = np.maximum.accumulate(rising, axis=0)
    rank = np.argsort(np.argsort(p, axis=0, kind="stable"), axis=0)
    rejected = np.take_along_axis(adjusted, rank, axis=0) <= SIGN_LEVEL + ROUNDING
    for feature in np.flatnonzero(rejected.any(axis=0)):
        told = [name for name, there in zip(subsets, rejected[:, feature], strict=True) if there]
        names[feature] = ",".join(told)
    return names, open_


def mass(counts: Array) -> Array:
    """Share of the outlier values that each feature holds (M11), sequence by sequence.

    Args:
        counts: (sequence, feature), positions above the threshold, summed over firing sites.

    Returns:
        (sequence, feature), summing to 1; NaN in a sequence without outlier values.
    """
    total = counts.sum(axis=1, keepdims=True)
    return np.where(total > 0, counts / np.maximum(total, 1), np.nan)


def fewest(counts: Array, share: float) -> Array:
    """Fewest features that hold a share of a sequence's outlier values (M11: k90 at .9).

    Args:
        counts: (sequence, feature), positions above the threshold, summed over firing sites.
        share: in (0, 1].

    Returns:
        (sequence,), float64; NaN in a sequence without outlier values.
    """
    held = np.cumsum(-np.sort(-counts, axis=1), axis=1)
    needed = (held < np.ceil(share * held[:, -1:] - 1e-9)).sum(axis=1) + 1.0
    return np.where(held[:, -1] > 0, needed, np.nan)


def mass_by_class(shares: Array, label: Array) -> dict[str, Array]:
    """Sum the mass of each class, that of no candidate too: each (sequence,)."""
    names = (*CLASSES, UNCLASSIFIED, NO_CANDIDATE)
    return {name: shares[:, label == name].sum(axis=1) for name in names}


def model_class(held: Mapping[str, float], label: Array) -> str:
    """Class a model by the share of the outlier mass that the classes of its features hold.

    A class that holds at least half gives its name, and so does the only one that holds any; with
    two or more and no half it is mixed. Features that are indeterminate or shift-invariant could
    belong to any other class: where the answer depends on which, it is indeterminate.

    Args:
        held: mean over sequences of the mass of each class, in [0, 1].
        label: (feature,), the classes of the features.
    """
    if not (label != NO_CANDIDATE).any():
        return NO_OUTLIERS
    if (label == UNCLASSIFIED).any():
        return UNCLASSIFIED
    known = {name: held[name] for name in CLASSES if name not in NOT_RESOLVED}
    open_ = sum(held[name] for name in NOT_RESOLVED)
    answers = {_heaviest(known | {name: known[name] + open_}) for name in known}
    return answers.pop() if len(answers) == 1 else INDETERMINATE


def _heaviest(held: Mapping[str, float]) -> str:
    order = (SYSTEMATIC, PROBABILISTIC, BANDED)
    some = [name for name in order if held[name] > ROUNDING]
    if len(some) == 1:
        return some[0]
    return next((name for name in order if reaches(np.array(held[name]), MASS)), MIXED)


def at_threshold(extent: Array, layer_share: float) -> bool:
    """Tell whether a model's best feature may or may not be a candidate, by chance of the texts.

    Args:
        extent: (sequence, feature), over all sites.
        layer_share: the smallest mean extent of a candidate.

    Returns:
        Whether the 95 % t interval of the largest mean extent holds layer_share.
    """
    best = extent[:, extent.mean(axis=0).argmax()]
    n = len(best)
    if n < 2 or np.ptp(best) == 0:
        return False
    half = stats.t.ppf(1 - SIGN_LEVEL, n - 1) * best.std(ddof=1) / np.sqrt(n)
    return bool(abs(best.mean() - layer_share) <= half)


CONSTANT, WIDE, SPIKY = "constant", "wide", "spiky"
"""How a feature's z comes to be large where it fires: it hardly varies; it is an ordinary Gaussian
of a large size; or neither."""

CONSTANT_SHARE = 0.5
"""Share of a feature's energy that is in its mean, from which on it is constant."""


def kind_of(
    z_sum: Array,
    z_square: Array,
    fires: Array,
    positions: Array,
    *,
    magnitude: float,
    position_share: float,
) -> Array:
    """Tell how each feature's z comes to be large, over its firing sites, position 0 left out.

    Args:
        z_sum: (sequence, site, feature), sum of z over all positions but the first.
        z_square: the same of z squared.
        fires: (sequence, site, feature), bool, by z.
        positions: (sequence,), positions of each sequence, the first one among them.
        magnitude: the threshold of abs(z).
        position_share: share of the positions at which a site fires.

    Returns:
        (feature,), constant, wide or spiky; empty for a feature that fires nowhere. Constant if
        the sum over firing sites of (mean z)^2 is at least half of that of mean z^2; else wide if
        2 Phi(-magnitude / rms) is at least position_share, rms being that over firing sites.
    """
    there, number = fires.any(axis=(0, 1)), np.maximum(positions - 1, 1)[:, None, None]
    level = np.where(fires, (z_sum / number) ** 2, 0).sum(axis=(0, 1))
    energy = np.where(fires, z_square / number, 0).sum(axis=(0, 1))
    pairs = fires.sum(axis=(0, 1))
    rms = np.sqrt(energy / np.maximum(pairs, 1))
    still = level >= CONSTANT_SHARE * energy * (1 - ROUNDING)
    tails = 2 * special.ndtr(-magnitude / np.where(rms > 0, rms, 1))
    wide = (rms > 0) & (tails >= position_share)
    kind = np.where(still, CONSTANT, np.where(wide, WIDE, SPIKY))
    return np.where(there, kind, "")
