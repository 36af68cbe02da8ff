"""Warnings: what a reader of a model's numbers must know."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import pyarrow as pa

from moe_outliers.metrics.classes import INDETERMINATE, SEQUENCES
from moe_outliers.metrics.values import NOT_RECORDED
from moe_outliers.report.old_numbers import headline
from moe_outliers.storage import parquet

TEXT = pa.string()

WARNINGS = parquet.schema(
    model=(TEXT, "slug of the table of models"),
    warning=(TEXT, "short name of what a reader must know"),
    detail=(TEXT, "one sentence with the numbers"),
)
"""One row a warning."""

STABLE_JACCARD = 0.8
"""Random halves that agree less than this on the candidates are worth a warning."""


def warnings(models: list[str], tables: Mapping[str, pa.Table]) -> pa.Table:
    """Warn of what a reader of a model's numbers must know, of WARNINGS.

    Args:
        models: their slugs.
        tables: models, values, intervals, stability and stable_ranges of the sweep.
    """
    rows = []
    for model in models:
        own = {
            name: tables[name].filter(pa.compute.field("model") == model).to_pandas()
            for name in ("models", "values", "stability", "stable_ranges")
        }
        whole = headline(tables["intervals"].filter(pa.compute.field("model") == model))
        own["intervals"] = whole[whole["one_text_decides"].notna()]
        rows += [
            {"model": model, "warning": name, "detail": detail}
            for name, detail in _warnings(own).items()
            if detail
        ]
    return parquet.of_rows(WARNINGS, rows)


def _warnings(tables: Mapping[str, pd.DataFrame]) -> dict[str, str | bool]:
    """Return the warnings of one model by name; False where one does not apply."""
    row: Any = tables["models"].iloc[0]
    ranges = tables["stable_ranges"].query("headline == 'model_class' and basis == 'fires'")
    stable: Any = ranges[ranges["along"] == "alpha"].iloc[0]
    jaccard = tables["stability"].query("basis == 'fires'")["jaccard"].mean()
    values = tables["values"]
    decided = sorted(tables["intervals"]["metric"].unique())
    lacking = sorted(values[values["note"] == NOT_RECORDED]["metric"].unique())
    return {
        "few_sequences": row["sequences"] < SEQUENCES
        and f"{row['sequences']} sequences: classes need at least {SEQUENCES}",
        "one_document": row["documents"] < row["sequences"]
        and f"{row['sequences']} sequences are parts of {row['documents']} "
        f"document{'s' if row['documents'] > 1 else ''} and depend on each other: no level of "
        "confidence can be claimed for any interval",
        "one_text_decides": len(decided) > 0
        and f"one sequence decides {len(decided)} of the headline's numbers "
        f"({', '.join(decided)}): look at the betting intervals, and at that text",
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
