"""Collect the figures in one folder."""

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_outliers.workflow.script import run

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job: Any) -> None:
    """Copy every figure into a new folder, and give it its name when it is whole."""
    folder = Path(job.output.folder)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for path in job.input.plots:
        shutil.copy(path, part)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    logging.info("%d files", len(job.input.plots))


if __name__ == "__main__":
    run(main, snakemake)
