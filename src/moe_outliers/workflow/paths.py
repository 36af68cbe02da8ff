"""The paths of all results of a sweep, relative to its directory.

Rules spell the paths of their inputs and outputs, since these are what one reads a rule for; a test
compares them with those here. All other code takes the paths from here.
"""

import os
from pathlib import Path

RESULTS = Path("results")
DIGESTS = RESULTS / ".digests"
"""The recorded digest of each product: a JSON file at the product's path below this folder."""

TEXTS = "results/texts.parquet"
TOKENS = "results/tokens/{model}.parquet"
STATISTICS = "results/extract/{model}/{batch}.nc"
RECEIPT = "results/extract/{model}/{batch}.json"
VERDICT = "results/verify/{model}.json"
VALUES = "results/metrics/{model}.parquet"
INTERVALS = "results/bootstrap/{model}.parquet"
TABLE = "results/tables/{table}.parquet"
SUMMARY = "results/tables/summary.json"
DESCRIPTION = "results/plots/{figure}.txt"
"""What a figure shows, in words."""

FIGURES = "results/figures"
REPORT = "results/report.html"

STEPS = {"tokens": TOKENS, "verify": VERDICT, "metrics": VALUES, "bootstrap": INTERVALS}
"""The product of each step of one model, in order."""

SHARED = {"texts": TEXTS, "tables": SUMMARY, "figures": FIGURES, "report": REPORT}
"""The products of all models together."""

EXTRACT_LOG = "logs/extract/{model}.log"
LEDGER = ".snakemake/runpod/ledger.jsonl"

STATE = Path(".snakemake/moe-outliers")
OWNER = STATE / "owner"
"""The lock file: it names the process that builds results here."""

DIGEST_CACHE = STATE / "hashes.json"
IDS_CACHE = STATE / "ids.json"
"""The digests of the token ids that the tokens files hold."""


FACTS = STATE / "facts.json"
"""What checkpoints were found to be, by commit."""


def record_of(product: str | Path) -> Path:
    """Return the path of a product's recorded digest."""
    path = Path(product)
    return DIGESTS / f"{path.relative_to(RESULTS) if path.parts[0] == 'results' else path}.json"


def seen_from_here(folder: str | Path, path: str) -> str:
    """Return a path that is relative to a folder as one relative to the working directory.

    Absolute paths stay as they are.
    """
    return path if Path(path).is_absolute() else os.path.relpath(Path(folder, path))
