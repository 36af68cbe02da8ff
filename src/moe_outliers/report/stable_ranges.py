"""How far each threshold may be moved before an answer changes."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from moe_outliers.metrics.classes import OUT_OF_REACH
from moe_outliers.metrics.values import of_whole_model
from moe_outliers.storage import parquet

SCHEMA = parquet.schema(
    model=(pa.string(), "slug of the table of models"),
    headline=(
        pa.string(), "model_class, extent_site_share, sd_pair_share or n_dims_sequence"
    ),
    basis=(pa.string(), "whose size is asked for: z, x or y"),
    along=(pa.string(), "the threshold that moves: alpha or position_share; the other stays"),
    at=(pa.float64(), "its value in the headline"),
    low=(pa.float64(), "smallest value to which the answer stays the same without a break"),
    high=(pa.float64(), "largest such value"),
    tried_low=(pa.float64(), "smallest value that was tried"),
    tried_high=(pa.float64(), "largest value that was tried"),
)  # fmt: skip
"""One row a model, answer, basis and threshold.

Thresholds that are out of reach are left out, and so is a model whose headline is. A number is the
same if its estimate lies within the headline's interval, or equals it where there is none.
"""

NUMBERS = ("extent_site_share", "sd_pair_share", "n_dims_sequence")


def stable_ranges(sensitivity: pa.Table, intervals: pa.Table) -> pa.Table:
    """Find the range of each threshold over which each answer is the headline's.

    Args:
        sensitivity: of all models.
        intervals: of all models.
    """
    cells = sensitivity.to_pandas()
    numbers = of_whole_model(intervals.to_pandas())
    numbers = numbers[numbers["metric"].isin(NUMBERS)]
    rows = []
    for (model, basis), group in cells.groupby(["model", "basis"], sort=False):
        beyond = group.loc[group["model_class"] == OUT_OF_REACH, "alpha"].unique()
        if group.loc[group["headline"], "alpha"].isin(beyond).any():
            continue
        answers = {"model_class": group.assign(same=_same_class(group))}
        of = numbers[(numbers["model"] == model) & (numbers["basis"] == basis)]
        for metric, part in of.groupby("metric", sort=False):
            answers[str(metric)] = part.assign(same=_same_number(part))
        for name, answer in answers.items():
            for along, other in (("alpha", "position_share"), ("position_share", "alpha")):
                at = answer[answer["headline"]].iloc[0]
                line = answer[answer[other] == at[other]].sort_values(along)
                line = line[~line["alpha"].isin(beyond)]
                if name == "model_class":
                    line = line[line["model_class"].notna()]
                rows.append(
                    {"model": model, "headline": name, "basis": basis, "along": along}
                    | _around(line[along].to_numpy(), line["same"].to_numpy(), at[along])
                )
    return parquet.of_rows(SCHEMA, rows)


def _same_class(group: pd.DataFrame) -> Any:
    return group["model_class"] == group[group["headline"]]["model_class"].iloc[0]


def _same_number(part: pd.DataFrame) -> Any:
    at = part[part["headline"]].iloc[0]
    if np.isnan(at["estimate"]):
        return part["estimate"].isna()
    low, high = at["low"], at["high"]
    if np.isnan(low):
        low = high = at["estimate"]
    return (part["estimate"] >= low - 1e-9) & (part["estimate"] <= high + 1e-9)


def _around(values: Any, same: Any, at: float) -> dict[str, float]:
    """Extend the range from one value in both directions while the answer stays the same."""
    place = int(np.flatnonzero(values == at)[0])
    low = high = place
    while low > 0 and same[low - 1]:
        low -= 1
    while high < len(values) - 1 and same[high + 1]:
        high += 1
    return {
        "at": at,
        "low": values[low],
        "high": values[high],
        "tried_low": values[0],
        "tried_high": values[-1],
    }
