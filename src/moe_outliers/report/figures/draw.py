"""Draw a figure of the catalogue by its name."""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from moe_outliers.report.figures import style
from moe_outliers.report.figures.catalogue import FIGURES
from moe_outliers.report.figures.shared import Drawn


def function_of(name: str) -> Callable[[Mapping[str, Any]], Drawn]:
    """Return the function that draws a figure."""
    module = import_module(f"moe_outliers.report.figures.{FIGURES[name].module}")
    if hasattr(module, "function_of"):
        return module.function_of(name)
    return getattr(module, name)


def draw(name: str, tables: Mapping[str, Any], base: Path) -> str:
    """Draw a figure and write it as SVG, PDF and PNG.

    Args:
        name: of the catalogue.
        tables: those that the catalogue names, by name.
        base: path without an ending.

    Returns:
        What the figure shows, in words.
    """
    entry = FIGURES[name]
    with style.styled():
        figure, description = function_of(name)(tables)
        style.save(figure, base, entry.title, description)
    return description
