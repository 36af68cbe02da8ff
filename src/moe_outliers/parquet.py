"""Tables on disk: parquet with page checksums, written whole, read with its schema checked."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from moe_outliers import files


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
