"""The summary of a sweep for programs: results/tables/summary.json."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from moe_outliers.metrics.by_feature import RELATIONS
from moe_outliers.metrics.classes import CLASSES, OUT_OF_REACH, SYSTEMATIC
from moe_outliers.metrics.magnitude import TYPES
from moe_outliers.report.old_numbers import headline
from moe_outliers.stats.multiplicity import LEVEL

TOP = 12
"""Features of a model that the summary names, by outlier mass."""

NUMBERS = (
    "estimate", "low", "high", "sure_low", "sure_high", "one_text_decides", "unit", "method", "n",
    "degenerate",
)  # fmt: skip


def summarise(
    tables: Mapping[str, pa.Table],
    criteria: Mapping[str, Any],
    seed: int,
    measured: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Summarise a sweep as JSON values: the contents of the report.

    Args:
        tables: as tables.collect returns them.
        criteria: the settings `outliers`.
        seed: of the sweep.
        measured: the settings `data` and `extract`: they change every number.

    Returns:
        `settings`, `models` by slug (class, numbers with intervals, features, cross-batch
        validation, legacy, warnings), `differences` and `correlations` that survive Holm at .05,
        `undecidable_differences` (no pair of a number could survive), `correlations_tested` (what
        could), `expectations`, `validation`.
    """
    frames = {name: table.to_pandas() for name, table in tables.items() if name != "values"}
    frames["whole"] = headline(tables["intervals"])
    return {
        "settings": {
            "outliers": dict(criteria),
            "seed": seed,
            **{name: dict(settings) for name, settings in measured.items()},
            "documents": sorted(set(frames["sequences"]["document"])),
            "confidence": _plain(frames["intervals"]["confidence"].iloc[0]),
        },
        "models": {
            model: _model(str(model), row, frames)
            for model, row in frames["models"].set_index("model").iterrows()
        },
        "differences": _surviving(frames["differences"]),
        "undecidable_differences": _undecidable(frames["differences"]),
        "correlations": _surviving(frames["correlations"]),
        "correlations_tested": _tested(frames["correlations"]),
        "expectations": _rows(frames["reference"]),
        "validation": {
            name: _rows(frames[f"validate_{name}"])
            for name in ("coverage", "selection", "classes", "discoveries")
        },
    }


def _model(model: str, row: Any, frames: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    def of(name: str) -> pd.DataFrame:
        return frames[name][frames[name]["model"] == model]

    cells = of("sensitivity")
    cells = cells[cells["basis"] == "z"]
    cell = cells[cells["headline"]].iloc[0]
    numbers: dict[str, Any] = {}
    for each in of("whole").to_dict("records"):
        basis = each["basis"] if isinstance(each["basis"], str) else "whole"
        numbers.setdefault(each["metric"], {})[basis] = _number(each)
    intervals, left_out = of("intervals"), of("cross_batch")
    return {
        **{name: _plain(value) for name, value in row.items()},
        "classes_of_features": {name: _plain(cell[f"n_{name}"]) for name in CLASSES},
        "mass_shares": _keyed(intervals, "mass_share", "z", "class", CLASSES),
        **_beside(of("features")),
        "nearest_change": _nearest_change(cells, cell),
        "stable_ranges": _rows(of("stable_ranges").drop(columns="model")),
        "numbers": numbers,
        "type_shares": _keyed(intervals, "type_coverage_share", "z", "token_type", TYPES),
        "features": _rows(_features(of("features"), intervals)),
        "cross_batch": _rows(left_out[left_out["basis"] == "z"].drop(columns=["model", "basis"])),
        "legacy": _rows(of("legacy").drop(columns="model")),
        "warnings": _rows(of("warnings").drop(columns="model")),
    }


def _beside(features: pd.DataFrame) -> dict[str, Any]:
    """Count features by relation, and systematic ones by where they are so and by their kind."""
    systematic = features[features["class"] == SYSTEMATIC]

    def counted(column: "pd.Series[Any]") -> dict[str, int]:
        return {str(name): int(number) for name, number in column.value_counts().items()}

    relation = counted(features["relation"].dropna())
    return {
        "relations": {name: relation.get(name, 0) for name in RELATIONS},
        "systematic_in": counted(systematic["systematic_in"]),
        "systematic_kinds": counted(systematic["z_kind"].fillna("not recorded")),
    }


def _nearest_change(cells: pd.DataFrame, at: Any) -> dict[str, Any] | None:
    """Return the nearest threshold at which the model is of another class, and that class."""
    known = cells["model_class"].notna() & (cells["model_class"] != OUT_OF_REACH)
    line = cells[known & (cells["position_share"] == at["position_share"])]
    others = line[line["model_class"] != at["model_class"]]
    if others.empty or at["model_class"] == OUT_OF_REACH:
        return None
    nearest = others.loc[(np.log(others["alpha"]) - np.log(at["alpha"])).abs().idxmin()]
    return {name: _plain(nearest[name]) for name in ("alpha", "model_class")}


def _features(features: pd.DataFrame, intervals: pd.DataFrame) -> pd.DataFrame:
    """Pick the features with most outlier mass, with the intervals of their held-out extents."""
    columns = ["feature", "class", "systematic_in", "relation", "z_kind", "extent_share"]
    columns += ["x_extent_share", "consistency", "mass_share", "largest", "one_sidedness"]
    columns += ["gain_median", "z_median", "token_half_share", "token_positions"]
    rows = intervals[(intervals["metric"] == "feature_extent_share") & intervals["headline"]]
    held_out = rows[rows["basis"] == "z"].set_index("feature")[["estimate", "low", "high"]]
    held_out = held_out.add_prefix("held_out_extent_")
    return features.sort_values("mass_rank").head(TOP)[columns].join(held_out, on="feature")


def _keyed(
    intervals: pd.DataFrame, metric: str, basis: str, key: str, names: Sequence[str]
) -> dict[str, Any]:
    """Return a headline number by name; names without a row are left out."""
    rows = intervals[(intervals["metric"] == metric) & intervals["headline"]]
    rows = rows[(rows["basis"] == basis) & rows[key].isin(names)]
    numbers = {row[key]: _number(row) for row in rows.to_dict("records")}
    return {name: numbers[name] for name in names if name in numbers}


def _number(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {name: _plain(row[name]) for name in NUMBERS}


def _surviving(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return _rows(frame[frame["p_holm"] <= LEVEL])


def _undecidable(differences: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the numbers of which no pair can survive, with the texts that it has at most."""
    made = differences[differences["p"].notna()]
    families = made.groupby(["metric", "basis"], sort=False, dropna=False)
    best = families.agg(n=("n", "max"), least=("least_p_holm", "min")).reset_index()
    return _rows(best[best["least"] > LEVEL].drop(columns="least"))


def _tested(correlations: pd.DataFrame) -> dict[str, Any]:
    """Return how many correlations of how many models were tested, and what could survive."""
    made = correlations[correlations["p"].notna()]
    models = correlations["models"].max()
    reach = made.loc[made["models"] == models, "least_abs_rho"]
    return {
        "rows": len(made),
        "models": _plain(models),
        "decidable": bool(reach.notna().any()),
        "least_abs_rho": _plain(reach.min()),
    }


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {str(name): _plain(value) for name, value in row.items()}
        for row in frame.to_dict("records")
    ]


def _plain(value: Any) -> Any:
    """Turn a value of a table into a JSON value; missing ones become null."""
    value = value.item() if hasattr(value, "item") else value
    if value is pd.NA or value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value
