"""Reads and writes tables as parquet files with page checksums and checked schemas."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moe_outliers.storage import files


def schema(**columns: tuple[pa.DataType, str]) -> pa.Schema:
    """Define the columns of a table, each with its type and its meaning, which is stored with it.

    Args:
        columns: by name, in order.
    """
    return pa.schema(
        [pa.field(name, kind, metadata={"meaning": text}) for name, (kind, text) in columns.items()]
    )


def meanings(schema: pa.Schema) -> dict[str, str]:
    """Return what each column of a table means, by name."""
    return {field.name: (field.metadata or {}).get(b"meaning", b"").decode() for field in schema}


def table(schema: pa.Schema, columns: Mapping[str, Any]) -> pa.Table:
    """Make a table; NaN and None are missing values.

    Args:
        schema: its columns.
        columns: values by name, all of one length; a single value is repeated in every row.

    Raises:
        ValueError: if a column is missing or unknown, or the lengths differ.
    """
    if set(columns) != set(schema.names):
        wrong = sorted(set(columns) ^ set(schema.names))
        raise ValueError(f"table: missing or unknown columns: {', '.join(wrong)}")
    single = {name for name, values in columns.items() if values is None or np.ndim(values) == 0}
    lengths = {len(values) for name, values in columns.items() if name not in single} or {1}
    if len(lengths) > 1:
        raise ValueError(f"table: columns of {sorted(lengths)} rows")
    rows = lengths.pop()
    return pa.Table.from_arrays(
        [
            pa.array(
                [columns[field.name]] * rows if field.name in single else columns[field.name],
                field.type,
                from_pandas=True,
            )
            for field in schema
        ],
        schema=schema,
    )


def of_rows(schema: pa.Schema, rows: Sequence[Mapping[str, Any]], **same: Any) -> pa.Table:
    """Make a table of rows.

    Args:
        schema: its columns.
        rows: values by name, one mapping a row; unknown names are ignored.
        same: columns with the same value in all rows.
    """
    names = [name for name in schema.names if name not in same]
    columns = {name: [row[name] for row in rows] for name in names}
    return table(schema, columns | same) if rows else schema.empty_table()


def write(table: pa.Table, path: str | Path) -> None:
    """Write a table atomically; the same table gives the same bytes."""
    with files.replacing(path) as part:
        pq.write_table(table, part, compression="zstd", write_page_checksum=True)


def read(path: str | Path, schema: pa.Schema | None = None) -> pa.Table:
    """Read a table.

    Args:
        path: a parquet file.
        schema: what its columns must be; None for any.

    Raises:
        ValueError: if the file is damaged or has other columns; the message names it.
    """
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path}: no valid parquet file: {error}") from error
    if schema is not None and not table.schema.equals(schema):
        raise ValueError(
            f"{path}: columns are {table.schema.names}, expected {schema.names} with their types"
        )
    return table
