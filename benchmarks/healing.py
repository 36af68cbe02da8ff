"""What checking every result costs at the start: a dry run with and without it.

Makes a folder in which the sweep of seven models and 16 batches is finished, with statistics files
of 6 MB, and times `snakemake -n` there, and with a copy of the workflow without rules/heal.smk.

    python benchmarks/healing.py
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from moe_outliers import versions
from moe_outliers.storage import files, receipts
from moe_outliers.workflow import script, sweep

ROOT = Path(__file__).parents[1]
SIZE = 6_000_000
REPEATS = 5


def fabricate(folder: Path) -> None:
    """Write a finished sweep: pairs with receipts, and texts, tokens and verdicts with digests."""
    found = sweep.load(folder, [], ROOT)
    os.chdir(folder)
    for product in [Path("results/texts.parquet")]:
        files.write_bytes(product, b"texts")
        script.record(product)
    for model in found.models:
        product = Path(f"results/tokens/{model}.parquet")
        files.write_bytes(product, b"tokens")
        script.record(product)
    for model in found.models:
        for pair in found.pairs(model):
            files.write_bytes(pair.statistics, os.urandom(SIZE))
            expected = vars(pair.expected)
            fields = {k: expected[k] for k in ("model", "repo", "revision", "batch", "sequences")}
            receipts.write(
                pair.receipt,
                **fields,
                format=1,
                file=pair.statistics.name,
                size=SIZE,
                sha256=files.sha256(pair.statistics),
                checkpoint=None,
                ids_sha256=["0" * 64] * len(pair.expected.sequences),
                settings=pair.expected.settings,
                engine=versions.EXTRACT,
                versions={"torch": "2.13.0", "transformers": "5.23.0", "cuda": "13.0"},
                device="NVIDIA RTX A5000",
                dtype="bfloat16",
                attempt="benchmark",
                plan=[],
                pod=None,
            )
        product = Path(f"results/verify/{model}.json")
        files.write_json(product, {"model": model, "valid": True})
        script.record(product)


def seconds(workflow: Path, folder: Path, *options: str) -> float:
    """Time one dry run."""
    targets = [str(p) for p in Path("results/verify").glob("*.json")]
    start = time.perf_counter()
    command = [sys.executable, "-m", "snakemake", "-n", "--quiet", *options]
    done = subprocess.run(
        [*command, "--directory", str(folder), *targets],
        cwd=workflow,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return time.perf_counter() - start


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, bare = Path(name, "sweep"), Path(name, "bare")
        folder.mkdir()
        fabricate(folder)
        kept = shutil.ignore_patterns(".*", "results", "demo", "tests", "src")
        shutil.copytree(ROOT, bare, ignore=kept, symlinks=True)
        snakefile = (bare / "Snakefile").read_text()
        (bare / "Snakefile").write_text(snakefile.replace('include: "rules/heal.smk"\n', ""))
        first = seconds(ROOT, folder)
        runs = {"healing": [], "none": [], "full": []}
        for _ in range(REPEATS):
            runs["healing"].append(seconds(ROOT, folder))
            runs["none"].append(seconds(bare, folder))
            runs["full"].append(seconds(ROOT, folder, "--config", "receipts=full"))
        best = {name: min(times) for name, times in runs.items()}
        print("dry run in a finished folder of 7 x 16 pairs of 6 MB, best of", REPEATS)
        print("| | seconds | ratio |\n| --- | --- | --- |")
        for label, value in [
            ("without healing", best["none"]),
            ("with healing", best["healing"]),
            ("first time (every file hashed)", first),
            ("receipts: full", best["full"]),
        ]:
            print(f"| {label} | {value:.2f} | {value / best['none']:.2f} |")


if __name__ == "__main__":
    main()
