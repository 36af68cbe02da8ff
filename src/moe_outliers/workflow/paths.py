"""Where everything of a sweep lies, as seen from its directory.

A rule spells the paths of what it makes, for that is what one reads a rule for; a test holds that
they are those given here. Everything else takes them from here.
"""

from pathlib import Path

RESULTS = Path("results")
DIGESTS = RESULTS / ".digests"
"""Recorded digests: one JSON file a product, at the product's own path below."""

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
"""Says which process builds results here, and is locked by it."""

DIGEST_CACHE = STATE / "hashes.json"
IDS_CACHE = STATE / "ids.json"
"""The digests of the token ids that the tokens files hold."""


def record_of(product: str | Path) -> Path:
    """Return the path of a product's recorded digest."""
    path = Path(product)
    return DIGESTS / f"{path.relative_to(RESULTS) if path.parts[0] == 'results' else path}.json"
