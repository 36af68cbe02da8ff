"""Confidence intervals of a mean over sequences, for many quantities at once.

The sequence is the unit: positions of one sequence depend on each other, and intervals from
resampled positions are far too narrow. docs/method.md gives the measured coverage of each method.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from moe_outliers.stats import Array

CHUNK = 2_000_000
"""Resampled means that are held at a time."""

ROUNDING = 1e-12
"""Values that differ by less than this, relative to the largest, are equal."""

DECIDING = 1 / 3
"""One sequence decides an estimate that moves without it by more than this part of the interval's
half width."""

TWO_VALUES = "two values"
"""Note of an interval whose ends are exact quantiles, without resamples."""

EXPANDED_BCA = "expanded BCa"
EDGE = "edge"
T = "t"
NONE = "none"


@dataclass(frozen=True)
class Intervals:
    """Estimates with their intervals, one entry a quantity; NaN where there is none.

    Attributes:
        method: how the interval was made, `none` where there is none.
        degenerate: what is special about the data, an empty text for nothing.
    """

    estimate: Array
    low: Array
    high: Array
    method: Array
    degenerate: Array


def resample(rng: np.random.Generator, sequences: int, resamples: int) -> Array:
    """Draw sequences with replacement.

    Returns:
        (resample, sequence), how often each sequence was drawn, float64.
    """
    drawn = rng.integers(0, sequences, (resamples, sequences))
    flat = (drawn + np.arange(resamples)[:, None] * sequences).ravel()
    counts = np.bincount(flat, minlength=resamples * sequences)
    return counts.reshape(resamples, sequences).astype(float)


def of_means(values: Array, drawn: Array, share: Array, *, confidence: float) -> Intervals:
    """Estimate means over sequences by the expanded BCa bootstrap with the edge rule.

    Constant data tell a bootstrap nothing. For a share whose n values all equal c the interval is
    [c (1 - e), c + (1 - c) e] with e = 1 - tail^(1/n): a sequence with another value that has
    probability e would have been missed by all n with probability `tail`. Where there are just two
    values the resampled mean is binomial: its quantiles are exact, and no resample is drawn.

    Args:
        values: (sequence, quantity), at least one sequence, no NaN.
        drawn: (resample, sequence), as `resample` returns it.
        share: (quantity,), bool: lies in [0, 1].
        confidence: nominal level, in (0, 1); the tail is half of what is left.

    Source: Efron 1987 (BCa); Hesterberg 2015, section 4.3 (expanded percentiles); the edge rule
        is the exact binomial bound of Clopper and Pearson 1934 for no success.
    """
    n = len(values)
    tail = (1 - confidence) / 2
    estimate = _means(values)
    low, high = np.full((2, len(estimate)), np.nan)
    constant = _constant(values)
    if n >= 2:
        size = max(1, CHUNK // len(drawn))
        two = ~constant & _two_valued(values)
        for place in np.flatnonzero(two):
            low[place], high[place] = _of_two_values(values[:, place], tail)
        varying = np.flatnonzero(~constant & ~two)
        for part in (varying[i : i + size] for i in range(0, len(varying), size)):
            low[part], high[part] = _expanded_bca(values[:, part], drawn, tail)
    edge = constant & share
    reach = 1 - tail ** (1 / n)
    low[edge] = estimate[edge] * (1 - reach)
    high[edge] = estimate[edge] + (1 - estimate[edge]) * reach
    method = np.where(edge, EDGE, np.where(np.isnan(low), NONE, EXPANDED_BCA))
    note = np.where(constant, "one sequence" if n < 2 else "constant", "")
    if n >= 2:
        note = np.where(two, TWO_VALUES, note)
    return Intervals(estimate, low, high, method, note)


def of_differences(differences: Array, *, confidence: float) -> Intervals:
    """Estimate means of paired differences by Student's t.

    Args:
        differences: (pair, quantity), at least one pair, no NaN.
        confidence: nominal level, in (0, 1).

    Returns:
        No interval where all differences are equal, or there is only one.
    """
    n = len(differences)
    estimate = _means(differences)
    constant = _constant(differences)
    half = np.full(len(estimate), np.nan)
    if n >= 2:
        error = differences.std(axis=0, ddof=1) / np.sqrt(n)
        half = np.where(constant, np.nan, stats.t.ppf((1 + confidence) / 2, n - 1) * error)
    method = np.where(np.isnan(half), NONE, T)
    note = "one sequence" if n < 2 else "constant"
    return Intervals(
        estimate, estimate - half, estimate + half, method, np.where(constant, note, "")
    )


def deciding(values: Array, made: Intervals) -> Array:
    """Find the one sequence that decides an estimate, if one does.

    Args:
        values: (sequence, quantity), the values that the intervals were made of.
        made: the intervals.

    Returns:
        (quantity,), the place of the sequence whose leaving out moves the estimate most, if that
        is by more than a third of the interval's half width; else -1, as without an interval.
    """
    n = len(values)
    if n < 2:
        return np.full(values.shape[1], -1)
    moves = np.abs(values - made.estimate) / (n - 1)
    place = moves.argmax(axis=0)
    most = moves[place, np.arange(values.shape[1])]
    reach = np.nan_to_num((made.high - made.low) / 2, nan=np.inf)
    return np.where(most > DECIDING * reach + ROUNDING, place, -1)


def expanded_tail(tail: float, n: int) -> float:
    """Return the normal tail whose percentiles give a bootstrap of n values the width of t.

    Source: Hesterberg 2015 (The American Statistician 69), section 4.3.
    """
    return float(special.ndtr(np.sqrt(n / (n - 1)) * stats.t.ppf(tail, n - 1)))


def _expanded_bca(values: Array, drawn: Array, tail: float) -> tuple[Array, Array]:
    """Return the limits for quantities that vary; the notation is that of Efron 1987."""
    n, total = len(values), len(drawn)
    theta = _means(values)
    replicates = np.sort((drawn @ values).T / n, axis=1)  # (quantity, resample)
    near = ROUNDING * np.abs(values).max(axis=0)
    below = (replicates < (theta - near)[:, None]).sum(axis=1)
    equal = (replicates <= (theta + near)[:, None]).sum(axis=1) - below
    share = np.clip((below + equal / 2) / total, 1 / (2 * total), 1 - 1 / (2 * total))
    ends = _bca(values, share, tail)
    return _quantile(replicates, ends[0]), _quantile(replicates, ends[1])


def _bca(values: Array, share: Array, tail: float) -> Array:
    """Return the places of the limits in the resampled means, in [0, 1]: (2, quantity).

    Args:
        values: (sequence, quantity), varying.
        share: (quantity,), share of the resampled means below the estimate, half of those at it.
        tail: of the interval.
    """
    centred = values - values.mean(axis=0)
    acceleration = (centred**3).sum(0) / (6 * (centred**2).sum(0) ** 1.5)
    z0 = special.ndtri(share)
    z = special.ndtri(expanded_tail(tail, len(values)))
    shifted = z0 + np.array([[z], [-z]])
    ends: Array = special.ndtr(z0 + shifted / np.maximum(1 - acceleration * shifted, ROUNDING))
    return ends


def _two_valued(values: Array) -> Array:
    """Say which quantities have no value but their smallest and their largest."""
    low, high = values.min(axis=0), values.max(axis=0)
    near = ROUNDING * np.abs(values).max(axis=0)
    return ((values <= low + near) | (values >= high - near)).all(axis=0)


def _of_two_values(values: Array, tail: float) -> tuple[float, float]:
    """Return the expanded BCa limits of a quantity with two values: the count is binomial."""
    n, low, high = len(values), values.min(), values.max()
    larger = int((values > (low + high) / 2).sum())
    counts = stats.binom(n, larger / n)
    share = counts.cdf(larger) - counts.pmf(larger) / 2
    ends = _bca(values[:, None], np.array([share]), tail)[:, 0]
    first, second = (low + (high - low) * counts.ppf(end) / n for end in ends)
    return float(first), float(second)


def _quantile(ordered: Array, at: Array) -> Array:
    """Return one quantile of each row of sorted values, interpolated linearly."""
    place = at * (ordered.shape[1] - 1)
    left = np.clip(np.floor(place).astype(int), 0, ordered.shape[1] - 2)
    row = np.arange(len(ordered))
    weight = place - left
    return ordered[row, left] * (1 - weight) + ordered[row, left + 1] * weight


def _constant(values: Array) -> Array:
    """Say which quantities do not vary, but for rounding."""
    return np.ptp(values, axis=0) <= ROUNDING * np.abs(values).max(axis=0)


def _means(values: Array) -> Array:
    """Return means over sequences; those of constant values are exact."""
    return np.where(_constant(values), values[0], values.mean(axis=0))
