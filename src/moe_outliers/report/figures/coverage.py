"""The figure that shows how far the intervals can be trusted."""

from typing import Any

from matplotlib.figure import Figure

from moe_outliers.metrics.criteria import Criteria
from moe_outliers.report.figures.shared import Drawn, Tables
from moe_outliers.report.figures.style import COLOURS, MARKS

ERRORS = 3


def coverage(tables: Tables, _: Criteria) -> Drawn:
    """Draw measured against nominal coverage by number of sequences, a panel a kind of data."""
    rows = tables["validate_coverage"]
    cases = list(dict.fromkeys(rows["case"]))
    figure = Figure(figsize=(8, 4.6))
    panels = figure.subplots(2, -(-len(cases) // 2), sharey=True, squeeze=False).flatten()
    methods = list(dict.fromkeys(rows["method"]))
    for axes, case in zip(panels, cases, strict=False):
        for method, colour, mark in zip(methods, COLOURS, MARKS, strict=False):
            of = rows[(rows["case"] == case) & (rows["method"] == method)].sort_values("n")
            if of.empty:
                continue
            line = "-" if of["used"].all() else ":"
            spread = ERRORS * of["standard_error"]
            style = {"color": colour, "marker": mark, "ls": line, "ms": 4, "capsize": 2, "lw": 1}
            axes.errorbar(of["n"], of["coverage_share"], spread, label=method, **style)
        axes.axhline(rows["nominal"].iloc[0], color="#888888", lw=0.8)
        axes.set(title=case.replace("_", " "), xscale="log", xlabel="sequences", ylim=(0.5, 1.02))
        axes.set_xticks(sorted(rows["n"].unique()), sorted(rows["n"].unique()))
        axes.minorticks_off()
    for spare in panels[len(cases) :]:
        spare.set_axis_off()
    panels[0].set_ylabel("measured coverage")
    known: dict[str, Any] = {}
    for axes in panels[: len(cases)]:
        handles, labels = axes.get_legend_handles_labels()
        known |= dict(zip(labels, handles, strict=True))
    figure.legend(list(known.values()), list(known), loc="outside lower center", ncols=4)
    used = rows[rows["used"]]
    worst = used.loc[used["coverage_share"].idxmin()]
    return figure, (
        f"Measured coverage of nominal {worst['nominal']:.0%} intervals; the lowest of the methods "
        f"in use is {worst['coverage_share']:.1%} ({worst['case']}, n = {worst['n']})."
    )
