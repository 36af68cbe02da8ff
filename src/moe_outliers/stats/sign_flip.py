"""The sign-flip test of paired differences: exact, and valid for any distribution of the values.

If the two models' values could be exchanged within a text, each difference would have either sign
alike. So the observed mean is compared with those of every choice of signs.
"""

import math

import numpy as np

from moe_outliers.stats import Array

EXACT = 20
"""The most differences of which every choice of signs is tried."""

DRAWN = 99_999
"""Choices drawn where there are more differences."""

ROUNDING = 1e-9
"""Means this close to the observed one count as equal, relative to the mean abs difference."""

CHUNK = 5_000
"""Choices of signs that are held at a time."""


def p_value(differences: Array, rng: np.random.Generator) -> float:
    """Test whether the mean of paired differences is zero, two-sided.

    Args:
        differences: (pair,), finite. One that is zero takes part: it is zero with either sign.
        rng: draws signs where there are more than 20 differences that are not all of one size.

    Returns:
        The share of the 2^n choices of signs, the observed one among them, whose mean is at least
        as far from zero; above n = 20 (1 + hits) / (1 + draws). NaN without a difference.

    Source: Fisher 1935, The Design of Experiments, section 21; Phipson and Smyth 2010 for the 1.
    """
    n = len(differences)
    if not n:
        return math.nan
    size = np.abs(differences).astype(float)
    observed = abs(float(np.sum(differences, dtype=float))) - ROUNDING * float(size.sum())
    if not size.any():
        return 1.0
    if n > EXACT and np.ptp(size) <= ROUNDING * size.max():
        return _of_equal_sizes(n, round((n + abs(float(np.sign(differences).sum()))) / 2))
    if n > EXACT:
        hits = sum(
            int((np.abs(_signs(rng, min(CHUNK, DRAWN - start), n) @ size) >= observed).sum())
            for start in range(0, DRAWN, CHUNK)
        )
        return (1 + hits) / (1 + DRAWN)
    sums = np.array([size[0]])  # the other half has the same sizes, by symmetry
    for each in size[1:]:
        sums = np.concatenate([sums + each, sums - each])
    return float((np.abs(sums) >= observed).mean())


def least(n: int) -> float:
    """Return the smallest p that n differences can have: that of equal signs throughout."""
    if n <= 0:
        return math.nan
    return 2.0 ** (1 - n) if n <= EXACT else 1 / (1 + DRAWN)


def _of_equal_sizes(n: int, positive: int) -> float:
    """Return the exact p of n differences of one size, of which the larger half has one sign."""
    if 2 * positive == n:
        return 1.0
    return 2 * sum(math.comb(n, k) for k in range(positive, n + 1)) / 2**n


def _signs(rng: np.random.Generator, choices: int, n: int) -> Array:
    return rng.integers(0, 2, (choices, n), dtype=np.int8) * 2.0 - 1
