"""The sweep in short, for machines: results/tables/summary.json."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import pyarrow as pa

from moe_outliers.findings import headline
from moe_outliers.metrics.classes import CLASSES

TOP = 12
"""Features of a model that the summary names, by outlier mass."""

NUMBERS = ("estimate", "low", "high", "unit", "method", "n", "degenerate")


def summarise(
    tables: Mapping[str, pa.Table], criteria: Mapping[str, float], seed: int
) -> dict[str, Any]:
    """Say the same as the report, as JSON values.

    Args:
        tables: as tables.collect returns them.
        criteria: the settings `outliers`.
        seed: of the sweep.

    Returns:
        `settings`, `models` by slug (class, numbers with intervals, features, legacy, warnings),
        `differences` and `correlations` that survive Holm at .05, `expectations`, `validation`.
    """
    frames = {name: table.to_pandas() for name, table in tables.items() if name != "values"}
    frames["intervals"] = headline(tables["intervals"])
    return {
        "settings": {
            "outliers": dict(criteria),
            "seed": seed,
            "confidence": _plain(frames["intervals"]["confidence"].iloc[0]),
        },
        "models": {
            model: _model(str(model), row, frames)
            for model, row in frames["models"].set_index("model").iterrows()
        },
        "differences": _surviving(frames["differences"]),
        "correlations": _surviving(frames["correlations"]),
        "expectations": _rows(frames["reference"]),
        "validation": {
            name: _rows(frames[f"validate_{name}"]) for name in ("coverage", "selection", "classes")
        },
    }


def _model(model: str, row: Any, frames: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    def of(name: str) -> pd.DataFrame:
        return frames[name][frames[name]["model"] == model]

    cells = of("sensitivity")
    cell = cells[cells["headline"] & (cells["basis"] == "fires")].iloc[0]
    features = of("features").sort_values("mass_rank").head(TOP)
    columns = ["feature", "class", "extent_share", "x_extent_share", "consistency", "mass_share"]
    columns += ["largest", "one_sidedness", "gain_median"]
    numbers: dict[str, Any] = {}
    for each in of("intervals").itertuples():
        basis = each.basis if isinstance(each.basis, str) else "whole"
        plain = {name: _plain(getattr(each, name)) for name in NUMBERS}
        numbers.setdefault(str(each.metric), {})[basis] = plain
    return {
        **{name: _plain(value) for name, value in row.items()},
        "classes_of_features": {name: _plain(cell[f"n_{name}"]) for name in CLASSES},
        "mass_shares": {name: _plain(cell[f"mass_{name}_share"]) for name in CLASSES},
        "stable_ranges": _rows(of("stable_ranges").drop(columns="model")),
        "numbers": numbers,
        "features": _rows(features[columns]),
        "legacy": _rows(of("legacy").drop(columns="model")),
        "warnings": _rows(of("warnings").drop(columns="model")),
    }


def _surviving(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return _rows(frame[frame["p_holm"] <= 0.05])


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
