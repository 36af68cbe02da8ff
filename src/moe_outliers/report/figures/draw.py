"""Draw a figure of the catalogue by its name."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from moe_outliers.metrics.criteria import Criteria
from moe_outliers.report.figures import style
from moe_outliers.report.figures.catalogue import FIGURES
from moe_outliers.report.figures.shared import Drawn, Tables


def function_of(name: str) -> Callable[[Tables, Criteria], Drawn]:
    """Return the function that draws a figure."""
    module = import_module(f"moe_outliers.report.figures.{FIGURES[name].module}")
    if hasattr(module, "function_of"):
        return module.function_of(name)
    return getattr(module, name)


def draw(name: str, tables: Tables, criteria: Criteria, base: Path) -> str:
    """Draw a figure and write it as SVG, PDF and PNG.

    Args:
        name: of the catalogue.
        tables: those that the catalogue names, by name.
        criteria: what counts as an outlier feature: thresholds are drawn where these are.
        base: path without an ending.

    Returns:
        What the figure shows, in words.
    """
    entry = FIGURES[name]
    with style.styled():
        figure, description = function_of(name)(tables, criteria)
        style.save(figure, base, entry.title, description)
    return description
