"""The class of a feature and of a model, computed from the data alone.

The thresholds of this module belong to the protocol; docs/method.md gives the reason for each.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from moe_outliers.metrics.consistency import Shifts, shift_test
from moe_outliers.metrics.counts import reaches, site_extent
from moe_outliers.metrics.selection import select
from moe_outliers.stats import Array
from moe_outliers.stats.multiplicity import LEVEL, benjamini_hochberg

SYSTEMATIC, INDETERMINATE, BANDED, PROBABILISTIC, GAIN_EXPLAINED = CLASSES = (
    "systematic", "indeterminate", "banded", "probabilistic", "gain_explained",
)  # fmt: skip
NO_CANDIDATE = "none"
"""Not a class: the feature is no candidate."""

UNCLASSIFIED = "unclassified"
"""A candidate without a class, since there are too few sequences."""

MIXED, NO_OUTLIERS = "mixed", "no_outliers"
"""Further classes of a model."""

SYSTEMATIC_EXTENT = 0.75
SIGN_LEVEL = 0.025
UPPER_LEVEL = 0.975
FALSE_DISCOVERY = LEVEL
KAPPA = 0.5
SEQUENCES = 8
"""The fewest sequences for a class."""

MASS = 0.5
"""The share of the outlier mass that makes a model's class."""


@dataclass(frozen=True)
class FeatureClasses:
    """Classes with their evidence; all axes are (feature,).

    What belongs to the circular-shift test is NaN for features that did not reach it.

    Attributes:
        label: one of CLASSES, NO_CANDIDATE or UNCLASSIFIED.
        extent: mean over sequences of the extent.
        above: sequences with an extent of at least .75.
        sign_p: one-sided sign test of "the median extent is below .75".
        upper: upper limit of the mean extent, Student's t, one-sided at .975.
        consistency: J of that test.
        expected, kappa, p: of that test.
        q: p after Benjamini and Hochberg over the tested features of the model.
    """

    label: Array
    extent: Array
    above: Array
    sign_p: Array
    upper: Array
    consistency: Array
    expected: Array
    kappa: Array
    p: Array
    q: Array


def classify(
    fires: Array,
    candidate_extent: Array,
    *,
    layer_share: float,
    shifts: Shifts,
    screen: int | None = None,
) -> FeatureClasses:
    """Class every feature.

    Args:
        fires: (sequence, site, feature), bool, by the basis that classes.
        candidate_extent: (sequence, feature), the extent that makes a candidate: that of x where
            `fires` asks for x and z.
        layer_share: the smallest mean extent.
        shifts: the permutations of the test.
        screen: permutations of features that it cannot reject; None for all.
    """
    extent = site_extent(fires)
    n, mean = len(extent), extent.mean(axis=0)
    candidate = select(candidate_extent, layer_share)
    above = reaches(extent, SYSTEMATIC_EXTENT).sum(axis=0)
    sign_p = special.bdtrc(above - 1, n, 0.5)
    upper = mean + stats.t.ppf(UPPER_LEVEL, n - 1) * extent.std(axis=0, ddof=1) / np.sqrt(n)
    label = np.where(candidate, UNCLASSIFIED, NO_CANDIDATE).astype(object)
    tested = np.zeros(len(mean), dtype=bool)
    if n >= SEQUENCES:
        explained = candidate & ~select(extent, layer_share)
        systematic = candidate & ~explained & (sign_p <= SIGN_LEVEL)
        left = candidate & ~explained & ~systematic
        unresolved = left & reaches(upper, SYSTEMATIC_EXTENT)
        tested = left & ~unresolved
        label[explained], label[systematic] = GAIN_EXPLAINED, SYSTEMATIC
        label[unresolved], label[tested] = INDETERMINATE, PROBABILISTIC
    agreement, expected, kappa, p = np.full((4, len(mean)), np.nan)
    if tested.any():
        test = shift_test(fires[:, :, tested], shifts, screen)
        agreement[tested], expected[tested] = test.consistency, test.expected
        kappa[tested], p[tested] = test.kappa, test.p
    q = benjamini_hochberg(p)
    label[tested & (q <= FALSE_DISCOVERY) & (kappa >= KAPPA)] = BANDED
    if tested.any() and shifts.least_p > FALSE_DISCOVERY:
        label[tested] = INDETERMINATE
    return FeatureClasses(
        label.astype(str), mean, above, sign_p, upper, agreement, expected, kappa, p, q
    )


def mass(counts: Array) -> Array:
    """Share of the outlier values that each feature holds (M11), sequence by sequence.

    Args:
        counts: (sequence, feature), positions above the threshold, summed over sites.

    Returns:
        (sequence, feature), summing to 1; NaN in a sequence without outlier values.
    """
    total = counts.sum(axis=1, keepdims=True)
    return np.where(total > 0, counts / np.maximum(total, 1), np.nan)


def fewest(counts: Array, share: float) -> Array:
    """Fewest features that hold a share of a sequence's outlier values (M11: k90 at .9).

    Args:
        counts: (sequence, feature), positions above the threshold, summed over sites.
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

    A class that holds at least half gives its name. Indeterminate features could belong to any
    class that is not gain-explained: where the answer depends on which, it is indeterminate.

    Args:
        held: mean over sequences of the mass of each class, in [0, 1].
        label: (feature,), the classes of the features.
    """
    if not (label != NO_CANDIDATE).any():
        return NO_OUTLIERS
    if (label == UNCLASSIFIED).any():
        return UNCLASSIFIED
    known = {name: held[name] for name in CLASSES if name != INDETERMINATE}
    answers = {
        _heaviest(known | {name: known[name] + held[INDETERMINATE]})
        for name in (SYSTEMATIC, BANDED, PROBABILISTIC)
    }
    return answers.pop() if len(answers) == 1 else INDETERMINATE


def _heaviest(held: Mapping[str, float]) -> str:
    order = (SYSTEMATIC, PROBABILISTIC, BANDED, GAIN_EXPLAINED)
    return next((name for name in order if reaches(np.array(held[name]), MASS)), MIXED)
