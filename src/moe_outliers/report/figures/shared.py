"""The types of all functions that draw a figure, and the numbers that several of them draw."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from moe_outliers.metrics.counts import HEADLINE
from moe_outliers.metrics.values import of_whole_model

Tables = Mapping[str, Any]
"""The tables of the sweep by name, each a data frame of pandas."""

Drawn = tuple[Figure, str]
"""The figure, and what it shows in words."""


def whole(intervals: Any, metric: str, basis: str | None = HEADLINE) -> Any:
    """Return a headline number of each whole model, by slug."""
    rows = of_whole_model(intervals[(intervals["metric"] == metric) & intervals["headline"]])
    rows = rows[rows["basis"] == basis] if basis else rows
    return rows.drop_duplicates("model").set_index("model")


def listed(numbers: Any, shown: Any) -> str:
    """List the number of each model with its interval, as text."""
    rows = [(m, r) for m, r in numbers.iterrows() if m in set(shown)]
    return "; ".join(f"{m} {r['estimate']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" for m, r in rows)
