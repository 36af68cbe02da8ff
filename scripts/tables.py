"""Put the tables of a sweep together."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.csv

from moe_outliers.report import earlier_work, summary, tables
from moe_outliers.storage import files, parquet
from moe_outliers.workflow import paths
from moe_outliers.workflow.script import run

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job: Any) -> None:
    """Read every table of every model, write them stacked, and the summary."""
    inputs = list(map(Path, [*job.input.metrics, *job.input.others]))
    rows = {row["model"]: row for row in job.params.rows}
    models = {}
    for model, intervals in zip(rows, job.input.intervals, strict=True):
        own = {p.name.removeprefix(f"{model}.").removesuffix(".parquet"): p for p in inputs}
        own |= {"values": Path(paths.VALUES.format(model=model)), "intervals": Path(intervals)}
        models[model] = {n: parquet.read(own[n]) for n in (*tables.OF_MODELS, "intervals")}
    found = tables.collect(
        models,
        rows,
        {Path(path).stem: parquet.read(path) for path in job.input.comparison},
        {Path(path).stem: parquet.read(path) for path in job.input.validation},
        earlier_work.read(Path(job.input.reference)),
    )
    for path in map(Path, job.output.parquet):
        parquet.write(found[path.stem], path)
    for path in map(Path, job.output.csv):
        with files.replacing(path) as part:
            pyarrow.csv.write_csv(found[path.stem], part)
    params = job.params
    measured = {"data": dict(params.data), "extract": dict(params.extract)}
    told = summary.summarise(found, dict(params.criteria), params.seed, measured)
    files.write_json(job.output.summary, told)
    logging.info("%d tables of %d models", len(found), len(models))


if __name__ == "__main__":
    run(main, snakemake)
