"""The old system's scatter plots, with an axis from 0 to 1 and every model named."""

from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from moe_outliers.metrics.criteria import Criteria
from moe_outliers.report.figures.shared import Drawn, Tables, whole
from moe_outliers.report.figures.style import legend, looks


def scatter(tables: Tables, _: Criteria, size: str, metric: str) -> Drawn:
    """Draw one of the old numbers against parameters.

    Args:
        tables: intervals and models.
        size: column of the table of models: params_b or active_b.
        metric: one of the legacy_* metrics.
    """
    known = looks(tables["models"])
    sizes = tables["models"].set_index("model")[size]
    numbers = whole(tables["intervals"], metric, None)["estimate"]
    figure = Figure(figsize=(6.5, 3.8))
    axes = figure.subplots()
    shown = [m for m in known if m in numbers.index and not pd.isna(numbers[m])]
    for model in shown:
        axes.plot(sizes[model], numbers[model], known[model].mark, color=known[model].colour)
    low, high = sizes.min(), sizes.max()
    what = {"params_b": "all parameters", "active_b": "active parameters"}[size]
    label = metric.removeprefix("legacy_").removesuffix("_share").replace("_", " ")
    axes.set(xscale="log", xlim=(low / 1.5, high * 1.5), ylim=(-0.03, 1.03))
    axes.set(xlabel=f"{what}, 10^9", ylabel=f"{label} share (old, biased)")
    told = legend(figure, known, shown, "no old outliers")
    listed = "; ".join(f"{m} {numbers[m]:.2f}" for m in shown)
    return figure, f"The old system's {label} share: {listed}.{told}"


def function_of(name: str) -> partial[Drawn]:
    """Return the function of one of these figures, by its name in the catalogue."""
    _, size, mean, what, _ = name.split("_")
    column = {"total": "params_b", "active": "active_b"}[size]
    return partial(scatter, size=column, metric=f"legacy_{what}_{mean}_share")
