"""The tables of a sweep: those of all models stacked, and what every column means."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from moe_outliers.inference import bootstrap, comparison, simulate_classes, simulate_intervals
from moe_outliers.metrics import measure
from moe_outliers.metrics.model_statistics import named_sequence
from moe_outliers.metrics.values import METRICS
from moe_outliers.report import earlier_work, old_numbers, reader_warnings
from moe_outliers.report.stable_ranges import SCHEMA as STABLE
from moe_outliers.report.stable_ranges import stable_ranges
from moe_outliers.storage import parquet

TEXT, WHOLE, REAL = pa.string(), pa.int32(), pa.float64()

MODELS = parquet.schema(
    model=(TEXT, "slug of the table of models, in its order"),
    number=(TEXT, "two digits"),
    repo=(TEXT, "repository on the hub, or a folder"),
    revision=(TEXT, "commit on the hub, or `local`"),
    params_b=(REAL, "all parameters, in 10^9"),
    active_b=(REAL, "parameters that one token uses, in 10^9"),
    layers=(WHOLE, "decoder blocks"),
    width=(WHOLE, "features of the residual stream"),
    experts=(WHOLE, "routed experts of a block"),
    top_k=(WHOLE, "experts that a token is routed to"),
    stored_dtype=(TEXT, "type that the checkpoint's weights are stored in, or how quantised"),
    family=(TEXT, "model_type of the checkpoint"),
    dtype=(TEXT, "type of the norms' output that was measured"),
    sequences=(WHOLE, "sequences that were read"),
    documents=(WHOLE, "documents that these are from: below `sequences` they depend on each other"),
    tokens=(WHOLE, "positions of each"),
    model_class=(
        TEXT,
        "by z: systematic, probabilistic, banded, mixed, indeterminate, no_outliers; unclassified: "
        "fewer than 8 sequences; out_of_reach: the magnitude is above sqrt(width) / 2",
    ),
    at_threshold=(
        pa.bool_(),
        "the 95 % t interval of the largest mean extent by z holds layer_share",
    ),
    one_text_decides=(
        TEXT,
        "the sequences without which the class is another, and that class; empty: none is",
    ),
    class_x=(TEXT, "class by x, the rule of 2022; the gains' convention moves it"),
    class_y=(TEXT, "class by y; empty: not recorded"),
    class_not_wide=(TEXT, "class by z without wide features; empty: not recorded"),
    class_energy=(TEXT, "class by z at the stored threshold nearest to 1/80 of a token's energy"),
    energy_alpha=(REAL, "that threshold"),
    candidates=(WHOLE, "candidates over all sequences, by z"),
    candidates_x=(WHOLE, "candidates by x"),
    n_dims=(REAL, "M12: outlier features, by z"),
    surrogate_n_dims=(WHOLE, "candidates by x that Gaussian activations would give"),
    surrogate_wide=(
        REAL,
        "candidates by z that a lognormal of ordinary sizes would give; empty: not recorded",
    ),
)
"""One row a model."""

CATALOGUE = parquet.schema(
    metric=(TEXT, "name, as in the tables `values` and `intervals`"),
    id=(TEXT, "its number in docs/method.md"),
    unit=(TEXT, "its unit; share: in [0, 1]; x, h, rms: as docs/method.md defines them"),
    meaning=(TEXT, "one line"),
)
"""One row a metric."""

DICTIONARY = parquet.schema(
    table=(TEXT, "name of the table"),
    column=(TEXT, "name of the column"),
    type=(TEXT, "its type"),
    meaning=(TEXT, "one line, with its unit"),
)
"""One row a table and column."""

OF_MODELS = {name: schema for name, schema in measure.TABLES.items() if name != "tokens"}
"""The tables that every model has, stacked."""

TABLES: dict[str, pa.Schema] = {
    "models": MODELS,
    "intervals": bootstrap.SCHEMA,
    **OF_MODELS,
    "differences": comparison.DIFFERENCES,
    "correlations": comparison.CORRELATIONS,
    "stable_ranges": STABLE,
    "legacy": old_numbers.LEGACY,
    "reference": earlier_work.SCHEMA,
    "published": earlier_work.PUBLISHED,
    "warnings": reader_warnings.WARNINGS,
    "validate_coverage": simulate_intervals.COVERAGE,
    "validate_selection": simulate_intervals.SELECTION,
    "validate_classes": simulate_classes.CLASSED,
    "validate_discoveries": simulate_classes.DISCOVERIES,
    "metrics": CATALOGUE,
    "dictionary": DICTIONARY,
}
"""All tables of a sweep, by name, with their columns."""


def collect(
    models: Mapping[str, Mapping[str, pa.Table]],
    rows: Mapping[str, Mapping[str, Any]],
    compared: Mapping[str, pa.Table],
    validated: Mapping[str, pa.Table],
    expectations: Mapping[str, Any],
) -> dict[str, pa.Table]:
    """Collect the tables of a sweep.

    Args:
        models: by slug, in the order of the table of models: the tables of measure.TABLES, and
            `intervals`.
        rows: of the table of models, by slug.
        compared: `intervals`, `differences` and `correlations`.
        validated: `coverage`, `selection`, `classes` and `discoveries`.
        expectations: as earlier_work.read returns it.

    Returns:
        The tables, named and typed as TABLES says.
    """
    tables = {name: _stack(name, models) for name in OF_MODELS}
    tables["intervals"] = pa.concat_tables([_stack("intervals", models), compared["intervals"]])
    tables["models"] = _models(models, rows)
    tables |= {name: compared[name] for name in ("differences", "correlations")}
    tables |= {f"validate_{name}": table for name, table in validated.items()}
    tables["stable_ranges"] = stable_ranges(tables["sensitivity"], tables["intervals"])
    tables["reference"] = earlier_work.compare(
        expectations, list(models), tables["intervals"], tables["features"], tables["sensitivity"]
    )
    tables["published"] = earlier_work.published(expectations)
    tables["legacy"] = old_numbers.beside_corrected(
        list(models), tables["intervals"], tables["reference"]
    )
    tables["warnings"] = reader_warnings.warnings(list(models), tables)
    tables["metrics"] = _catalogue()
    tables["dictionary"] = dictionary()
    return {name: tables[name].select(schema.names) for name, schema in TABLES.items()}


def dictionary() -> pa.Table:
    """Explain every column of every table, of DICTIONARY."""
    rows = [
        {"table": table, "column": field.name, "type": str(field.type)}
        | {"meaning": parquet.meanings(schema)[field.name]}
        for table, schema in TABLES.items()
        for field in schema
    ]
    return parquet.of_rows(DICTIONARY, rows)


def _stack(name: str, models: Mapping[str, Mapping[str, pa.Table]]) -> pa.Table:
    return pa.concat_tables([tables[name] for tables in models.values()])


def _models(
    models: Mapping[str, Mapping[str, pa.Table]], rows: Mapping[str, Mapping[str, Any]]
) -> pa.Table:
    described = []
    for model, tables in models.items():
        cells = tables["sensitivity"].to_pandas()
        headline = cells[cells["headline"]].set_index("basis")
        own_share = cells["position_share"] == headline.loc["z", "position_share"]
        energy = cells[cells["energy"] & own_share].iloc[0]
        attributes = dict(
            zip(*(tables["provenance"][n].to_pylist() for n in ("attribute", "value")), strict=True)
        )
        described.append(
            {name: rows[model][name] for name in MODELS.names if name in rows[model]}
            | {
                "model": model,
                "stored_dtype": rows[model].get("stored_dtype") or None,
                "family": attributes.get("family"),
                "dtype": attributes.get("norm_dtype"),
                "sequences": tables["sequences"].num_rows,
                "documents": len(set(tables["sequences"]["document"].to_pylist())),
                "tokens": tables["sequences"]["tokens"][0].as_py(),
                "model_class": headline.loc["z", "model_class"],
                "at_threshold": bool(headline.loc["z", "at_threshold"]),
                "one_text_decides": _deciding(tables, headline.loc["z", "model_class"]),
                "class_x": headline.loc["x", "model_class"],
                "class_y": headline["model_class"].get("y"),
                "class_not_wide": headline.loc["z", "class_not_wide"],
                "class_energy": energy["model_class"],
                "energy_alpha": energy["alpha"],
                "candidates": int(headline.loc["z", "candidates"]),
                "candidates_x": int(headline.loc["x", "candidates"]),
                "n_dims": headline.loc["z", "n_dims"],
                "surrogate_n_dims": int(headline.loc["x", "surrogate_n_dims"]),
                "surrogate_wide": headline.loc["z", "surrogate_wide"],
            }
        )
    return parquet.of_rows(MODELS, described)


def _deciding(tables: Mapping[str, pa.Table], model_class: str) -> str | None:
    """Name the sequences without which a model is of another class, and that class."""
    names = {row["sequence"]: named_sequence(row) for row in tables["sequences"].to_pylist()}
    others = [
        f"{names[row['sequence']]}: {row['model_class']}"
        for row in tables["cross_batch"].to_pylist()
        if row["basis"] == "z" and row["model_class"] not in (None, model_class)
    ]
    return "; ".join(others) or None


def _catalogue() -> pa.Table:
    rows = [{"metric": name, **vars(metric)} for name, metric in METRICS.items()]
    return parquet.of_rows(CATALOGUE, rows)
