"""Choose the texts that every model reads."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_outliers import texts
from moe_outliers.storage import parquet
from moe_outliers.workflow.script import run

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(job: Any) -> None:
    """Read the source, choose a text for each sequence, write them."""
    params = job.params
    size = {"sequences": params.sequences, "tokens": params.tokens}
    if params.source == "huggingface":
        documents = texts.read_hub(params.path, params.subset, params.revision)
        table = texts.draw(documents, seed=params.seed, **size)
    elif params.source == "jsonl":
        table = texts.draw(texts.read_jsonl(Path(job.input.source[0])), seed=params.seed, **size)
    elif params.source == "text":
        table = texts.cut(
            Path(params.path).name, texts.read_text(Path(job.input.source[0])), **size
        )
    else:
        table = texts.cut(texts.BUNDLED, texts.read_bundled(), **size)
    parquet.write(table, job.output.texts)
    logging.info("%d texts from %s", len(table), params.source)


if __name__ == "__main__":
    run(main, snakemake)
