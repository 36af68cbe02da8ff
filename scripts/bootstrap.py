"""Confidence intervals of one model's metrics."""

import logging
from typing import TYPE_CHECKING, Any

from moe_outliers.inference.bootstrap import bootstrap
from moe_outliers.metrics import model_statistics, values
from moe_outliers.metrics.criteria import Criteria
from moe_outliers.storage import parquet
from moe_outliers.workflow.script import run

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job: Any) -> None:
    """Read the values by sequence, write the intervals."""
    params = job.params
    intervals = bootstrap(
        parquet.read(job.input.values, values.SCHEMA),
        parquet.read(job.input.sequences, model_statistics.SEQUENCE_SCHEMA),
        Criteria(**params.criteria),
        resamples=params.resamples,
        confidence=params.confidence,
        seed=params.seed,
    )
    parquet.write(intervals, job.output.intervals)
    logging.info("%s: %d intervals", job.wildcards.model, intervals.num_rows)


if __name__ == "__main__":
    run(main, snakemake)
