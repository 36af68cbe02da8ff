"""The table of values, with one row a metric and sequence, and the catalogue of metrics."""

import csv
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from moe_outliers.stats import Array
from moe_outliers.storage import parquet

NOT_RECORDED = "not recorded"
"""Note of a metric whose variables the statistics file lacks."""

NO_CANDIDATES = "no candidates"
"""Note of a metric of features of which there are none."""

NO_FEATURES = "no features of this class"
"""Note of the mass of a class that no feature has: it is zero, not estimated as zero."""

KEYS = {
    "metric": (pa.string(), "name of the metric; the table `metrics` defines each"),
    "basis": (pa.string(), "whose size is asked for: z, x or y; docs/method.md"),
    "alpha": (pa.float64(), "threshold of the basis's abs value"),
    "position_share": (
        pa.float64(),
        "share of a sequence's positions at which a site fires; 0: one position",
    ),
    "kind": (pa.string(), "kind of site: attn_in or mlp_in; empty: all sites"),
    "mixer": (pa.string(), "what the sites feed: attention, linear_attention, mlp or moe"),
    "site": (pa.int32(), "number of the site, two a block in order of the forward pass"),
    "block": (pa.int32(), "number of the decoder block, from 0"),
    "scheme": (pa.string(), "8-bit scheme: tensor, token, zeropoint or mixed"),
    "token_type": (pa.string(), "type of position: first, delimiter or other"),
    "class": (pa.string(), "class of the features that are summed over"),
    "feature": (pa.int32(), "number of the feature"),
}
"""The columns that identify a quantity: each combination has its own interval."""

WHOLE_MODEL_KEYS = ("metric", "basis", "alpha", "position_share")
"""Keys that a number of the whole model may have; each further one narrows it to a part."""

SCHEMA = parquet.schema(
    model=(pa.string(), "slug of the table of models"),
    **KEYS,
    sequence=(pa.int32(), "index of the sequence; empty for a quantity of the model as a whole"),
    value=(pa.float64(), "the value, in the metric's unit; empty where it is not defined"),
    note=(pa.string(), "not recorded, no candidates, no features of this class; mostly empty"),
)


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        id: its number in docs/method.md.
        unit: its unit; `share` lies in [0, 1] and its name ends in _share.
        meaning: one line.
    """

    id: str
    unit: str
    meaning: str


def _catalogue() -> dict[str, Metric]:
    text = (resources.files("moe_outliers") / "data" / "metrics.tsv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    return {row.pop("metric"): Metric(**row) for row in rows}


METRICS = _catalogue()
"""All metrics, by name: data/metrics.tsv."""


def of_whole_model(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a table with KEYS that are of the whole model."""
    narrowing = [key for key in KEYS if key not in WHOLE_MODEL_KEYS]
    return table[table[narrowing].isna().all(axis=1)]


class Values:
    """Collects rows of the table of values."""

    def __init__(self, model: str, sequences: Array) -> None:
        """Start a table.

        Args:
            model: slug of the model.
            sequences: (sequence,), indices of the sequences, in the order of the values to come.
        """
        self.model, self.sequences = model, sequences
        self._parts: list[pa.Table] = []

    def add(
        self, metric: str, values: Array, axis: dict[str, Any] | None = None, **keys: Any
    ) -> None:
        """Add a metric's values.

        Args:
            metric: a name of METRICS.
            values: (sequence,), or (sequence, item) with an `axis`.
            axis: keys that go with the items, each as many as there are items.
            keys: keys that all values share.
        """
        axis = axis or {}
        table = np.asarray(values, dtype=float).reshape(len(self.sequences), -1)
        items = table.shape[1]
        columns = {name: np.tile(np.asarray(item), len(table)) for name, item in axis.items()}
        self._append(
            metric,
            keys | columns,
            sequence=np.repeat(self.sequences, items),
            value=table.ravel(),
            note=None,
        )

    def add_whole(self, metric: str, value: float, note: str | None = None, **keys: Any) -> None:
        """Add one value of the model as a whole: it has no interval."""
        self._append(metric, keys, sequence=None, value=float(value), note=note)

    def lack(self, note: str, *metrics: str, **keys: Any) -> None:
        """Record that metrics have no values, and why."""
        for metric in metrics:
            self._append(metric, keys, sequence=None, value=None, note=note)

    def table(self) -> pa.Table:
        """Return all rows, of SCHEMA."""
        return pa.concat_tables(self._parts) if self._parts else SCHEMA.empty_table()

    def _append(self, metric: str, keys: dict[str, Any], **columns: Any) -> None:
        if metric not in METRICS or not set(keys) <= set(KEYS):
            raise ValueError(f"{metric} with {sorted(keys)}: not in the catalogue of metrics")
        named = dict.fromkeys(KEYS) | {"metric": metric} | keys
        self._parts.append(parquet.table(SCHEMA, {"model": self.model} | named | columns))
