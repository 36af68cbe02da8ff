"""Measure the coverage of the intervals, and false discovery and power of the classes."""

import logging
from typing import TYPE_CHECKING, Any

from moe_outliers.inference import simulate_classes, simulate_intervals
from moe_outliers.metrics.criteria import Criteria
from moe_outliers.storage import parquet
from moe_outliers.workflow.script import run

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job: Any) -> None:
    """Simulate, write what was measured."""
    params = job.params
    sizes, level = list(params.sizes), {"confidence": params.confidence, "seed": params.seed}
    criteria = Criteria(**params.criteria)
    models = max(2, params.sets // 12)
    tables = {
        "coverage": simulate_intervals.coverage(sizes, sets=params.sets, **level),
        "selection": simulate_intervals.selection(
            sizes, criteria.layer_share, sets=max(2, params.sets // 10), **level
        ),
        **simulate_classes.simulate(sizes, criteria, models=models, **level),
    }
    for name, table in tables.items():
        parquet.write(table, job.output[name])
    logging.info("%d simulated sets a row, sequences: %s", params.sets, sizes)


if __name__ == "__main__":
    run(main, snakemake)
