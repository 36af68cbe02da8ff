"""Run one model over its sequences and keep the statistics of its activations."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_outliers.extract import Task, extract
from moe_outliers.run_model import Options
from moe_outliers.storage import files, receipts
from moe_outliers.workflow import resources
from moe_outliers.workflow.script import run

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job: Any) -> None:
    """Make every batch of the model valid."""
    params = job.params
    local = params.identity["revision"] == "local"
    expected = receipts.expectations(job.wildcards.model, params.identity)
    pairs = zip(
        map(Path, job.output.statistics), map(Path, job.output.receipts), expected, strict=True
    )
    options = Options(
        device="cpu" if job.resources.device == "cpu" else "cuda",
        dtype=params.dtype,
        micro_batch=params.micro_batch,
        alphas=params.alphas,
        engine=job.resources.engine,
        disk_bytes=(job.resources.disk_gb - resources.DISK_GB) * 10**9,
    )
    task = Task(
        folder=Path(job.input.config[0]).parent if local else None,
        tokens=Path(job.input.tokens),
        batches=[receipts.Pair(*pair) for pair in pairs],
        options=options,
    )
    extract(task, progress)


def progress(line: str) -> None:
    """Show a line in the log and on the terminal."""
    logging.info(line)
    print(files.printable(line), file=sys.stderr, flush=True)


if __name__ == "__main__":
    run(main, snakemake, record_digests=False)
