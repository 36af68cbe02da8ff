"""Write the report and its opening."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_outliers.report import page
from moe_outliers.storage import files, receipts
from moe_outliers.workflow.script import run

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job: Any) -> None:
    """Read the summary, the figures and the receipts; write the page."""
    summary = files.read_json(job.input.summary)
    costs = page.costs([receipts.read(path) for path in job.input.receipts])
    html = page.render(summary, Path(job.input.plots[0]).parent, costs)
    files.write_bytes(job.output.page, html.encode())
    files.write_bytes(job.output.answer, page.opening(summary).encode())
    logging.info("%d models, %d characters", len(summary["models"]), len(html))


if __name__ == "__main__":
    run(main, snakemake)
