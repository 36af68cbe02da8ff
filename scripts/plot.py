"""Draw one figure, as SVG, PDF and PNG, and say what it shows in words."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_outliers.metrics.criteria import Criteria
from moe_outliers.report.figures.draw import draw
from moe_outliers.storage import files, parquet
from moe_outliers.workflow.script import run

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job: Any) -> None:
    """Read the tables, draw, write the figure and its words."""
    tables = {Path(path).stem: parquet.read(path).to_pandas() for path in job.input.tables}
    criteria = Criteria(**job.params.criteria)
    words = draw(job.wildcards.figure, tables, criteria, Path(job.output.svg).with_suffix(""))
    files.write_bytes(job.output.words, words.encode())
    logging.info("%s: %s", job.wildcards.figure, words)


if __name__ == "__main__":
    run(main, snakemake)
