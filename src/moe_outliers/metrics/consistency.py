"""Does a feature fire at the same sites in every sequence (M5)? A permutation test over the depth.

Neighbouring sites share the residual stream, so that firing sites come in runs. The null keeps each
sequence's run and asks only whether the runs of different sequences lie at the same depth: it moves
the sites of each sequence around the circle of blocks.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from moe_outliers.stats import Array

PERMUTATIONS = 9_999
"""Permutations of the test."""

HOPELESS = 0.2
"""A screened test ends early for a feature whose p is above this: it is not significant anyway."""

CHUNK = 256
"""Features whose Jaccard indices at every shift are held at a time."""

ROUNDING = 1e-9


@dataclass(frozen=True)
class ShiftTest:
    """The test of each feature; all axes are (feature,).

    Attributes:
        consistency: J, mean over pairs of sequences of the Jaccard index of their firing sites.
        expected: mean of J under the null, exactly.
        kappa: (J - expected) / (1 - expected): 0 by chance, 1 at best; NaN if chance gives 1.
        p: (1 + hits) / (1 + permutations), hits being permutations with a J at least as large.
    """

    consistency: Array
    expected: Array
    kappa: Array
    p: Array


def period(mixer: Array) -> int:
    """Return the blocks after which the kinds of token mixer repeat around the depth.

    Args:
        mixer: (site,), what each site's output enters; two sites a block.
    """
    token_mixer = mixer[0::2]
    blocks = len(token_mixer)
    return next(
        blocks_apart
        for blocks_apart in range(1, blocks + 1)
        if blocks % blocks_apart == 0
        and np.array_equal(token_mixer, np.roll(token_mixer, blocks_apart))
    )


def consistency(fires: Array) -> Array:
    """Mean Jaccard index over pairs of sequences (M5), (feature,).

    Two sequences in which the feature fires nowhere have index 0: it is consistent where it fires.

    Args:
        fires: (sequence, site, feature), bool; at least two sequences.
    """
    features = fires.shape[2]
    parts = (fires[:, :, i : i + CHUNK] for i in range(0, features, CHUNK))
    means = [_indices(part, [0]).mean(axis=(0, 1)) for part in parts]
    return np.concatenate(means) if means else np.zeros(0)


@dataclass(frozen=True)
class Shifts:
    """The permutations of the test: they serve every feature of a model, at every threshold.

    Attributes:
        steps: (shift,), how far the shifts move a site, in sites; the first is 0.
        plan: (permutation, pair and relative shift), the weight of each Jaccard index in J.
        least_p: the smallest p value that so many sequences and shifts can give.
    """

    steps: Array
    plan: sparse.csr_array
    least_p: float

    @classmethod
    def draw(
        cls,
        fires: Array,
        period: int,
        rng: np.random.Generator,
        permutations: int = PERMUTATIONS,
    ) -> "Shifts":
        """Draw a shift for each sequence and permutation.

        Args:
            fires: (sequence, site, feature), of which the sizes count; two sites a block.
            period: blocks a shift is a multiple of, so that each site moves to one of its kind.
            rng: draws the shifts.
            permutations: how many.
        """
        sequences, sites, _ = fires.shape
        steps = np.arange(0, sites, 2 * period)
        chosen = rng.integers(0, len(steps), (permutations, sequences))
        first, second = np.triu_indices(sequences, 1)
        relative = (chosen[:, second] - chosen[:, first]) % len(steps)
        columns = np.arange(len(first)) * len(steps) + relative
        weights = np.full(columns.size, 1 / len(first))
        starts = np.arange(permutations + 1) * len(first)
        shape = (permutations, len(first) * len(steps))
        plan = sparse.csr_array((weights, columns.ravel(), starts), shape=shape)
        return cls(steps, plan, float(len(steps)) ** -(sequences - 1))


def shift_test(fires: Array, shifts: Shifts, screen: int | None = None) -> ShiftTest:
    """Test whether sequences fire at the same depth more than their extents alone would give.

    Args:
        fires: (sequence, site, feature), bool; at least two sequences, two sites a block.
        shifts: the permutations.
        screen: after so many the test ends for hopeless features; None tries all for each.

    Source: Besag and Clifford 1989 for p; Cohen 1960 for the form of kappa.
    """
    parts: list[Array] = [np.zeros((3, 0))]
    for start in range(0, fires.shape[2], CHUNK):
        indices = _indices(fires[:, :, start : start + CHUNK], shifts.steps)
        observed = indices[:, 0].mean(axis=0)
        p = _p_values(shifts.plan, indices.reshape(-1, indices.shape[-1]), observed, screen)
        parts.append(np.stack([observed, indices.mean(axis=(0, 1)), p]))
    observed, expected, p = np.concatenate(parts, axis=1)
    room = 1 - expected
    certain = room < ROUNDING
    kappa = np.where(certain, np.nan, (observed - expected) / np.where(certain, 1, room))
    return ShiftTest(observed, expected, kappa, p)


def _p_values(plan: sparse.csr_array, indices: Array, observed: Array, screen: int | None) -> Array:
    """Compare J with its permutations, for hopeless features with the first few alone.

    Args:
        plan: of the shifts.
        indices: (pair and shift, feature), Jaccard indices.
        observed: (feature,), J.
        screen: permutations of hopeless features.
    """
    permutations = plan.shape[0]
    first = min(screen or permutations, permutations)
    hits = ((plan[:first] @ indices) >= observed - ROUNDING).sum(axis=0)
    p: Array = (1 + hits) / (1 + first)
    go_on = np.flatnonzero(p <= HOPELESS)
    if first < permutations and len(go_on):
        null = plan[first:] @ indices[:, go_on]
        hits[go_on] += (null >= observed[go_on] - ROUNDING).sum(axis=0)
        p[go_on] = (1 + hits[go_on]) / (1 + permutations)
    return p


def _indices(fires: Array, shifts: Any) -> Array:
    """Jaccard indices of pairs of sequences, the second moved by each shift.

    Returns:
        (pair, shift, feature), float64; 0 where neither sequence fires.
    """
    sets = np.ascontiguousarray(fires.transpose(2, 0, 1), dtype=np.float32)
    size = sets.sum(axis=2)
    first, second = np.triu_indices(len(fires), 1)
    together = (size[:, first] + size[:, second]).T
    indices = np.empty((len(first), len(shifts), len(sets)))
    for place, shift in enumerate(shifts):
        moved = np.roll(sets, shift, axis=2)
        both = (sets @ moved.transpose(0, 2, 1))[:, first, second].T.astype(float)
        indices[:, place] = both / np.maximum(together - both, 1)
    return indices
