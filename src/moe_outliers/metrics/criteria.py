"""What counts as an outlier feature."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Criteria:
    """What counts as an outlier feature: the settings `outliers`.

    Attributes:
        magnitude: smallest abs value of an outlier, in the unit of each basis: one number for all,
            or one for each of z, x and y.
        layer_share: smallest share of the sites at which the feature fires, in [0, 1].
        position_share: smallest share of a sequence's positions at which a site fires, in [0, 1].
    """

    magnitude: float | Mapping[str, float]
    layer_share: float
    position_share: float

    def at(self, basis: str) -> float:
        """Return the magnitude by one basis."""
        if isinstance(self.magnitude, Mapping):
            return float(self.magnitude[basis])
        return float(self.magnitude)

    @property
    def one(self) -> float | None:
        """The magnitude that all bases share; None where they have their own."""
        if isinstance(self.magnitude, Mapping):
            different = set(self.magnitude.values())
            return float(different.pop()) if len(different) == 1 else None
        return float(self.magnitude)
