"""Fills the thresholds of a sweep, and those of the protocol, into the captions of the figures."""

from moe_outliers.metrics.classes import SYSTEMATIC_EXTENT
from moe_outliers.metrics.criteria import Criteria
from moe_outliers.report.figures.catalogue import FIGURES
from moe_outliers.stats.multiplicity import LEVEL


def caption(name: str, criteria: Criteria) -> str:
    """Return the caption of a figure for a sweep with these criteria."""
    return FIGURES[name].caption.format(
        layer_share=share(criteria.layer_share),
        systematic=share(SYSTEMATIC_EXTENT),
        level=share(LEVEL),
    )


def share(value: float) -> str:
    """Write a share as captions do: .25 for a quarter."""
    return f"{value:g}".removeprefix("0")
