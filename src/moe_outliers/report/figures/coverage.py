"""The figure that shows how far the intervals can be trusted."""

from typing import Any

from matplotlib.figure import Figure

from moe_outliers.metrics.criteria import Criteria
from moe_outliers.report.figures.shared import Drawn, Tables
from moe_outliers.report.figures.style import COLOURS, MARKS

ERRORS = 3
LOWEST = 0.35
"""Lower end of the axis of coverages."""


def coverage(tables: Tables, _: Criteria) -> Drawn:
    """Draw measured against nominal coverage by number of sequences, a panel a kind of data."""
    rows = tables["validate_coverage"]
    cases = list(dict.fromkeys(rows["case"]))
    columns = 5
    lines = -(-len(cases) // columns)
    figure = Figure(figsize=(9, 1 + 1.9 * lines))
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False).flatten()
    methods = list(dict.fromkeys(rows["method"]))
    for axes, case in zip(panels, cases, strict=False):
        of_case = rows[rows["case"] == case]
        for method, colour, mark in zip(methods, COLOURS, MARKS, strict=False):
            of = of_case[of_case["method"] == method].sort_values("n")
            if of.empty:
                continue
            line = "-" if of["used"].all() else ":"
            spread = ERRORS * of["standard_error"]
            style = {"color": colour, "marker": mark, "ls": line, "ms": 4, "capsize": 2, "lw": 1}
            axes.errorbar(of["n"], of["coverage_share"], spread, label=method, **style)
        axes.axhline(rows["nominal"].iloc[0], color="#888888", lw=0.8)
        parts = " (dependent)" if of_case["dependent"].any() else ""
        axes.set(title=case.replace("_", " ") + parts, xscale="log", ylim=(LOWEST, 1.02))
        axes.set_xticks(sorted(rows["n"].unique()), sorted(rows["n"].unique()))
        axes.minorticks_off()
    for spare in panels[len(cases) :]:
        spare.set_axis_off()
    for axes in panels[::columns]:
        axes.set_ylabel("measured coverage")
    for axes in panels[max(0, len(cases) - columns) : len(cases)]:
        axes.set_xlabel("sequences")
    known: dict[str, Any] = {}
    for axes in panels[: len(cases)]:
        handles, labels = axes.get_legend_handles_labels()
        known |= dict(zip(labels, handles, strict=True))
    figure.legend(list(known.values()), list(known), loc="outside lower center", ncols=4)
    return figure, (
        f"Measured coverage of nominal {rows['nominal'].iloc[0]:.0%} intervals; the lowest of the "
        f"methods in use: {_worst(rows)}."
    )


def _worst(rows: Any) -> str:
    """Say which kind of data is covered worst, of independent and of dependent texts."""
    told = []
    for dependent, whose in ((False, "independent"), (True, "dependent")):
        used = rows[rows["used"] & (rows["dependent"] == dependent)]
        worst = used.loc[used["coverage_share"].idxmin()]
        told.append(
            f"{worst['coverage_share']:.1%} on {whose} texts ({worst['case'].replace('_', ' ')}, "
            f"n = {worst['n']}, {worst['method']})"
        )
    return "; ".join(told)
