"""Figures of all models together: size, intervals, consistency, legacy, thresholds, stability."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from moe_outliers.metrics.classes import SYSTEMATIC_EXTENT
from moe_outliers.metrics.counts import HEADLINE, Basis, reach
from moe_outliers.metrics.criteria import Criteria
from moe_outliers.report.figures.shared import Drawn, Tables, listed, whole
from moe_outliers.report.figures.style import (
    CLASSES,
    Look,
    counted,
    empty,
    grid,
    legend,
    looks,
    not_shown,
)
from moe_outliers.stats.multiplicity import LEVEL

SHARES = {"extent_site_share": "extent (share of sites)", "sd_pair_share": "sequence share"}


def extent_by_size(tables: Tables, _: Criteria) -> Drawn:
    """Draw extent and sequence share against parameters and bits per byte."""
    models, intervals = tables["models"].set_index("model"), tables["intervals"]
    known = looks(tables["models"])
    bits = whole(intervals, "bits_per_byte_common", None)["estimate"]
    figure = Figure(figsize=(7.5, 5.4))
    panels = figure.subplots(2, 2, sharey="row")
    shown: set[str] = set()
    for row, (metric, label) in zip(panels, SHARES.items(), strict=True):
        numbers = whole(intervals, metric)
        for model, look in known.items():
            if model not in numbers.index or pd.isna(numbers.loc[model, "estimate"]):
                continue
            shown.add(model)
            number = numbers.loc[model]
            total, active = models.loc[model, ["params_b", "active_b"]]
            _bar(row[0], total, number, look)
            row[0].plot([active, total], [number["estimate"]] * 2, color=look.colour, lw=0.5)
            style = {"marker": look.mark, "color": look.colour, "mfc": "white"}
            row[0].plot([active], [number["estimate"]], **style)
            if model in bits.index and not pd.isna(bits[model]):
                _bar(row[1], bits[model], number, look)
        published = tables["published"].dropna(subset="n_dims")  # table 4, not the text's two
        column = "layer_share" if metric.startswith("extent") else "position_share"
        row[0].plot(published["params_b"], published[column], "x", color="#888888")
        row[0].set(xscale="log", ylabel=label, ylim=(-0.03, 1.03))
    panels[1][0].set_xlabel("parameters in 10^9 (filled: all, open: active)")
    panels[1][1].set_xlabel("bits per byte (better to the right)")
    for axes in panels[:, 1]:
        axes.invert_xaxis()
    told = legend(figure, known, shown, "no outlier features")
    lacking = [m for m in known if m in shown and (m not in bits.index or pd.isna(bits[m]))]
    if lacking:
        panels[0][1].set_title(f"no bits per byte: {', '.join(lacking)}", fontsize=6)
    numbers = whole(intervals, "extent_site_share")
    return figure, f"Extent by model: {listed(numbers, shown)}.{told}"


def forest(tables: Tables, _: Criteria) -> Drawn:
    """Draw every model's headline numbers with intervals, and the paired differences."""
    known = looks(tables["models"])
    metrics = SHARES | {"n_dims_sequence": "features in a sequence", "k90": "k90 (features)"}
    pairs = tables["differences"]
    pairs = pairs[(pairs["metric"] == "extent_site_share") & (pairs["basis"] == HEADLINE)]
    figure = Figure(figsize=(8.5, 1.2 + 0.28 * len(known) + 0.14 * max(len(pairs), 3)))
    parts: Any = figure.subfigures(2, 1, height_ratios=[2 * len(known) + 4, max(len(pairs), 3) + 4])
    upper, lower = parts
    places = {model: len(known) - i for i, model in enumerate(known)}
    panels = upper.subplots(1, len(metrics), sharey=True)
    shown: set[str] = set()
    for axes, (metric, label) in zip(panels, metrics.items(), strict=True):
        numbers = whole(tables["intervals"], metric)
        for model, look in known.items():
            if model in numbers.index and not pd.isna(numbers.loc[model, "estimate"]):
                shown.add(model)
                _bar(axes, numbers.loc[model], places[model], look, across=True)
            else:
                axes.text(0, places[model], "not defined", fontsize=6, va="center")
        axes.set(xlabel=label, yticks=list(places.values()), yticklabels=list(places))
        most = 1.0 if metric in SHARES else max(axes.get_xlim()[1], 1)
        axes.set_xlim(-0.05 * most, 1.05 * most)
    _differences(lower.subplots(), pairs)
    sure = int((pairs["p_holm"] <= LEVEL).sum())
    same = int((pairs["degenerate"] == "constant").sum())
    told = not_shown(known, shown, "no numbers")
    return figure, (
        f"Of {len(pairs)} differences of extents {sure} survive Holm's correction, {same} are the "
        f"same on every text.{told}"
    )


def _differences(axes: Axes, pairs: Any) -> None:
    """Draw the difference of each pair of models with its interval."""
    for place, pair in enumerate(reversed(list(pairs.itertuples()))):
        if pd.isna(pair.estimate):
            axes.text(0, place, " not defined", fontsize=5, va="center")
            continue
        sure = pair.p_holm <= LEVEL
        spread = [[pair.estimate - pair.low], [pair.high - pair.estimate]]
        fill: dict[str, Any] = {"mfc": "black" if sure else "white"}
        axes.errorbar(
            pair.estimate, place, xerr=spread, fmt="o", color="black", ms=3, lw=0.8, **fill
        )
    names = [f"{pair.model_a} - {pair.model_b}" for pair in reversed(list(pairs.itertuples()))]
    axes.axvline(0, color="#888888", lw=0.8)
    axes.set(yticks=range(len(names)), yticklabels=names, xlabel="difference of extents by z")
    axes.tick_params(axis="y", labelsize=5)


def consistency(tables: Tables, criteria: Criteria) -> Drawn:
    """Draw extent against consistency of the candidates, a panel a model."""
    features = tables["features"]
    known = looks(tables["models"])
    figure, panels = grid(len(known))
    counts, handles = [], {}
    for axes, model in zip(panels, known, strict=True):
        candidates = features[(features["model"] == model) & (features["class"] != "none")]
        if candidates.empty:
            empty(axes, model, "no candidates")
            continue
        for name, (colour, mark, _) in CLASSES.items():
            rows = candidates[candidates["class"] == name]
            if rows.empty:
                continue
            area = 12 + 200 * rows["mass_share"]
            style = {"c": colour, "marker": mark, "alpha": 0.7, "clip_on": False, "zorder": 3}
            axes.scatter(rows["extent_share"], rows["consistency"], s=area, **style)
            label = name.replace("_", "-")
            handles[name] = Line2D([], [], color=colour, marker=mark, ls="", label=label)
        for threshold in (criteria.layer_share, SYSTEMATIC_EXTENT):
            axes.axvline(threshold, color="#888888", lw=0.7, ls=":")
        axes.set(title=model, xlim=(0, 1.05), ylim=(-0.05, 1.1), ylabel="consistency")
        axes.set_xlabel(f"extent by z ({len(candidates)} candidate{'s' * (len(candidates) > 1)})")
        counts.append(f"{model}: {', '.join(_counted(candidates['class']))}")
    figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=5)
    return figure, f"Candidates by class. {'; '.join(counts)}."


def legacy_slopes(tables: Tables, _: Criteria) -> Drawn:
    """Draw the old numbers and the corrected ones, joined by a line a model."""
    rows = tables["legacy"]
    rows = rows[rows["basis"] == HEADLINE]
    known = looks(tables["models"])
    labels = {
        "count": "features",
        "layer_share": "share of depth",
        "position_share": "share of positions",
    }
    figure = Figure(figsize=(8, 3.6))
    panels = figure.subplots(1, len(labels))
    shown: set[str] = set()
    for axes, (quantity, label) in zip(panels, labels.items(), strict=True):
        for row in rows[rows["quantity"] == quantity].itertuples():
            look = known[row.model]
            corrected = 0.0 if quantity == "count" and pd.isna(row.corrected) else row.corrected
            if pd.isna(row.legacy) and pd.isna(corrected):
                continue
            shown.add(row.model)
            style = {"color": look.colour, "marker": look.mark, "linestyle": look.line}
            axes.plot([0, 1], [row.legacy, corrected], label=row.model, **style)
            if not pd.isna(row.low):
                axes.vlines(1, row.low, row.high, color=look.colour, lw=1)
        axes.set(
            xticks=[0, 1], xticklabels=["old, biased", "corrected"], title=label, xlim=(-0.2, 1.2)
        )
        if quantity == "count":
            counted(
                axes, rows.loc[rows["quantity"] == "count", ["legacy", "corrected"]].max().max()
            )
        else:
            axes.set_ylim(-0.03, 1.03)
    told = legend(figure, known, shown, "neither number is defined")
    counts = rows[rows["quantity"] == "count"]
    pairs = [f"{r.model} {r.legacy:.0f} to {r.corrected:.3g}" for r in counts.itertuples()]
    return figure, f"Count of outlier features, old to corrected: {'; '.join(pairs)}.{told}"


def thresholds(tables: Tables, criteria: Criteria) -> Drawn:
    """Draw number and extent of outlier features against the threshold, for z and for x."""
    cells = tables["sensitivity"]
    known = looks(tables["models"])
    figure = Figure(figsize=(7.5, 5.2))
    panels = figure.subplots(2, 2, sharex="col", sharey="row")
    widths = tables["models"].set_index("model")["width"]
    bases: tuple[Basis, ...] = (HEADLINE, "x")
    cells = cells[cells["position_share"] == criteria.position_share]
    for column, basis in enumerate(bases):
        of_basis = cells[cells["basis"] == basis]
        _moving(panels[:, column], of_basis, tables["intervals"], widths, known)
        panels[0][column].set_title(f"threshold of abs({basis})")
        panels[1][column].set_xlabel("alpha")
        most = max(reach(basis, int(width)) for width in widths)
        stored = sorted(alpha for alpha in of_basis["alpha"].unique() if alpha <= most)
        for axes in panels[:, column]:
            axes.axvline(criteria.at(basis), color="#888888", lw=0.8)
            axes.set_xscale("log")
            axes.set_xticks(stored, [f"{alpha:g}" for alpha in stored], fontsize=6)
            axes.minorticks_off()
    there = cells[cells["basis"].isin(bases)]
    counted(panels[0][0], there[["n_dims", "surrogate_n_dims"]].max().max())
    panels[0][0].set_ylabel("outlier features")
    panels[1][0].set(ylabel="extent (share of sites)", ylim=(-0.03, 1.03))
    legend(figure, known, known, "")
    number = cells[cells["headline"]].set_index(["model", "basis"])["n_dims"]
    pairs = [f"{model} {number[model, 'z']:.3g} and {number[model, 'x']:.3g}" for model in known]
    return figure, f"Outlier features by z and by x at the headline: {'; '.join(pairs)}."


def _moving(
    column: Any, cells: Any, intervals: Any, widths: Any, known: Mapping[str, Look]
) -> None:
    """Draw what one basis gives as its threshold moves: features above, their extent below.

    Args:
        column: the two panels.
        cells: of the table of thresholds, of one basis and share of positions.
        intervals: of all models.
        widths: by model.
        known: the look of each model.
    """
    basis, share = cells["basis"].iloc[0], cells["position_share"].iloc[0]
    sweep = intervals[(intervals["metric"] == "extent_site_share") & intervals["kind"].isna()]
    sweep = sweep[(sweep["basis"] == basis) & (sweep["position_share"] == share)]
    for model, look in known.items():
        style = {"color": look.colour, "linestyle": look.line, "marker": look.mark, "ms": 3}
        rows, extents = (
            table[(table["model"] == model) & (table["alpha"] <= reach(basis, int(widths[model])))]
            for table in (cells.sort_values("alpha"), sweep.sort_values("alpha"))
        )
        column[0].plot(rows["alpha"], rows["n_dims"], **style)
        column[0].plot(rows["alpha"], rows["surrogate_n_dims"], color=look.colour, ls=":", lw=0.8)
        column[1].plot(extents["alpha"], extents["estimate"], **style)
        band = {"color": look.colour, "alpha": 0.15, "lw": 0}
        column[1].fill_between(extents["alpha"], extents["low"], extents["high"], **band)


def stability(tables: Tables, _: Criteria) -> Drawn:
    """Draw how well the candidates of two halves of the sequences agree."""
    known = looks(tables["models"])
    splits = tables["stability"]
    splits = splits[splits["basis"] == HEADLINE].dropna(subset="jaccard")
    shown = [model for model in known if (splits["model"] == model).any()]
    figure = Figure(figsize=(6.5, 1.2 + 0.3 * max(len(shown), 3)))
    axes = figure.subplots()
    for place, model in enumerate(reversed(shown)):
        values = splits.loc[splits["model"] == model, "jaccard"]
        low, q25, median, q75, high = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
        look = known[model]
        axes.hlines(place, low, high, color=look.colour, lw=1)
        axes.hlines(place, q25, q75, color=look.colour, lw=4)
        axes.plot(median, place, look.mark, color=look.colour, mec="black", ms=6)
    axes.set(yticks=range(len(shown)), yticklabels=list(reversed(shown)), xlim=(-0.03, 1.03))
    axes.set_xlabel("Jaccard index of the candidates of two halves")
    told = not_shown(known, shown, "no candidates")
    figure.supxlabel(told, fontsize=7, style="italic")
    medians = splits.groupby("model")["jaccard"].median()
    return (
        figure,
        f"Median Jaccard index: {'; '.join(f'{m} {medians[m]:.2f}' for m in shown)}.{told}",
    )


def _bar(axes: Axes, x: Any, y: Any, look: Look, *, across: bool = False) -> None:
    """Draw one number with its interval; upright at x, or lying at height y."""
    number = x if across else y
    spread: Any = [[number["estimate"] - number["low"]], [number["high"] - number["estimate"]]]
    spread = None if pd.isna(number["low"]) else spread
    place = (number["estimate"], y) if across else (x, number["estimate"])
    bars: dict[str, Any] = {"xerr": spread} if across else {"yerr": spread}
    axes.errorbar(*place, **bars, fmt=look.mark, color=look.colour, ms=5, lw=1, capsize=2)


def _counted(classes: Any) -> list[str]:
    counts = classes.value_counts()
    return [f"{counts[name]} {name.replace('_', '-')}" for name in CLASSES if name in counts]
