"""Explains why a file is, or is not, going to be built again."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

from moe_outliers.storage import files, receipts
from moe_outliers.workflow import damage, paths
from moe_outliers.workflow.sweep import Sweep

Line = tuple[str, str]
"""What was examined, and the finding."""


def explain(sweep: Sweep, path: Path) -> Iterator[Line]:
    """Explain one file of the results.

    Args:
        sweep: the sweep that it belongs to.
        path: the file; relative to the sweep's directory, or to where one is.

    Yields:
        Findings; the last is what Snakemake would do.
    """
    directory = sweep.directory.absolute()
    if path.absolute().is_relative_to(directory):
        path = path.absolute().relative_to(directory)
    with chdir(directory):
        faults, pair = {}, None
        for model in sweep.models:
            pairs = sweep.pairs(model)
            if match := next((pair for pair in pairs if path in pair[:2]), None):
                pair = match
            if match or path == Path(paths.VERDICT.format(model=model)):
                faults = damage.model_faults(model, pairs, files.sha256, damage.token_ids)
        yield from _pair(pair, faults.get(pair.statistics)) if pair else _product(path, faults)
    yield "next run", decision(sweep, path)


def decision(sweep: Sweep, path: Path) -> str:
    """Ask Snakemake in a dry run whether it would build a file, and for which reason."""
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "-n",
        "--directory",
        str(sweep.directory.resolve()),
    ]
    for overlay in sweep.overlays:
        command += ["--configfile", str(overlay.resolve())]
    done = subprocess.run(
        [*command, "--", str(path)], cwd=sweep.workflow, capture_output=True, text=True, check=False
    )
    told = done.stdout + done.stderr
    if "Nothing to be done" in told:
        return "not built: nothing to be done"
    for block in told.split("\n[")[1:]:
        outputs = re.search(r"^    output: (.*)$", block, re.MULTILINE)
        reason = re.search(r"^    reason: (.*)$", block, re.MULTILINE)
        built = [re.sub(r" \(\w+\)$", "", o) for o in outputs[1].split(", ")] if outputs else []
        if str(path) in built:
            told_reason = (
                reason[1].replace("Forced execution", "marked as damaged") if reason else "?"
            )
            return f"built: {_shorten(told_reason)}"
    if done.returncode:
        error = re.search(r"^\w+(?:Error|Exception)\b[^\n]*:\n(.+)$", told, re.MULTILINE)
        return f"Snakemake stops: {error[1].strip() if error else told.strip()}"
    return "not built by itself, but something that it depends on is"


def _pair(pair: receipts.Pair, fault: str | None) -> Iterator[Line]:
    for file in pair[:2]:
        yield str(file), f"{file.stat().st_size} bytes" if file.is_file() else "missing"
    fault = fault or receipts.fault(*pair)
    yield "valid", f"no: {fault}" if fault else "yes: whole, of this model and these settings"
    try:
        receipt = receipts.read(pair.receipt)
    except (OSError, ValueError):
        return
    versions = ", ".join(f"{name} {version}" for name, version in receipt.versions.items())
    yield "made by", f"version {receipt.engine} of the extraction, {versions}"
    yield "made on", f"{receipt.device}, {receipt.dtype}, attempt {receipt.attempt}"
    same = receipt.settings == pair.expected.settings
    yield "settings", "the same as now" if same else "not those of now (repo, revision or extract)"


def _product(path: Path, faults: dict[Path, str]) -> Iterator[Line]:
    if not path.exists():
        yield str(path), "missing"
        return
    yield str(path), "a folder" if path.is_dir() else f"{path.stat().st_size} bytes"
    fault = damage.product_fault(path, files.sha256) or faults.get(path)
    yield "valid", f"no: {fault}" if fault else f"yes, by {paths.record_of(path)}"


def _shorten(reason: str, most: int = 300) -> str:
    return reason if len(reason) <= most else reason[: most - 1] + "…"
