"""Warnings: what a reader of a model's numbers must know."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from moe_outliers.metrics.classes import INDETERMINATE, OUT_OF_REACH, SEQUENCES
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
    rows, usual = [], _usual(tables["models"]["dtype"].to_pylist())
    for model in models:
        own = {
            name: tables[name].filter(pa.compute.field("model") == model).to_pandas()
            for name in ("models", "values", "stability", "stable_ranges")
        }
        whole = headline(tables["intervals"].filter(pa.compute.field("model") == model))
        own["intervals"] = whole[whole["one_text_decides"].notna()]
        rows += [
            {"model": model, "warning": name, "detail": detail}
            for name, detail in _warnings(own, usual).items()
            if detail
        ]
    return parquet.of_rows(WARNINGS, rows)


def _usual(dtypes: list[str | None]) -> str | None:
    """Return the type that most models of the sweep are computed in; of several, the first."""
    return Counter(dtypes).most_common(1)[0][0]


def _warnings(tables: Mapping[str, pd.DataFrame], usual: str | None) -> dict[str, str | bool]:
    """Return the warnings of one model by name; False where one does not apply."""
    row: Any = tables["models"].iloc[0]
    decided = sorted(tables["intervals"]["metric"].unique())
    values = tables["values"]
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
        **_of_class(row, tables),
        "gain": row["surrogate_n_dims"] > 0
        and f"Gaussian activations behind this model's gains would give "
        f"{row['surrogate_n_dims']} candidate{'s' if row['surrogate_n_dims'] > 1 else ''} by x",
        "dtype": row["dtype"] != usual
        and f"computed in {row['dtype']}, most models of this sweep in {usual}: values differ by "
        "rounding, which moves some over a threshold",
        "not_recorded": bool(lacking) and f"not in these statistics: {', '.join(lacking)}",
    }


def _of_class(row: Any, tables: Mapping[str, pd.DataFrame]) -> dict[str, str | bool]:
    """Return the warnings about the class of a model."""
    ranges = tables["stable_ranges"].query("headline == 'model_class' and basis == 'z'")
    along = ranges[ranges["along"] == "alpha"]
    alone = along.loc[np.isclose(along["low"], along["high"]), "low"].tolist()
    jaccard = tables["stability"].query("basis == 'z'")["jaccard"].mean()
    return {
        "one_text_decides_class": isinstance(row["one_text_decides"], str)
        and f"the class hangs on single sequences; without them it would be: "
        f"{row['one_text_decides']}",
        "indeterminate": row["model_class"] == INDETERMINATE
        and "the class depends on features whose own class is not resolved",
        "basis": row["class_x"] != row["model_class"]
        and f"by x, which a rescaling of gains moves, the class would be "
        f"{row['class_x'].replace('_', ' ')}",
        "out_of_reach": row["model_class"] == OUT_OF_REACH
        and f"abs(z) is at most {row['width'] ** 0.5:.3g} in a model of width {row['width']}: set "
        f"outliers.magnitude to at most {row['width'] ** 0.5 / 2:.3g} for z to class it",
        "at_threshold": row["at_threshold"]
        and "the extent of the best feature may or may not reach the least that makes a candidate",
        "threshold": len(alone) > 0
        and row["candidates"] > 0
        and f"the class holds at {alone[0]:g} alone, not at the thresholds next to it",
        "stability": row["candidates"] > 0
        and jaccard < STABLE_JACCARD
        and f"random halves of the sequences agree on the candidates by {jaccard:.2f} only "
        "(mean Jaccard index)",
    }
