"""Earlier definitions, exactly: of the system that this project replaces, and of 2022 (M13).

They stand beside the corrected numbers so that published tables can be compared. docs/legacy.md
shows what is wrong with those of the old system.
"""

from dataclasses import dataclass

import numpy as np

from moe_outliers.metrics.counts import reaches
from moe_outliers.stats import Array

MAGNITUDE = 5.984375
"""The smallest float32 that bfloat16 rounds to 6: the old system cast before it compared."""


@dataclass(frozen=True)
class Legacy:
    """The old system's numbers, with batches of one sequence as its sweep had them.

    Attributes:
        chosen: (sequence, feature), bool, "systematic outliers" of each batch.
        layer_share: (sequence, feature), share of the sites with any value of 6 in the batch.
        position_share: (sequence, feature), share of the positions with a value of 6 at any site.
        magnitude: (sequence, feature), largest abs(x) of the batch.
    """

    chosen: Array
    layer_share: Array
    position_share: Array
    magnitude: Array

    @classmethod
    def of(
        cls,
        largest: Array,
        union: Array,
        positions: Array,
        *,
        layer_share: float,
        position_share: float,
    ) -> "Legacy":
        """Apply the old rule.

        Args:
            largest: (sequence, site, feature), the largest abs(x).
            union: (sequence, feature), positions where abs(x rounded to bfloat16) >= 6 at any site.
            positions: (sequence,).
            layer_share: the smallest share of the sites.
            position_share: the smallest share of the positions.
        """
        layers = (largest >= MAGNITUDE).mean(axis=1)
        covered = union / positions[:, None]
        chosen = (layers > 0) & reaches(layers, layer_share) & reaches(covered, position_share)
        return cls(chosen, layers, covered, largest.max(axis=1))

    @property
    def count(self) -> int:
        """The old count: a feature counts once for every sequence that it is chosen in."""
        return int(self.chosen.sum())

    @property
    def distinct(self) -> int:
        """Distinct features among them."""
        return int(self.chosen.any(axis=0).sum())

    def average(self, values: Array, kind: str) -> float:
        """Average over all chosen pairs of sequence and feature; 0 without any, as it did.

        Args:
            values: (sequence, feature).
            kind: mean or median.
        """
        chosen = values[self.chosen]
        return float(getattr(np, kind)(chosen)) if len(chosen) else 0.0


LAYERS, SEQUENCE_DIMENSIONS = 0.25, 0.06
"""Shares of the layers and of the positions that an outlier feature of 2022 affects at least."""


@dataclass(frozen=True)
class Dettmers:
    """Outlier features as Dettmers et al. 2022 define them, sequence by sequence.

    Attributes:
        chosen: (sequence, feature), bool.
        layer_share: (sequence, feature), share of the sites with any abs(x) of 6.
        position_share: (sequence, feature), share of the positions with one at any site.
    """

    chosen: Array
    layer_share: Array
    position_share: Array

    @classmethod
    def of(cls, count: Array, union: Array, positions: Array) -> "Dettmers":
        """Apply the definition of section 4 to the sites that are measured.

        Args:
            count: (sequence, site, feature), positions with abs(x) >= 6.
            union: (sequence, feature), positions with an abs(x), rounded to bfloat16, of 6 at any
                site.
            positions: (sequence,).

        Source: arXiv:2208.07339, section 4. Its layers are the inputs of the query, key, value and
            output projections and of the first matrix of the MLP; of these the output projection's
            is not measured here, and the first three are one.
        """
        layers, covered = (count >= 1).mean(axis=1), union / positions[:, None]
        chosen = reaches(layers, LAYERS) & reaches(covered, SEQUENCE_DIMENSIONS)
        return cls(chosen, layers, covered)

    def mean(self, values: Array) -> Array:
        """Average (sequence, feature) over the chosen features: (sequence,), NaN without any."""
        number = self.chosen.sum(axis=1)
        total = np.where(self.chosen, values, 0).sum(axis=1)
        return np.where(number > 0, total / np.maximum(number, 1), np.nan)
