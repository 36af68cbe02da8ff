"""Turn the texts into one model's token ids."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_outliers import texts, tokenization
from moe_outliers.checkpoint import hub
from moe_outliers.storage import parquet
from moe_outliers.workflow.script import run

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job: Any) -> None:
    """Read the texts and the tokenizer, write the ids."""
    params = job.params
    if params.revision == "local":
        path = Path(job.input.tokenizer[0])
    else:
        path = hub.tokenizer(params.repo, params.revision)
    table = parquet.read(job.input.texts, texts.SCHEMA)
    windows = tokenization.windows(
        table, tokenization.load(path), tokens=params.tokens, bos=params.bos
    )
    parquet.write(windows, job.output.tokens)
    logging.info("%s: %d sequences of %d tokens", job.wildcards.model, len(windows), params.tokens)


if __name__ == "__main__":
    run(main, snakemake)
