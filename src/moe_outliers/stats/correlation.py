"""Rank correlations over models with exact p values, and the smallest that can be significant."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from moe_outliers.stats import Array
from moe_outliers.stats.multiplicity import LEVEL

EXACT = 9
"""The most models for which every permutation is tried."""

DRAWN = 99_999
"""Permutations drawn where there are more models."""

ROUNDING = 1e-9


@dataclass(frozen=True)
class Correlation:
    """A rank correlation; NaN where it is not defined.

    Attributes:
        rho: Spearman's, with mean ranks for ties.
        p: two-sided permutation test.
        permutations: how many were tried; all of them up to nine models.
    """

    rho: float
    p: float
    permutations: int


def spearman(x: Array, y: Array, rng: np.random.Generator) -> Correlation:
    """Correlate two quantities over models.

    Args:
        x: (model,), no NaN.
        y: (model,), no NaN.
        rng: draws permutations where there are more than nine models.

    Returns:
        NaN for fewer than three models, or if a quantity is the same for all.
    """
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation(math.nan, math.nan, 0)
    first, second = (_standardised(stats.rankdata(side)) for side in (x, y))
    rho = float(first @ second)
    orders = _orders(len(x), rng)
    extreme = np.abs(second[orders] @ first) >= abs(rho) - ROUNDING
    drawn = int(len(x) > EXACT)  # the observed order is one of all, but not of those drawn
    p = float((drawn + extreme.sum()) / (drawn + len(orders)))
    return Correlation(rho, p, len(orders))


def least_significant(models: int, level: float = LEVEL) -> float:
    """Return the smallest abs(rho) without ties whose exact p is at most a level.

    Args:
        models: how many are correlated.
        level: of the test; with Holm's correction over m correlations the first needs .05 / m.

    Returns:
        NaN where no rho is enough. At .05 five models need 1, seven .79; at .05 / 104 seven need 1.
    """
    if not 3 <= models <= EXACT:
        return math.nan
    ranks = _standardised(np.arange(models, dtype=float))
    orders = np.array(list(itertools.permutations(range(models))))
    sizes = np.sort(np.abs(ranks[orders] @ ranks))
    values = np.unique(np.round(sizes, 9))
    p = 1 - np.searchsorted(sizes, values - ROUNDING) / len(sizes)
    enough = values[p <= level * (1 + ROUNDING)]
    return float(enough[0]) if len(enough) else math.nan


def _standardised(ranks: Array) -> Array:
    centred = ranks - ranks.mean()
    return centred / np.sqrt((centred**2).sum())


def _orders(size: int, rng: np.random.Generator) -> Array:
    if size <= EXACT:
        return np.array(list(itertools.permutations(range(size))))
    return rng.permuted(np.tile(np.arange(size), (DRAWN, 1)), axis=1)
