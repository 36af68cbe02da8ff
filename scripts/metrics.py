"""Compute every metric of one model."""

import logging
from typing import TYPE_CHECKING, Any

from moe_outliers import tokenization, verify
from moe_outliers.metrics.criteria import Criteria
from moe_outliers.metrics.measure import VARIABLES, measure
from moe_outliers.stats import draws
from moe_outliers.storage import files, parquet, statistics_file
from moe_outliers.workflow.script import run

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job: Any) -> None:
    """Read the statistics of a valid model, write its tables."""
    model, params = job.wildcards.model, job.params
    verify.refuse_invalid(files.read_json(job.input.verdict))
    tokens = parquet.read(job.input.tokens, tokenization.SCHEMA)
    tokens = tokens.take(draws.order(tokens["ids_sha256"].to_pylist()))
    order = tokens["sequence"].to_pylist()
    data = statistics_file.read_all(job.input.statistics, VARIABLES, order)
    criteria = Criteria(**params.criteria)
    tables = measure(model, data, tokens, criteria, params.seed)
    for name, table in tables.items():
        parquet.write(table, job.output[name])
    logging.info("%s: %d sequences, %d values", model, len(order), tables["values"].num_rows)


if __name__ == "__main__":
    run(main, snakemake)
