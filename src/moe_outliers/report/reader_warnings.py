"""What the numbers say beside each other: old and corrected, and what a reader must know."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import pyarrow as pa

from moe_outliers.metrics.classes import INDETERMINATE, SEQUENCES
from moe_outliers.metrics.values import NOT_RECORDED, of_whole_model
from moe_outliers.storage import parquet

TEXT, REAL = pa.string(), pa.float64()

LEGACY = parquet.schema(
    model=(TEXT, "slug of the table of models"),
    quantity=(TEXT, "count, layer_share or position_share"),
    legacy=(REAL, "the old system's number on these statistics; biased"),
    legacy_metric=(TEXT, "its name in the table `intervals`"),
    published=(REAL, "the number in the old system's results table; empty where it has none"),
    basis=(TEXT, "of the corrected number: x as the old one, or fires"),
    corrected=(REAL, "the corrected number"),
    low=(REAL, "lower end of its interval; empty where there is none"),
    high=(REAL, "upper end of its interval"),
    corrected_metric=(TEXT, "its name in the table `intervals`"),
)
"""One row a model, quantity and basis."""

CORRECTED = {
    "count": ("legacy_count", "n_dims"),
    "layer_share": ("legacy_layer_mean_share", "extent_site_share"),
    "position_share": ("legacy_position_mean_share", "sd_pair_share"),
}

WARNINGS = parquet.schema(
    model=(TEXT, "slug of the table of models"),
    warning=(TEXT, "short name of what a reader must know"),
    detail=(TEXT, "one sentence with the numbers"),
)
"""One row a warning."""

STABLE_JACCARD = 0.8
"""Random halves that agree less than this on the candidates are worth a warning."""


def headline(intervals: pa.Table) -> pd.DataFrame:
    """Return the rows of the headline that are of the whole model."""
    frame = intervals.to_pandas()
    return of_whole_model(frame[frame["headline"]])


def legacy(models: list[str], intervals: pa.Table, compared: pa.Table) -> pa.Table:
    """Lay the old system's numbers beside the corrected ones, of LEGACY.

    Args:
        models: their slugs.
        intervals: of all models.
        compared: as reference.compare returns it.
    """
    found = {
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
            for basis in ("x", "fires"):
                corrected = found[model, after, basis]
                rows.append(
                    {
                        "model": model,
                        "quantity": quantity,
                        "legacy": found[model, before, None]["estimate"],
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


def warnings(models: list[str], found: Mapping[str, pa.Table]) -> pa.Table:
    """Say what a reader of a model's numbers must know, of WARNINGS.

    Args:
        models: their slugs.
        found: the tables models, values, stability and stable_ranges of the sweep.
    """
    rows = []
    for model in models:
        tables = {
            name: found[name].filter(pa.compute.field("model") == model).to_pandas()
            for name in ("models", "values", "stability", "stable_ranges")
        }
        rows += [
            {"model": model, "warning": name, "detail": detail}
            for name, detail in _warnings(tables).items()
            if detail
        ]
    return parquet.of_rows(WARNINGS, rows)


def _warnings(tables: Mapping[str, pd.DataFrame]) -> dict[str, str | bool]:
    """Return the warnings of one model by name; what does not apply is False."""
    row: Any = tables["models"].iloc[0]
    ranges = tables["stable_ranges"].query("headline == 'model_class' and basis == 'fires'")
    stable: Any = ranges[ranges["along"] == "alpha"].iloc[0]
    jaccard = tables["stability"].query("basis == 'fires'")["jaccard"].mean()
    values = tables["values"]
    lacking = sorted(values[values["note"] == NOT_RECORDED]["metric"].unique())
    return {
        "few_sequences": row["sequences"] < SEQUENCES
        and f"{row['sequences']} sequences: classes need at least {SEQUENCES}",
        "indeterminate": row["model_class"] == INDETERMINATE
        and "the class depends on features whose own class is not resolved",
        "basis": row["class_x"] != row["model_class"]
        and f"by x alone the class would be {row['class_x']}",
        "gain": row["surrogate_n_dims"] > 0
        and f"Gaussian activations behind this model's gains would give "
        f"{row['surrogate_n_dims']} candidate{'s' if row['surrogate_n_dims'] > 1 else ''}",
        "threshold": stable["low"] == stable["high"]
        and f"the class holds at {stable['low']:g} alone, not at the thresholds next to it",
        "stability": jaccard < STABLE_JACCARD
        and f"random halves of the sequences agree on the candidates by {jaccard:.2f} only "
        "(mean Jaccard index)",
        "not_recorded": bool(lacking) and f"not in these statistics: {', '.join(lacking)}",
    }
