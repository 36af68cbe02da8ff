"""What counts as an outlier feature."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Criteria:
    """What counts as an outlier feature: the settings `outliers`.

    Attributes:
        magnitude: smallest abs(x) of an outlier.
        layer_share: smallest share of the sites at which the feature fires, in [0, 1].
        position_share: smallest share of a sequence's positions at which a site fires, in [0, 1].
    """

    magnitude: float
    layer_share: float
    position_share: float
