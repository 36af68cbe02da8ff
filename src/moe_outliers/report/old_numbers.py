"""The numbers of the old system beside the corrected ones."""

import pandas as pd
import pyarrow as pa

from moe_outliers.metrics.values import of_whole_model
from moe_outliers.storage import parquet

TEXT, REAL = pa.string(), pa.float64()

LEGACY = parquet.schema(
    model=(TEXT, "slug of the table of models"),
    quantity=(TEXT, "count, layer_share or position_share"),
    legacy=(REAL, "the old system's number on these statistics; biased"),
    legacy_metric=(TEXT, "its name in the table `intervals`"),
    published=(REAL, "the number in the old system's results table; empty where it has none"),
    basis=(TEXT, "of the corrected number: x as the old one, or z"),
    corrected=(REAL, "the corrected number"),
    low=(REAL, "lower end of its interval; empty where there is none"),
    high=(REAL, "upper end of its interval"),
    corrected_metric=(TEXT, "its name in the table `intervals`"),
)
"""One row a model, quantity and basis."""

CORRECTED = {
    "count": ("legacy_count", "n_dims"),
    "layer_share": ("legacy_layer_mean_share", "extent_site_share"),
    "position_share": ("legacy_position_mean_share", "sd_firing_share"),
}


def headline(intervals: pa.Table) -> pd.DataFrame:
    """Return the headline numbers of the whole models."""
    frame = intervals.to_pandas()
    return of_whole_model(frame[frame["headline"]])


def beside_corrected(models: list[str], intervals: pa.Table, compared: pa.Table) -> pa.Table:
    """Put the old system's numbers beside the corrected ones, of LEGACY.

    Args:
        models: their slugs.
        intervals: of all models.
        compared: as earlier_work.compare returns it.
    """
    numbers = {
        (row["model"], row["metric"], row["basis"] if isinstance(row["basis"], str) else None): row
        for row in headline(intervals).to_dict("records")
    }
    published = {
        (row["model"], row["quantity"]): row["expected"]
        for row in compared.to_pylist()
        if row["source"] == "results"
    }
    rows = []
    for model in models:
        for quantity, (before, after) in CORRECTED.items():
            for basis in ("x", "z"):
                corrected = numbers[model, after, basis]
                rows.append(
                    {
                        "model": model,
                        "quantity": quantity,
                        "legacy": numbers[model, before, None]["estimate"],
                        "legacy_metric": before,
                        "published": published.get((model, before)),
                        "basis": basis,
                        "corrected": corrected["estimate"],
                        "low": corrected["low"],
                        "high": corrected["high"],
                        "corrected_metric": after,
                    }
                )
    return parquet.of_rows(LEGACY, rows)
