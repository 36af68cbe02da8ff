"""What the analysis costs: from the statistics files of seven models to the tables of the sweep.

Draws statistics files at the true widths, depths, experts and 2,048 positions of the models of
config/models.tsv, 16 sequences each, with planted outliers, as if they had just been verified. Then
runs the real workflow on them on two cores: six models to tables first, then all seven, so that the
second run shows what one further model costs; then all figures; and at last tables and figures of
all seven from nothing. Memory is that of all processes together.

    python benchmarks/analysis.py [scratch folder]
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.synthetic import Plant, Shape, of_shape  # noqa: E402

from moe_outliers import versions  # noqa: E402
from moe_outliers.storage import files, parquet, receipts, statistics_file  # noqa: E402
from moe_outliers.workflow import script, sweep  # noqa: E402

PLANTS = [
    *(Plant(feature, size=25) for feature in range(4)),
    *(Plant(100 + i, "band", 0.4, size=15) for i in range(20)),
    *(Plant(300 + i, "random", 0.35, size=9, coverage=0.2) for i in range(200)),
]
TABLES, FIGURES = "results/tables/summary.json", "results/figures"
ANALYSES = ("metrics", "bootstrap", "comparison", "validate", "tables", "plots", "figures")


def fabricate(found: sweep.Sweep, model: str) -> int:
    """Write one model's tokens, pairs and verdict; return the bytes of its statistics."""
    row = found.models[model]
    shape = Shape(
        sequences=16,
        blocks=row["layers"],
        width=row["width"],
        positions=2048,
        experts=row["experts"],
        picks=row["top_k"],
        dense=int(model.startswith("glm")),
        linear=model.startswith("qwen3-next"),
    )
    datasets, tokens = of_shape(shape, PLANTS, gain=1.3, seed=int(row["number"]))
    _product(f"results/tokens/{model}.parquet", lambda path: parquet.write(tokens, path))
    ids = tokens["ids_sha256"].to_pylist()
    size = 0
    for pair, dataset in zip(found.pairs(model), datasets, strict=True):
        statistics_file.write(dataset, pair.statistics)
        size += pair.statistics.stat().st_size
        expected = vars(pair.expected)
        receipts.write(
            pair.receipt,
            **{k: expected[k] for k in ("model", "repo", "revision", "batch", "sequences")},
            format=1,
            file=pair.statistics.name,
            size=pair.statistics.stat().st_size,
            sha256=files.sha256(pair.statistics),
            checkpoint=None,
            ids_sha256=[ids[sequence] for sequence in pair.expected.sequences],
            settings=pair.expected.settings,
            engine=versions.EXTRACT,
            versions={"torch": "none", "transformers": "none", "cuda": "none"},
            device="none",
            dtype="float32",
            attempt="benchmark",
            plan=[],
            pod=None,
        )
    verdict = {"model": model, "valid": True, "checks": [], "notes": []}
    _product(f"results/verify/{model}.json", lambda path: files.write_json(path, verdict))
    return size


def _product(name: str, write) -> None:
    write(Path(name))
    script.record(name)


def run(folder: Path, models: list[str], target: str = TABLES) -> str:
    """Run the workflow to a target; say how long it took, of wall and of CPU, and its memory."""
    command = [sys.executable, "-m", "snakemake", "--quiet", "all", "--cores", "2"]
    command += ["--directory", str(folder), "--config", f"models={','.join(models)}", "--", target]
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    peak, over = [0.0], threading.Event()
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        watch = threading.Thread(target=_watch, args=(process.pid, peak, over))
        watch.start()
        said = process.communicate()[0]
        over.set()
        watch.join()
    if process.returncode:
        raise RuntimeError(said[-3000:])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    wall = time.perf_counter() - start
    return f"{wall:.1f} s, {cpu:.1f} s of CPU, {peak[0]:.2f} GB at most"


def _watch(pid: int, peak: list[float], over: threading.Event) -> None:
    root = psutil.Process(pid)
    while not over.wait(0.1):
        used = 0
        try:
            for process in [root, *root.children(recursive=True)]:
                used += process.memory_info().rss
        except psutil.Error:
            continue
        peak[0] = max(peak[0], used / 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--folder", type=Path, help="where the files are drawn; by default temporary"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        found = sweep.load(folder, [], ROOT)
        os.chdir(folder)
        _product("results/texts.parquet", lambda path: files.write_bytes(path, b"texts"))
        sizes = {}
        for model in found.models:
            start = time.perf_counter()
            sizes[model] = fabricate(found, model)
            took = time.perf_counter() - start
            print(f"drawn: {model}, {sizes[model] / 1e6:.0f} MB, {took:.0f} s", flush=True)
        *six, last = sizes
        first, again = run(folder, six), run(folder, [*six, last])
        figures = run(folder, list(sizes), FIGURES)
        for made in ANALYSES:
            shutil.rmtree(folder / "results" / made, ignore_errors=True)
        whole = run(folder, list(sizes), FIGURES)
        jobs = {}
        for model in sizes:
            told = (folder / f"logs/metrics/{model}.benchmark.tsv").read_text().split("\n")
            jobs[model] = dict(zip(told[0].split("\t"), told[1].split("\t"), strict=True))
        print("| model | statistics, MB | metrics, s | memory, MB |\n| --- | --- | --- | --- |")
        for model, told in jobs.items():
            print(f"| {model} | {sizes[model] / 1e6:.0f} | {told['s']} | {told['max_rss']} |")
        print(f"six models to tables: {first}")
        print(f"one further model ({last}): {again}")
        print(f"figures of all seven: {figures}")
        print(f"all seven, tables and figures from nothing: {whole}")


if __name__ == "__main__":
    main()
