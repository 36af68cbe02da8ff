"""Which features are outliers, chosen on some sequences and scored on others (M12, M19).

A feature that is chosen and scored on the same sequences looks better than it is. Every function
takes extents whose sequences are in the order of their digests (`draws.order`).
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from moe_outliers.metrics.counts import ROUNDING
from moe_outliers.stats import Array

FOLDS = 4
"""Folds of the cross-fitting; fewer where there are fewer sequences."""

SPLITS = 100
"""Random halvings for the stability."""


def select(extent: Array, layer_share: float) -> Array:
    """Choose candidates: features whose mean extent over sequences is large enough.

    Args:
        extent: (sequence, feature), in [0, 1].
        layer_share: the smallest mean extent.

    Returns:
        (feature,), bool.
    """
    return extent.mean(axis=0) >= layer_share - ROUNDING


@dataclass(frozen=True)
class CrossFit:
    """Candidates chosen on all folds but one, for each fold.

    Attributes:
        fold: (sequence,), the fold that holds the sequence out.
        chosen: (fold, feature), bool, chosen on the other folds.
        passing: (fold,), chosen features that are candidates on the held-out fold too.
    """

    fold: Array
    chosen: Array
    passing: Array

    @classmethod
    def of(cls, extent: Array, layer_share: float) -> "CrossFit":
        """Choose on each fold's complement.

        Args:
            extent: (sequence, feature), at least two sequences.
            layer_share: the smallest mean extent.
        """
        fold = np.arange(len(extent)) % min(FOLDS, len(extent))
        folds = range(fold.max() + 1)
        chosen = np.stack([select(extent[fold != k], layer_share) for k in folds])
        held_out = np.stack([select(extent[fold == k], layer_share) for k in folds])
        return cls(fold, chosen, (chosen & held_out).sum(axis=1))

    @property
    def features(self) -> float:
        """Number of outlier features (M12): mean over folds of those chosen that pass held out."""
        return float(self.passing.mean())

    def mean(self, values: Array, weights: Array | None = None) -> Array:
        """Average a quantity over the features that were chosen without the sequence.

        Args:
            values: (sequence, feature); NaN is left out.
            weights: (sequence, feature), not negative; None weighs all alike. Those of the other
                folds are used, summed over their sequences.

        Returns:
            (sequence,), NaN where nothing was chosen.
        """
        result = np.full(len(values), np.nan)
        for sequence, k in enumerate(self.fold):
            used = self.chosen[k] & ~np.isnan(values[sequence])
            heavy = np.ones(len(used)) if weights is None else weights[self.fold != k].sum(axis=0)
            total = heavy[used].sum()
            if total > 0:
                result[sequence] = (heavy[used] * values[sequence][used]).sum() / total
        return result

    def count(self, passing: Array) -> Array:
        """Count the features, chosen without the sequence, for which something holds in it.

        Args:
            passing: (sequence, feature), bool.

        Returns:
            (sequence,), float64.
        """
        return (self.chosen[self.fold] & passing).sum(axis=1).astype(float)


def halves(sequences: int) -> tuple[Array, Array]:
    """Return the places of the even sequences, which select, and of the odd, which score."""
    places = np.arange(sequences)
    return places[0::2], places[1::2]


@dataclass(frozen=True)
class Agreement:
    """How well two sets of sequences agree on the outlier features.

    Attributes:
        jaccard: Jaccard index of the two sets of candidates; NaN if both are empty.
        spearman: rank correlation of their extents over the union of candidates; NaN for fewer
            than three features, or constant extents.
    """

    jaccard: float
    spearman: float

    @classmethod
    def of(cls, one: Array, other: Array, layer_share: float) -> "Agreement":
        """Compare extents, each (sequence, feature)."""
        first, second = select(one, layer_share), select(other, layer_share)
        union = first | second
        if not union.any():
            return cls(np.nan, np.nan)
        pair = one.mean(axis=0)[union], other.mean(axis=0)[union]
        enough = union.sum() >= 3 and all(np.ptp(side) > ROUNDING for side in pair)
        spearman = float(stats.spearmanr(*pair).statistic) if enough else np.nan
        return cls(float((first & second).sum() / union.sum()), spearman)


def stability(extent: Array, layer_share: float, rng: np.random.Generator) -> list[Agreement]:
    """Compare random halves of the sequences (M19), one agreement a split.

    Args:
        extent: (sequence, feature), at least two sequences.
        layer_share: the smallest mean extent.
        rng: draws the halves.
    """
    agreements = []
    for _ in range(SPLITS):
        shuffled = rng.permutation(len(extent))
        half = len(extent) // 2
        agreements.append(
            Agreement.of(extent[shuffled[:half]], extent[shuffled[half:]], layer_share)
        )
    return agreements


@dataclass(frozen=True)
class LeftOut:
    """One sequence against all others.

    Attributes:
        chosen: candidates of the others.
        alone: candidates of this sequence alone.
        passing: features that are both.
        extent: mean extent in this sequence of the others' candidates; NaN without any.
        agreement: of this sequence with the others.
    """

    chosen: int
    alone: int
    passing: int
    extent: float
    agreement: Agreement

    @classmethod
    def of(cls, extent: Array, sequence: int, layer_share: float) -> "LeftOut":
        """Leave one sequence out of (sequence, feature) extents, at least two sequences."""
        others, one = np.delete(extent, sequence, axis=0), extent[[sequence]]
        chosen, alone = select(others, layer_share), select(one, layer_share)
        return cls(
            int(chosen.sum()),
            int(alone.sum()),
            int((chosen & alone).sum()),
            float(one[0, chosen].mean()) if chosen.any() else np.nan,
            Agreement.of(one, others, layer_share),
        )
