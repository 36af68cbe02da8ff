"""Check one model's statistics files and write the verdict."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_outliers import tokenization
from moe_outliers.storage import files, parquet, receipts
from moe_outliers.verify import Expectation, verdict
from moe_outliers.workflow.script import run

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job: Any) -> None:
    """Check every pair, write the verdict, valid or not."""
    params, model = job.params, job.wildcards.model
    expected = receipts.expectations(model, params.identity)
    pairs = zip(
        map(Path, job.input.statistics), map(Path, job.input.receipts), expected, strict=True
    )
    found = verdict(
        model,
        [receipts.Pair(*pair) for pair in pairs],
        parquet.read(job.input.tokens, tokenization.SCHEMA),
        Expectation(params.row, params.alphas, params.tokens, params.identity["sequences"]),
    )
    files.write_json(job.output.verdict, found)
    for check in found["checks"]:
        result = "passed" if check["passed"] else f"FAILED: {check['message']}"
        logging.info("%s: %s: %s", model, check["name"], result)


if __name__ == "__main__":
    run(main, snakemake)
