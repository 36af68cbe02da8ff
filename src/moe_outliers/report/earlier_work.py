"""Compares the results with those of earlier work, which are never an input."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from moe_outliers.metrics.counts import HEADLINE
from moe_outliers.storage import parquet

SCHEMA = parquet.schema(
    model=(pa.string(), "slug of the table of models"),
    quantity=(
        pa.string(),
        "model_class, n_systematic, a legacy_* metric, or feature_legacy_layer_share and "
        "feature_magnitude (largest abs(x)) of one feature",
    ),
    feature=(pa.int32(), "number of the feature; empty for a quantity of the model"),
    expected=(pa.float64(), "a published value; empty where a range or a class is expected"),
    expected_low=(pa.float64(), "lower end of what is expected, or of what rounds to `expected`"),
    expected_high=(pa.float64(), "its upper end"),
    expected_text=(pa.string(), "the expected class"),
    measured=(pa.float64(), "what was measured"),
    measured_text=(pa.string(), "the measured class"),
    agrees=(
        pa.bool_(),
        "measured is within the range, or is the class; empty where nothing was measured",
    ),
    source=(pa.string(), "key of the source: guide, example, results or figures"),
    source_text=(pa.string(), "the source in full"),
)
"""One row an expectation of a selected model."""

PUBLISHED = parquet.schema(
    dense_model=(pa.string(), "family of the model; empty where only its size is told"),
    params_b=(pa.float64(), "parameters, in 10^9"),
    layer_share=(pa.float64(), "share of the layers that outlier features affect"),
    position_share=(pa.float64(), "share of the sequence dimensions that they affect"),
    perplexity=(pa.float64(), "on C4; empty where it is not told"),
    n_dims=(pa.int32(), "outlier features; empty where it is not told"),
    one_sided=(pa.int32(), "one-sided ones among them"),
    source=(pa.string(), "where the numbers are from"),
)
"""One row a published point of other models, for the figures."""


def read(path: Path) -> dict[str, Any]:
    """Read config/reference.yaml.

    Raises:
        ValueError: if a source is not listed, or an expectation has no range, value or text.
    """
    reference: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    for entry in [*reference["expectations"], *reference["published"]]:
        if entry["source"] not in reference["sources"]:
            raise ValueError(f"{path}: {entry['source']} is not among the sources")
    for entry in reference["expectations"]:
        if not any(keys <= set(entry) for keys in ({"text"}, {"low", "high"}, {"value", "step"})):
            raise ValueError(
                f"{path}: {entry['quantity']} needs `low` and `high`, `value` and `step`, or `text`"
            )
    return reference


def compare(
    reference: Mapping[str, Any],
    models: Sequence[str],
    intervals: pa.Table,
    features: pa.Table,
    sensitivity: pa.Table,
) -> pa.Table:
    """Compare the measured values with the expected ones of the selected models.

    Args:
        reference: as `read` returns it.
        models: slugs of the selected models.
        intervals: of all models.
        features: of all models.
        sensitivity: of all models.
    """
    measured = _measured(intervals, sensitivity)
    names = ("model", "feature", "legacy_layer_share", "largest")
    single = {
        (model, feature): {"feature_legacy_layer_share": share, "feature_magnitude": abs(largest)}
        for model, feature, share, largest in zip(
            *(features[name].to_pylist() for name in names), strict=True
        )
    }
    rows = []
    for entry in reference["expectations"]:
        for model in (slug for slug in entry["models"] if slug in models):
            for feature in entry.get("features", [None]):
                if feature is None:
                    value = measured.get((model, entry["quantity"]))
                else:
                    value = single.get((model, feature), {}).get(entry["quantity"])
                rows.append(_row(entry, model, feature, value, reference["sources"]))
    return parquet.of_rows(SCHEMA, rows)


def published(reference: Mapping[str, Any]) -> pa.Table:
    """Return the published points of other models, of PUBLISHED."""
    sources = reference["sources"]
    rows = [
        dict.fromkeys(PUBLISHED.names) | entry | {"source": sources[entry["source"]]}
        for entry in reference["published"]
    ]
    return parquet.of_rows(PUBLISHED, rows)


def _measured(intervals: pa.Table, sensitivity: pa.Table) -> dict[tuple[str, str], Any]:
    """Return the measured quantities by slug of the model and name."""
    frame = intervals.to_pandas()
    old = frame[frame["metric"].str.startswith("legacy_")]
    quantities: dict[tuple[str, str], Any] = {
        (row.model, row.metric): row.estimate for row in old.itertuples()
    }
    cells = sensitivity.to_pandas()
    for row in cells[cells["headline"] & (cells["basis"] == HEADLINE)].itertuples():
        quantities[row.model, "model_class"] = row.model_class
        quantities[row.model, "n_systematic"] = float(row.n_systematic)
    return quantities


def _row(
    entry: Mapping[str, Any], model: str, feature: int | None, measured: Any, sources: Any
) -> dict[str, Any]:
    text, value = entry.get("text"), entry.get("value")
    low, high = entry.get("low"), entry.get("high")
    if value is not None:
        low, high = value - entry["step"] / 2, value + entry["step"] / 2
    missing = measured is None or (text is None and np.isnan(measured))
    agrees = None
    if not missing:
        agrees = measured == text if text else bool(low <= measured <= high)
    return {
        "model": model,
        "quantity": entry["quantity"],
        "feature": feature,
        "expected": value,
        "expected_low": low,
        "expected_high": high,
        "expected_text": text,
        "measured": None if text or missing else float(measured),
        "measured_text": measured if text and not missing else None,
        "agrees": agrees,
        "source": entry["source"],
        "source_text": sources[entry["source"]],
    }
