"""Does a feature fire at the same sites in every sequence (M5)? A permutation test over the depth.

Neighbouring sites share the residual stream, so that firing sites come in runs. The null keeps each
sequence's run and asks only whether the runs of different sequences lie at the same depth: it moves
the sites of each sequence around the circle of blocks.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Array = NDArray[Any]

PERMUTATIONS = 9_999
"""Permutations of the test."""

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


def shift_test(
    fires: Array, period: int, rng: np.random.Generator, permutations: int = PERMUTATIONS
) -> ShiftTest:
    """Test whether sequences fire at the same depth more than their extents alone would give.

    Args:
        fires: (sequence, site, feature), bool; at least two sequences, two sites a block.
        period: blocks a shift is a multiple of, so that each site moves to one of its kind.
        rng: draws the shifts; the same shifts serve every feature.
        permutations: how many.

    Source: Besag and Clifford 1989 for p; Cohen 1960 for the form of kappa.
    """
    sequences, sites, features = fires.shape
    shifts = np.arange(0, sites, 2 * period)
    chosen = rng.integers(0, len(shifts), (permutations, sequences))
    plan = _plan(chosen, len(shifts))
    found: list[Array] = [np.zeros((3, 0))]
    for start in range(0, features, CHUNK):
        indices = _indices(fires[:, :, start : start + CHUNK], shifts)
        observed = indices[:, 0].mean(axis=0)
        null = plan @ indices.reshape(-1, indices.shape[-1])
        hits = (null >= observed - ROUNDING).sum(axis=0)
        found.append(np.stack([observed, indices.mean(axis=(0, 1)), hits]))
    observed, expected, hits = np.concatenate(found, axis=1)
    room = 1 - expected
    certain = room < ROUNDING
    kappa = np.where(certain, np.nan, (observed - expected) / np.where(certain, 1, room))
    return ShiftTest(observed, expected, kappa, (1 + hits) / (1 + permutations))


def attainable(sequences: int, sites: int, period: int) -> float:
    """Return the smallest p value that the shifts of so many sequences can give."""
    shifts = sites // (2 * period)
    return float(shifts) ** -(sequences - 1)


def _plan(chosen: Array, shifts: int) -> sparse.csr_array:
    """Say which Jaccard indices each permutation averages.

    Args:
        chosen: (permutation, sequence), the shift of each sequence.
        shifts: number of shifts.

    Returns:
        (permutation, pair and relative shift), one over the number of pairs where it takes part.
    """
    first, second = np.triu_indices(chosen.shape[1], 1)
    relative = (chosen[:, second] - chosen[:, first]) % shifts
    columns = np.arange(len(first)) * shifts + relative
    weights = np.full(columns.size, 1 / len(first))
    starts = np.arange(len(chosen) + 1) * len(first)
    return sparse.csr_array(
        (weights, columns.ravel(), starts), shape=(len(chosen), len(first) * shifts)
    )


def _indices(fires: Array, shifts: Any) -> Array:
    """Jaccard indices of pairs of sequences, the second moved by each shift.

    Returns:
        (pair, shift, feature), float64; 0 where neither sequence fires.
    """
    sets = np.ascontiguousarray(fires.transpose(2, 0, 1), dtype=np.float32)
    size = sets.sum(axis=2)
    first, second = np.triu_indices(len(fires), 1)
    together = (size[:, first] + size[:, second]).T
    found = np.empty((len(first), len(shifts), len(sets)))
    for place, shift in enumerate(shifts):
        moved = np.roll(sets, shift, axis=2)
        both = (sets @ moved.transpose(0, 2, 1))[:, first, second].T.astype(float)
        found[:, place] = both / np.maximum(together - both, 1)
    return found
