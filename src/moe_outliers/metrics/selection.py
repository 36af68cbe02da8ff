"""Which features are outliers, chosen on some sequences and scored on others (M12, M19).

A feature that is chosen and scored on the same sequences looks better than it is. Every function
takes extents whose sequences are in the order of their digests (`draws.order`).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from moe_outliers.metrics.counts import ROUNDING, reaches, site_extent
from moe_outliers.stats import Array

FOLDS = 4
"""Folds of the cross-fitting; fewer where there are fewer sequences."""

SPLITS = 100
"""Random halvings for the stability."""


SUBSET_SHARE = 0.75
"""The smallest mean extent over a subset of the sites that makes a candidate by itself."""


@dataclass(frozen=True)
class Extents:
    """Extents over all sites and over subsets of them: what makes a candidate.

    Attributes:
        whole: (sequence, feature), over all sites, in [0, 1].
        parts: (sequence, feature) each, over the subsets.
    """

    whole: Array
    parts: tuple[Array, ...] = ()

    @classmethod
    def of(cls, fires: Array, subsets: Iterable[Array]) -> "Extents":
        """Compute them from (sequence, site, feature), bool, and subsets, each (site,), bool."""
        return cls(site_extent(fires), tuple(site_extent(fires[:, sites]) for sites in subsets))

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self.whole)

    def of_sequences(self, places: Array) -> "Extents":
        """Take some sequences, by their places or a mask."""
        return Extents(self.whole[places], tuple(part[places] for part in self.parts))

    def select(self, layer_share: float) -> Array:
        """Choose candidates: by the mean extent over all sites, or over a subset.

        Args:
            layer_share: the smallest mean extent over all sites; over a subset it is .75.

        Returns:
            (feature,), bool.
        """
        chosen = reaches(self.whole.mean(axis=0), layer_share)
        for part in self.parts:
            chosen |= reaches(part.mean(axis=0), SUBSET_SHARE)
        return chosen

    def passing(self, layer_share: float) -> Array:
        """Say which features are candidates of each sequence by itself, (sequence, feature)."""
        found = reaches(self.whole, layer_share)
        for part in self.parts:
            found |= reaches(part, SUBSET_SHARE)
        return found


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
    def of(cls, extents: Extents, layer_share: float) -> "CrossFit":
        """Choose on each fold's complement.

        Args:
            extents: of at least two sequences.
            layer_share: the smallest mean extent over all sites.
        """
        fold = np.arange(len(extents)) % min(FOLDS, len(extents))
        folds = range(fold.max() + 1)
        chosen = [extents.of_sequences(fold != k).select(layer_share) for k in folds]
        held_out = [extents.of_sequences(fold == k).select(layer_share) for k in folds]
        passing = (np.stack(chosen) & np.stack(held_out)).sum(axis=1)
        return cls(fold, np.stack(chosen), passing)

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
    def of(cls, one: Extents, other: Extents, layer_share: float) -> "Agreement":
        """Compare the candidates of two sets of sequences, and their extents over all sites."""
        first, second = one.select(layer_share), other.select(layer_share)
        union = first | second
        if not union.any():
            return cls(np.nan, np.nan)
        pair = one.whole.mean(axis=0)[union], other.whole.mean(axis=0)[union]
        enough = union.sum() >= 3 and all(np.ptp(side) > ROUNDING for side in pair)
        spearman = float(stats.spearmanr(*pair).statistic) if enough else np.nan
        return cls(float((first & second).sum() / union.sum()), spearman)


def stability(extents: Extents, layer_share: float, rng: np.random.Generator) -> list[Agreement]:
    """Compare random halves of the sequences (M19), one agreement a split.

    Args:
        extents: of at least two sequences.
        layer_share: the smallest mean extent over all sites.
        rng: draws the halves.
    """
    agreements = []
    for _ in range(SPLITS):
        shuffled = rng.permutation(len(extents))
        half = len(extents) // 2
        parts = (extents.of_sequences(shuffled[:half]), extents.of_sequences(shuffled[half:]))
        agreements.append(Agreement.of(*parts, layer_share))
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
    def of(cls, extents: Extents, sequence: int, layer_share: float) -> "LeftOut":
        """Leave one sequence out of the extents of at least two."""
        place = np.arange(len(extents)) == sequence
        others, one = extents.of_sequences(~place), extents.of_sequences(place)
        chosen, alone = others.select(layer_share), one.select(layer_share)
        return cls(
            int(chosen.sum()),
            int(alone.sum()),
            int((chosen & alone).sum()),
            float(one.whole[0, chosen].mean()) if chosen.any() else np.nan,
            Agreement.of(one, others, layer_share),
        )
