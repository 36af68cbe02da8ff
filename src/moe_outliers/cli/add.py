"""Adds a model to the table of models: its row is counted from the checkpoint, not typed."""

import csv
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from moe_outliers.storage import files
from moe_outliers.workflow import resources, settings

SCRATCH_BYTES = 1 << 40
"""Disk that shards may take: none is downloaded here."""


def add(
    workflow: Path, table: Path, repo: str, revision: str | None, name: str | None
) -> Iterator[str]:
    """Write the row of a model to the table, and say what it would cost.

    Args:
        workflow: the folder of the Snakefile.
        table: the table of models.
        repo: a folder that holds a checkpoint, or a repository of the hub.
        revision: a branch, tag or commit of the repository; None: its main branch as it is now.
        name: slug of the model; None: made of the repository's name.

    Yields:
        Lines for people: the row, how to run it, and its cost.

    Raises:
        ValueError: if the model is in the table, cannot be had, or cannot be measured.
    """
    rows = settings.read_table(table, workflow / "config/schemas")
    local = Path(repo).is_dir()
    if local and revision:
        raise ValueError(f"{repo} is a folder: --revision is for repositories of the hub")
    place = _relative(Path(repo), workflow) if local else repo
    commit = "local" if local else _commit(repo, revision or "main")
    for slug, row in rows.items():
        if (row["repo"], row["revision"]) == (place, commit):
            raise ValueError(f"{table} has it: row {slug} is {place} at {commit}")
    slug = name or re.sub(r"[^a-z0-9.-]+", "-", Path(repo).name.lower()).strip("-.")
    if slug in rows:
        raise ValueError(f"{table} has a row {slug}: choose another name with --name")
    number = next(
        (n for n in range(1, 100) if n not in {int(r["number"]) for r in rows.values()}), 0
    )
    if not number:
        raise ValueError(f"{table}: all numbers from 01 to 99 are taken: start another table")
    row = {"model": slug, "number": f"{number:02d}", "repo": place, "revision": commit}
    row |= _described(Path(repo) if local else None, repo, commit)
    yield from _write(table, row, workflow)
    yield f"run it with: snakemake --config models={slug}"
    yield from _cost(workflow, table, row)


def _relative(folder: Path, workflow: Path) -> str:
    """Name a folder as the table does: from the workflow's folder if it lies in that."""
    whole, above = folder.resolve(), workflow.resolve()
    return os.path.relpath(whole, above) if whole.is_relative_to(above) else str(whole)


def _commit(repo: str, revision: str) -> str:
    from moe_outliers.checkpoint import hub

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ValueError(f"{repo}: no such folder, and no name of a repository: OWNER/NAME")
    return hub.commit(repo, revision)


def _described(folder: Path | None, repo: str, commit: str) -> dict[str, Any]:
    """Count what the model is, without its weights."""
    try:
        from moe_outliers.cli.describe import describe
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error.name} is not installed: pip install -c envs/constraints.txt -e '.[extract]'"
        ) from None
    from moe_outliers.checkpoint import headers, hub
    from moe_outliers.checkpoint.hub_source import from_hub
    from moe_outliers.checkpoint.source import Folder, Source

    source: Source
    there = {p.name for p in folder.iterdir()} if folder else {*hub.listing(repo, commit)}
    if "tokenizer.json" not in there:
        raise ValueError(f"{repo} has no tokenizer.json: no token ids can be made for it")
    if folder:
        source = Folder(folder, headers.shards(folder))
    else:
        source = from_hub(repo, commit, disk_bytes=SCRATCH_BYTES, progress=lambda line: None)
    with closing(source):
        return describe(source)


def _write(table: Path, row: dict[str, Any], workflow: Path) -> Iterator[str]:
    """Append a row to the table; the other lines keep their bytes."""
    text = table.read_text(encoding="utf-8")
    head = next(line for line in text.splitlines() if line.strip() and not line.startswith("#"))
    columns = next(csv.reader([head], delimiter="\t"))
    cells = [
        f"{row[c]:g}" if isinstance(row.get(c), float) else str(row.get(c, "")) for c in columns
    ]
    line = "\t".join(cells)
    files.write_bytes(table, f"{text.rstrip()}\n{line}\n".encode())
    try:
        settings.read_table(table, workflow / "config/schemas")
    except ValueError:
        files.write_bytes(table, text.encode())
        raise
    yield f"{table}: one row more:"
    yield from (f"  {column:<13}{cell}" for column, cell in zip(columns, cells, strict=True))


def _cost(workflow: Path, table: Path, row: dict[str, Any]) -> Iterator[str]:
    """Say what a machine must have, and what the executor says of the price."""
    need = resources.needs(row)
    yield (
        f"it needs a GPU with {need['vram_gb']} GB, {need['disk_gb']} GB of disk, and downloads "
        f"{need['download_gb']} GB"
    )
    command = [sys.executable, "-m", "snakemake", "--profile", "runpod", "-n", "--quiet", "rules"]
    with TemporaryDirectory() as nowhere:
        command += ["--directory", nowhere, "--config", f"models={row['model']}"]
        command += [f"table={table.resolve()}"]
        done = subprocess.run(command, cwd=workflow, capture_output=True, text=True, check=False)
    _, found, told = done.stderr.partition("What the 1 remote jobs would cost")
    if found:
        yield f"What it would cost{told}".rstrip()
    else:
        yield "what it would cost is told by: snakemake --profile runpod -n --quiet rules"
