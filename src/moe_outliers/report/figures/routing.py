"""Figures of routers and experts."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from moe_outliers.metrics.criteria import Criteria
from moe_outliers.report.figures.shared import Drawn, Tables
from moe_outliers.report.figures.style import empty, legend, looks
from moe_outliers.stats.multiplicity import LEVEL

RINGS = {"writer": "o", "super_expert": "s"}
"""Marks of the experts that write the outliers, by our rule and by that of Su et al. 2025."""


def experts(tables: Tables, _: Criteria) -> Drawn:
    """Draw what each expert writes, its load and its lift; a row a model."""
    known = looks(tables["models"])
    figure = Figure(figsize=(9, 1.7 * len(known) + 0.4))
    panels = figure.subplots(len(known), 3, squeeze=False)
    told = []
    for row, model in zip(panels, known, strict=True):
        rows = tables["experts"][tables["experts"]["model"] == model]
        if rows["abs_max_mean"].isna().all():
            for axes in row:
                empty(axes, model, "not recorded")
            continue
        written = _table(rows, "abs_max_mean")
        low = np.nanmin(written.where(written > 0))
        norm = LogNorm(low, max(np.nanmax(written), low * 1.01))
        _heat(row[0], written, f"{model}: abs of output", norm=norm, cmap="cividis")
        for column, mark in RINGS.items():
            for each in rows[rows[column]].itertuples():
                where = list(written.index).index(each.block)
                for colour, width in (("black", 3), ("white", 1.2)):  # shows on dark and on light
                    row[0].plot(each.expert, where, mark, mfc="none", mec=colour, ms=7, mew=width)
        _heat(row[1], _table(rows, "load_ratio"), "load, relative", cmap="viridis", vmin=0)
        lift = np.log2(_table(rows, "lift").replace(0, np.nan))
        most = max(float(np.nanmax(np.abs(lift.to_numpy()), initial=0.1)), 0.1)
        _heat(row[2], lift, "log2 lift", cmap="cividis", vmin=-most, vmax=most)
        told.append(f"{model}: {_marked(rows)}")
    return figure, f"Who writes the residual stream's maximum. {'; '.join(told)}."


def routing(tables: Tables, _: Criteria) -> Drawn:
    """Draw router entropy and spread of loads by depth, and lift against its evidence."""
    known = looks(tables["models"])
    intervals = tables["intervals"]
    figure = Figure(figsize=(9, 3.6))
    panels = figure.subplots(1, 3)
    shown: set[str] = set()
    labels = {
        "router_entropy_share": "entropy of routing / maximum",
        "load_cv": "spread of loads (cv)",
    }
    for axes, (metric, label) in zip(panels, labels.items(), strict=False):
        for model, look in known.items():
            rows = intervals[(intervals["model"] == model) & (intervals["metric"] == metric)]
            rows = rows.dropna(subset="block").sort_values("block")
            if rows.empty:
                continue
            shown.add(model)
            depth = rows["block"] / max(rows["block"].max(), 1)
            style = {"color": look.colour, "linestyle": look.line, "marker": look.mark, "ms": 3}
            axes.plot(depth, rows["estimate"], **style)
        axes.set(xlabel="depth", ylabel=label, ylim=(0, None), xlim=(-0.03, 1.03))
    lifts = tables["experts"]["lift"]
    associated, least = [], lifts[lifts > 0].min()
    for model, look in known.items():
        rows = tables["experts"][tables["experts"]["model"] == model].dropna(
            subset=["lift", "lift_q"]
        )
        lift = np.log2(rows["lift"].clip(lower=least / 2))
        style = {"color": look.colour, "marker": look.mark, "ls": "", "ms": 3}
        panels[2].plot(lift, -np.log10(rows["lift_q"]), **style)
        associated.append(f"{model} {int((rows['lift_q'] <= LEVEL).sum())}")
    panels[2].axhline(-np.log10(LEVEL), color="#888888", ls=":", lw=0.8)
    panels[2].set(xlabel="log2 lift at outlier tokens", ylabel="-log10 q")
    told = legend(figure, known, shown, "not recorded")
    return figure, f"Experts associated with outlier tokens: {'; '.join(associated)}.{told}"


def _marked(rows: Any) -> str:
    """Name the writers and the super experts of one model, or say what is there instead."""
    parts = []
    for column, name in (("writer", "writer"), ("super_expert", "super expert (2025)")):
        found = rows[rows[column]]
        names = [
            f"block {r.block} expert {r.expert} (feature {r.largest_feature:.0f})"
            for r in found.itertuples()
        ]
        if names:
            parts.append(f"{name} {', '.join(names[:5])}")
    return " and ".join(parts) or "no writer: the largest expert outputs stand alone"


def _table(rows: Any, column: str) -> Any:
    return rows.pivot(index="block", columns="expert", values=column)


def _heat(axes: Axes, table: Any, title: str, **style: Any) -> None:
    image = axes.imshow(table, aspect="auto", interpolation="none", **style)
    step = max(len(table) // 6, 1)
    axes.set(title=title, xlabel="expert", ylabel="block")
    axes.set_yticks(range(0, len(table), step), table.index[::step])
    axes.grid(visible=False)
    figure = axes.get_figure()
    if isinstance(figure, Figure):
        figure.colorbar(image, ax=axes)
