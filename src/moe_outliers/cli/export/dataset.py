"""Exports a finished sweep as a data set of the Hugging Face hub: tables, and a card.

Only tables of this program are exported. It refuses a folder with any other file, so that nothing
is published by accident.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from moe_outliers.report import sentences
from moe_outliers.report.tables import TABLES
from moe_outliers.report.words import Summary
from moe_outliers.storage import files
from moe_outliers.versions import __version__
from moe_outliers.workflow import damage, paths
from moe_outliers.workflow.sweep import Sweep

ALLOWED = {f"{name}.{kind}" for name in TABLES for kind in ("parquet", "csv")}
ALLOWED |= {"summary.json", "answer.rst"}
"""Files that results/tables may hold; parquet files and summary.json are exported."""


def write(sweep: Sweep, folder: Path) -> int:
    """Write data/*.parquet, summary.json and README.md, the card.

    Args:
        sweep: a sweep with its tables.
        folder: where the data set goes; must not exist yet.

    Returns:
        How many files it holds.

    Raises:
        ValueError: if the folder exists, a table is missing or damaged, or there is an unknown
            file.
    """
    files.must_be_new(folder)
    tables = (sweep.directory / paths.SUMMARY).parent
    there = {path.name for path in tables.glob("*") if not path.name.startswith(".")}
    if strange := sorted(there - ALLOWED):
        raise ValueError(
            f"{tables / strange[0]} is no table of this program, and would be published: move it"
        )
    published = [*(paths.TABLE.format(table=name) for name in TABLES), paths.SUMMARY]
    damage.refuse_damaged(sweep.directory, published)
    summary = files.read_json(tables / "summary.json")
    card = "\n".join(_card(summary, tables))
    with files.whole_folder(folder) as part:
        (part / "data").mkdir(parents=True)
        for name in TABLES:
            shutil.copyfile(tables / f"{name}.parquet", part / f"data/{name}.parquet")
        shutil.copyfile(tables / "summary.json", part / "summary.json")
        files.write_bytes(part / "README.md", card.encode())
    return len(TABLES) + 2


def _card(summary: Summary, tables: Path) -> Iterator[str]:
    configs = [
        {"config_name": name, "data_files": f"data/{name}.parquet"}
        | ({"default": True} if name == "intervals" else {})
        for name in TABLES
    ]
    front = {
        "license": "mit",
        "pretty_name": "Outlier features of Mixture-of-Experts language models",
        "tags": ["interpretability", "mixture-of-experts", "outlier-features", "quantization"],
        "configs": configs,
    }
    yield "---\n" + yaml.safe_dump(front, sort_keys=False).strip() + "\n---\n"
    yield "# Outlier features of Mixture-of-Experts language models\n"
    yield from (f"- {line}" for line in sentences.answer(summary))
    yield "\n## Tables\n\n| config | rows | columns |\n| --- | --- | --- |"
    for name in TABLES:
        metadata = pq.read_metadata(tables / f"{name}.parquet")
        yield f"| `{name}` | {metadata.num_rows} | {metadata.num_columns} |"
    yield (
        "\nThe config `dictionary` explains every column, `metrics` every metric; `provenance` "
        "says on what each model was computed. `summary.json` holds the same in short. Made by "
        f"moe-outliers {__version__}.\n"
    )
    yield '```python\nfrom datasets import load_dataset\n\nload_dataset("PATH", "intervals")\n```\n'
