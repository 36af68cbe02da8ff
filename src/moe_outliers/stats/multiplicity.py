"""Corrections for many tests: false discovery rate and family-wise error."""

import numpy as np

from moe_outliers.stats import Array

LEVEL = 0.05
"""A test is rejected whose q, or adjusted p, is at most this."""


def benjamini_hochberg(p: Array) -> Array:
    """Return the q values of one family of tests: rejecting q <= .05 keeps false discovery at 5 %.

    Args:
        p: p values; NaN for a test that was not made, which then has no q and is not counted.

    Source: Benjamini and Hochberg 1995; q as the smallest level at which a test is rejected.
    """
    q = np.full(p.shape, np.nan)
    made = np.flatnonzero(~np.isnan(p))
    falling = made[np.argsort(-p[made], kind="stable")]
    ranks = np.arange(len(made), 0, -1)
    q[falling] = np.minimum.accumulate(np.minimum(p[falling] * len(made) / ranks, 1))
    return q


def holm(p: Array) -> Array:
    """Return p values adjusted so that any false rejection in the family has at most their level.

    Args:
        p: p values; NaN for a test that was not made.

    Source: Holm 1979.
    """
    adjusted = np.full(p.shape, np.nan)
    made = np.flatnonzero(~np.isnan(p))
    rising = made[np.argsort(p[made], kind="stable")]
    left = np.arange(len(made), 0, -1)
    adjusted[rising] = np.maximum.accumulate(np.minimum(p[rising] * left, 1))
    return adjusted
