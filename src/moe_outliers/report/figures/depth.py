"""Figures over the depth of a model: features, residual stream, magnitude, kurtosis, rounding."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from moe_outliers.metrics.criteria import Criteria
from moe_outliers.metrics.magnitude import ONE_SIDED
from moe_outliers.report.figures.shared import Drawn, Tables, whole
from moe_outliers.report.figures.style import CLASSES, COLOURS, LINES, empty, grid, legend, looks
from moe_outliers.storage.statistics_file import KINDS, SCHEMES

GAUSSIAN_KURTOSIS = 3.0
USUAL = 0.5
TICKS = (20, 100, 500, 2000, 10_000)
WHERE = {"first": "o", "delimiter": "x"}
"""Marks of blocks whose largest value is at position 0, or at a delimiter, in most sequences."""

FEWEST_ROWS = 4
"""Rows of a panel at least, so that those of few features are not drawn taller."""


def features_by_site(tables: Tables, _: Criteria) -> Drawn:
    """Draw coverage by feature and site, a panel a model."""
    known = looks(tables["models"])
    features = tables["features"].set_index(["model", "feature"])
    profile = tables["profile"]
    largest = profile.groupby(["model", "feature"])["coverage_share"].transform("max")
    profile = profile[largest > 0]
    most = max([FEWEST_ROWS, *profile.groupby("model")["feature"].nunique()])
    figure, panels = grid(len(known), columns=2, width=4.2, height=1.1 + 0.065 * most)
    told, image = [], None
    for axes, model in zip(panels, known, strict=True):
        rows = profile[profile["model"] == model]
        if rows.empty:
            empty(axes, model, "no outlier values at any site")
            continue
        of = features.loc[model]
        order = sorted(rows["feature"].unique(), key=lambda f: _place(of.loc[f]))
        table = rows.pivot(index="feature", columns="site", values="coverage_share").loc[order]
        image = axes.imshow(
            table, aspect="auto", cmap="cividis", vmin=0, vmax=1, interpolation="none"
        )
        marks = [_mark(of.loc[f]) for f in order]
        axes.set(title=model, xlabel="site", yticks=range(len(order)), yticklabels=order)
        axes.set_ylim(max(len(order), FEWEST_ROWS) - 0.5, -0.5)
        axes.tick_params(axis="y", labelsize=5)
        right = axes.secondary_yaxis("right")
        right.set_yticks(range(len(order)), marks, fontsize=5)
        axes.grid(visible=False)
        told.append(f"{model}: {len(order)} features over {table.shape[1]} sites")
    if image is not None:
        figure.colorbar(image, ax=panels, shrink=0.6, label="share of positions")
    return figure, f"Coverage by feature and site. {'; '.join(told)}."


def residual(tables: Tables, _: Criteria) -> Drawn:
    """Draw the largest and the median absolute value of the residual stream by block."""
    known = looks(tables["models"])
    figure, panels = grid(len(known))
    ratios = whole(tables["intervals"], "massive_ratio", None)
    told = []
    for axes, (model, look) in zip(panels, known.items(), strict=True):
        for metric, line in (("residual_max", "-"), ("residual_median", "--")):
            rows = _by(tables["intervals"], model, metric, "block")
            label = metric.removeprefix("residual_")
            axes.plot(rows["block"], rows["estimate"], line, color=look.colour, label=label)
            band = {"color": look.colour, "alpha": 0.2, "lw": 0}
            axes.fill_between(rows["block"], rows["low"], rows["high"], **band)
        blocks = tables["blocks"][tables["blocks"]["model"] == model]
        if blocks.empty:
            empty(axes, model, "not recorded")
            continue
        onset = blocks.loc[blocks["massive_onset"], "block"]
        most = _by(tables["intervals"], model, "residual_max", "block").set_index("block")[
            "estimate"
        ]
        for share, mark in WHERE.items():
            usual = blocks.loc[blocks[f"top_{share}_share"] >= USUAL, "block"]
            there = usual[usual.isin(most.index)]
            axes.plot(there, most[there], mark, color="black", ms=4, mfc="none")
        axes.set(title=model, yscale="log", xlabel="block", ylabel="abs(h)")
        if len(onset):
            where = {"transform": axes.get_xaxis_transform(), "clip_on": False}
            axes.plot(onset, [0.0] * len(onset), "^", color="black", **where)
        axes.legend(fontsize=6, loc="center right")
        since = f", massive (2024) from block {onset.iloc[0]}" if len(onset) else ""
        ratio = ratios.loc[model, "estimate"]
        largest = blocks["residual_max_largest"].max()
        told.append(f"{model}: {ratio:,.0f} times the median, at most {largest:.4g}{since}")
    return figure, f"Largest value of the residual stream. {'; '.join(told)}."


def magnitude_by_site(tables: Tables, criteria: Criteria) -> Drawn:
    """Draw the extremes of the feature with most outlier mass by site, and what the norm allows."""
    known = looks(tables["models"])
    figure, panels = grid(len(known))
    told = []
    for axes, (model, look) in zip(panels, known.items(), strict=True):
        rows = tables["profile"]
        rows = rows[(rows["model"] == model) & (rows["mass_rank"] == 1)].sort_values("site")
        if rows.empty or not rows["coverage_share"].any():
            empty(axes, model, "no outlier values at any site")
            continue
        axes.plot(rows["site"], rows["x_highest"], color=look.colour)
        axes.plot(rows["site"], rows["x_lowest"], color=look.colour, ls="--")
        axes.plot(rows["site"], rows["x_largest"], ".", color="black", ms=3)
        for sign in (-1, 1):
            axes.plot(rows["site"], sign * rows["bound"], ":", color="#888888", lw=0.8)
        least = criteria.at("x")
        axes.set_yscale("symlog", linthresh=least)
        most = max(rows["bound"].max(), rows["x_largest"].abs().max(), least)
        most *= 1.3  # room above the largest mark
        ticks = [least, *(tick for tick in TICKS if least < tick <= most)]
        ticks = [*(-tick for tick in reversed(ticks)), 0, *ticks]
        axes.set_yticks(ticks, [f"{tick:,g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_ylim(-most, most)
        axes.set(title=f"{model}\nfeature {rows['feature'].iloc[0]}", xlabel="site", ylabel="x")
        told.append(f"{model}: {rows['x_largest'].abs().max():.3g}")
    return figure, f"Largest abs(x) of the feature with most outlier mass. {'; '.join(told)}."


def kurtosis(tables: Tables, _: Criteria) -> Drawn:
    """Draw the kurtosis of the norms' outputs by depth, for the two kinds of site."""
    known = looks(tables["models"])
    figure = Figure(figsize=(7.5, 3.4))
    panels = figure.subplots(1, 2, sharey=True)
    shown: set[str] = set()
    for axes, kind in zip(panels, KINDS, strict=True):
        for model, look in known.items():
            rows = _by(tables["intervals"], model, "excess_kurtosis", "site")
            rows = rows[rows["kind"] == kind]
            if rows.empty:
                continue
            shown.add(model)
            depth = rows["block"] / max(rows["block"].max(), 1)
            style = {"color": look.colour, "linestyle": look.line, "marker": look.mark, "ms": 3}
            axes.plot(depth, rows["estimate"] + GAUSSIAN_KURTOSIS, **style)
        axes.axhline(GAUSSIAN_KURTOSIS, color="#888888", ls=":", lw=0.8)
        axes.set(yscale="log", title=kind, xlabel="depth", xlim=(-0.03, 1.03))
    panels[0].set_ylabel("kurtosis")
    told = legend(figure, known, shown, "no numbers")
    medians = []
    for model in known:
        rows = _by(tables["intervals"], model, "excess_kurtosis", "site")
        if len(rows):
            medians.append(f"{model} {rows['estimate'].median() + GAUSSIAN_KURTOSIS:.3g}")
    return figure, f"Median kurtosis over sites: {'; '.join(medians)}.{told}"


def rounding(tables: Tables, _: Criteria) -> Drawn:
    """Draw the signal to noise of 8-bit rounding by site and scheme, a panel a model."""
    known = looks(tables["models"])
    figure, panels = grid(len(known), height=2.2)
    gains = whole(tables["intervals"], "int8_gain_db", None)
    sites = tables["intervals"][tables["intervals"]["metric"] == "int8_sqnr_db"].dropna(
        subset="site"
    )
    told, limits = [], (sites["estimate"].min() - 2, sites["estimate"].max() + 2)
    for axes, model in zip(panels, known, strict=True):
        rows = _by(tables["intervals"], model, "int8_sqnr_db", "site")
        if rows.empty:
            empty(axes, model, "not recorded")
            continue
        for scheme, colour, line in zip(SCHEMES, COLOURS, LINES, strict=False):
            of = rows[rows["scheme"] == scheme]
            axes.plot(of["site"], of["estimate"], color=colour, ls=line, lw=1, label=scheme)
        number = gains.loc[model]
        gain = f"{number['estimate']:+.1f} dB"
        if not pd.isna(number["low"]):
            gain += f" [{number['low']:.1f}, {number['high']:.1f}]"
        axes.set(title=f"{model}\n{gain}", xlabel="site", ylabel="dB", ylim=limits)
        told.append(f"{model} {gain}")
    drawn = next((axes for axes in panels if axes.has_data()), panels[0])
    figure.legend(*drawn.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return (
        figure,
        f"Gain of keeping features with an abs(x) of 6 exact, over tokens: {'; '.join(told)}.",
    )


def _by(intervals: Any, model: str, metric: str, along: str) -> Any:
    """Return one metric of one model over the depth."""
    rows = intervals[(intervals["model"] == model) & (intervals["metric"] == metric)]
    return rows.dropna(subset=along).sort_values(along)


def _place(feature: Any) -> tuple[int, float, int]:
    onset = feature["onset_site"]
    return list(CLASSES).index(feature["class"]), np.inf if pd.isna(onset) else float(onset), 0


def _mark(feature: Any) -> str:
    """Say a feature's class, sign, and the share of the sites at which it fires by x."""
    sided = feature["one_sidedness"] >= ONE_SIDED
    sign = "±" if not sided else "+" if feature["largest"] > 0 else "-"
    return f"{CLASSES[feature['class']][2]} {sign} {feature['x_extent_share']:.2f}"
