"""Compare the models of a sweep."""

import logging
from typing import TYPE_CHECKING, Any

from moe_outliers.inference.comparison import Measured, compare
from moe_outliers.metrics.criteria import Criteria
from moe_outliers.metrics.measure import TABLES
from moe_outliers.storage import parquet
from moe_outliers.workflow.script import run

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job: Any) -> None:
    """Read three tables of each model, write what differs between models."""
    params, names = job.params, ("values", "sequences", "tokens")
    paths = zip(*(job.input[name] for name in names), strict=True)
    models = {
        row["model"]: Measured(
            *(parquet.read(path, TABLES[n]) for n, path in zip(names, three, strict=True)),
            row=row,
        )
        for row, three in zip(params.rows, paths, strict=True)
    }
    tables = compare(
        models,
        Criteria(**params.criteria),
        resamples=params.resamples,
        confidence=params.confidence,
        seed=params.seed,
    )
    for name, table in tables.items():
        parquet.write(table, job.output[name])
    logging.info("%d models, %d differences", len(models), tables["differences"].num_rows)


if __name__ == "__main__":
    run(main, snakemake)
