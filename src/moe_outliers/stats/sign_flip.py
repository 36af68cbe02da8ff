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


def p_value(differences: Array, rng: np.random.Generator, drawn: int = DRAWN) -> float:
    """Test whether the mean of paired differences is zero, two-sided.

    Args:
        differences: (pair,), finite. One that is zero takes part: it is zero with either sign.
        rng: draws signs where there are more than 20 differences that are not all of one size.
        drawn: how many choices of signs.

    Returns:
        The share of the 2^n choices of signs, the observed one among them, whose mean is at least
        as far from zero; above n = 20 (1 + hits) / (1 + drawn). NaN without a difference.

    Source: Fisher 1935, The Design of Experiments, section 21; Phipson and Smyth 2010 for the 1.
    """
    return float(p_values(differences[:, None], rng, drawn)[0])


def p_values(differences: Array, rng: np.random.Generator, drawn: int = DRAWN) -> Array:
    """Test several means of differences on the same texts: (text, quantity) to (quantity,).

    Each has the p that it has alone, with the same signs where signs are drawn.
    """
    n, quantities = differences.shape
    if not n:
        return np.full(quantities, np.nan)
    size = np.abs(differences).astype(float)
    total = np.abs(np.sum(differences, axis=0, dtype=float))
    observed = total - ROUNDING * size.sum(axis=0)
    p = np.ones(quantities)
    varied = size.any(axis=0)
    if n <= EXACT:
        for place in np.flatnonzero(varied):
            p[place] = _exact(size[:, place], observed[place])
        return p
    alike = varied & (np.ptp(size, axis=0) <= ROUNDING * size.max(axis=0))
    for place in np.flatnonzero(alike):
        surplus = abs(float(np.sign(differences[:, place]).sum()))
        p[place] = _of_equal_sizes(n, round((n + surplus) / 2))
    rest = varied & ~alike
    hits = np.zeros(int(rest.sum()), dtype=int)
    for start in range(0, drawn, CHUNK):
        signs = _signs(rng, min(CHUNK, drawn - start), n)
        hits += (np.abs(signs @ size[:, rest]) >= observed[rest]).sum(axis=0)
    p[rest] = (1 + hits) / (1 + drawn)
    return p


def least(n: int) -> float:
    """Return the smallest p that n differences can have: that of equal signs throughout."""
    if n <= 0:
        return math.nan
    return 2.0 ** (1 - n) if n <= EXACT else 1 / (1 + DRAWN)


def _exact(size: Array, observed: float) -> float:
    """Return the share of all choices of signs whose sum is at least as far from zero."""
    sums = np.array([size[0]])  # the other half has the same sizes, by symmetry
    for each in size[1:]:
        sums = np.concatenate([sums + each, sums - each])
    return float((np.abs(sums) >= observed).mean())


def _of_equal_sizes(n: int, positive: int) -> float:
    """Return the exact p of n differences of one size, of which the larger half has one sign."""
    if 2 * positive == n:
        return 1.0
    return 2 * sum(math.comb(n, k) for k in range(positive, n + 1)) / 2**n


def _signs(rng: np.random.Generator, choices: int, n: int) -> Array:
    return rng.integers(0, 2, (choices, n), dtype=np.int8) * 2.0 - 1
