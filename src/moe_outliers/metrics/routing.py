"""How routers spread the tokens, and whether outlier tokens go to certain experts (M15, M16).

An outlier token is a position among the top 1 % of the largest abs(x) of its sequence at the site
that feeds the experts. Position 0 is left out: it is an outlier token almost by definition, and has
numbers of its own. Neighbouring tokens are not exchangeable, but sequences are: so every null
distribution here pairs the outlier tokens of one sequence with the routes of another.
"""

from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy import sparse

from moe_outliers.stats import Array

TOP_SHARE = 0.01
"""Share of the positions that are outlier tokens."""

PERMUTATIONS = 9_999
"""Permutations of the sequences in the test of the lift."""


def loads(route: Array, experts: int) -> Array:
    """Share of all picks that go to each expert (M15).

    Args:
        route: (sequence, moe_block, position, pick), the picked experts.
        experts: number of experts.

    Returns:
        (sequence, moe_block, expert), summing to 1.
    """
    counts = np.zeros((*route.shape[:2], experts))
    for sequence, block in np.ndindex(*route.shape[:2]):
        counts[sequence, block] = np.bincount(route[sequence, block].ravel(), minlength=experts)
    return counts / (route.shape[2] * route.shape[3])


def load_entropy(load: Array) -> Array:
    """Entropy of the load over its largest value, log of the number of experts (M15).

    Args:
        load: (..., expert), summing to 1.

    Returns:
        In [0, 1]: 1 for equal loads; NaN for a single expert.
    """
    experts = load.shape[-1]
    terms = np.where(load > 0, load * np.log(np.where(load > 0, load, 1)), 0)
    entropy = -terms.sum(axis=-1)
    return entropy / np.log(experts) if experts > 1 else np.full(entropy.shape, np.nan)


@dataclass(frozen=True)
class Association:
    """Outlier tokens against routes in one block; position 0 is left out.

    Attributes:
        lift: (expert,), P(expert picked | outlier token) / P(expert picked), both over all
            sequences; NaN for an expert that is never picked.
        p: (expert,), two-sided permutation test over sequences; NaN for an expert that is never
            picked, or fewer than three sequences.
        information: (sequence,), mutual information of the first pick and "is an outlier token",
            bits, less its mean over pairs of different sequences.
    """

    lift: Array
    p: Array
    information: Array


def associate(route: Array, size: Array, experts: int, pairings: sparse.csr_array) -> Association:
    """Measure how the outlier tokens of one block are routed (M16).

    Args:
        route: (sequence, position, pick), the picked experts.
        size: (sequence, position), the largest abs(x) at the site that feeds the experts.
        experts: number of experts.
        pairings: as `permutations` returns them.
    """
    route, size = route[:, 1:], size[:, 1:]
    sequences, positions = size.shape
    number = max(1, int(np.ceil(TOP_SHARE * positions - 1e-9)))
    tokens = np.argsort(-size, axis=1, kind="stable")[:, :number]
    met = _meetings(route, tokens, experts)
    picks = np.bincount(route.ravel(), minlength=experts)
    own = met[np.arange(sequences), np.arange(sequences)].sum(axis=0)
    expected = picks * number / positions
    lift = np.where(picks > 0, own / np.where(picks > 0, expected, 1), np.nan)
    p = np.full(experts, np.nan)
    if sequences >= 3:
        flat = met.reshape(-1, experts)
        centre = flat.sum(axis=0) / sequences
        null = np.abs(pairings @ flat - centre)
        hits = (null >= np.abs(own - centre) - 1e-9).sum(axis=0)
        p = np.where(picks > 0, (1 + hits) / (1 + pairings.shape[0]), np.nan)
    return Association(lift, p, _information(route[..., :1], tokens, experts))


def permutations(sequences: int, rng: np.random.Generator) -> sparse.csr_array:
    """Draw pairings of each sequence's outlier tokens with some sequence's routes.

    Returns:
        (permutation, sequence of the tokens and sequence of the routes), 1 where they are paired.
    """
    order = rng.permuted(np.tile(np.arange(sequences), (PERMUTATIONS, 1)), axis=1)
    columns = (np.arange(sequences) * sequences + order).ravel()
    starts = np.arange(PERMUTATIONS + 1) * sequences
    return sparse.csr_array(
        (np.ones(columns.size), columns, starts), shape=(PERMUTATIONS, sequences**2)
    )


def magnitude_lift(route: Array, size: Array, experts: int, magnitude: float) -> Array:
    """Lift of each expert where outlier tokens are those with abs(x) >= magnitude anywhere.

    One feature that fires everywhere makes every token such a token, and every lift 1.

    Args:
        route: (sequence, position, pick).
        size: (sequence, position), the largest abs(x).
        experts: number of experts.
        magnitude: the threshold.

    Returns:
        (expert,), NaN without such tokens, and for an expert that is never picked.
    """
    route, large = route[:, 1:], size[:, 1:] >= magnitude
    picks = np.bincount(route.ravel(), minlength=experts)
    there = np.bincount(route[large].ravel(), minlength=experts)
    expected = picks * large.mean()
    return np.where(expected > 0, there / np.where(expected > 0, expected, 1), np.nan)


def first_picks(route: Array, experts: int) -> Array:
    """Share of the sequences whose position 0 picks each expert, (moe_block, expert).

    Args:
        route: (sequence, moe_block, position, pick).
        experts: number of experts.
    """
    picked = (route[:, :, 0, :, None] == np.arange(experts)).any(axis=2)
    return picked.mean(axis=0)


def experts_of(statistics: xr.Dataset) -> int:
    """Return the number of experts of a block."""
    return int(statistics.sizes["expert"])


def _meetings(route: Array, tokens: Array, experts: int) -> Array:
    """Count picks of each expert at the outlier tokens of one sequence, in another's routes.

    Returns:
        (sequence of the tokens, sequence of the routes, expert).
    """
    sequences = len(tokens)
    counts = np.zeros((sequences, sequences, experts))
    for row in range(sequences):
        picked = route[:, tokens[row]].reshape(sequences, -1).astype(np.int64)
        flat = (picked + np.arange(sequences)[:, None] * experts).ravel()
        counts[row] = np.bincount(flat, minlength=sequences * experts).reshape(sequences, experts)
    return counts


def _information(first: Array, tokens: Array, experts: int) -> Array:
    """Mutual information of the first pick and "is an outlier token", bits, less its null mean.

    Args:
        first: (sequence, position, 1), the expert of the first pick.
        tokens: (sequence, outlier token), their positions.
        experts: number of experts.

    Returns:
        (sequence,); NaN for a single sequence.
    """
    sequences, positions, _ = first.shape
    if sequences < 2:
        return np.full(sequences, np.nan)
    share = tokens.shape[1] / positions
    inside = _meetings(first, tokens, experts) / positions
    every = np.stack([np.bincount(row.ravel(), minlength=experts) for row in first]) / positions
    outside = every - inside
    bits = (_terms(inside, every * share) + _terms(outside, every * (1 - share))).sum(axis=2)
    own = np.diagonal(bits)
    return own - (bits.sum(axis=1) - own) / (sequences - 1)


def _terms(joint: Array, independent: Array) -> Array:
    """Terms p log2(p / q) of a mutual information; 0 where p is 0."""
    there = joint > 0
    quotient = np.where(there, joint, 1) / np.where(there, independent, 1)
    return np.where(there, joint * np.log2(quotient), 0)
