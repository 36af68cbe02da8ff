"""What the streamed extraction costs, beside its floors and beside other ways, in one run.

    python benchmarks/engine.py --models olmoe-1b-7b --out olmoe.json

writes a random checkpoint at true shape to memory disk, runs each part, prints one table and writes
JSON. `--device cpu --miniature` does the same in small. Parts:

    streamed   the engine, twice in a process, and once without statistics; peak memory; bytes of
               activations, of statistics, and of the files that are written
    small      the engine within 24 GB of device memory
    floors     bandwidth of the source, of the copy to the device, rate of matrix products
    resident   from_pretrained, the forward pass alone, with the statistics by kernels and in torch,
               and whether the streamed statistics are equal bit for bit
    old        capture and analysis as before, at the hit rate of the checkpoint and without hits
    attention  GPT-OSS's attention on the flash kernel against float32
    kernels    the reduction's kernels against plain torch, at this model's shape
"""

import argparse
import gc
import json
import os
import platform
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "src")]

import attention as sinks  # noqa: E402
import numpy as np  # noqa: E402
import old_way  # noqa: E402
import shapes  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from moe_outliers.checkpoint import headers  # noqa: E402
from moe_outliers.checkpoint.source import Folder  # noqa: E402
from moe_outliers.engine import resident, streamed  # noqa: E402
from moe_outliers.recording import choose  # noqa: E402
from moe_outliers.recording.recorder import Recorder  # noqa: E402
from moe_outliers.storage import statistics_file  # noqa: E402

PARTS = ("streamed", "small", "floors", "resident", "old", "attention", "kernels")
WHOLE = ("olmoe-1b-7b", "gpt-oss-20b", "qwen3-30b-a3b", "gpt-oss-120b")
ALPHAS = [3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0]
SMALL_BYTES = 24_000_000_000
OLD_SEQUENCES = 2
GB = 1e9


class Bench:
    """One model on one machine: its checkpoint, its texts, and what was measured."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name, self.options, self.found = name, options, {"model": name}
        self.cuda = options.device == "cuda"
        layers = None if options.miniature or name in WHOLE or options.whole else options.layers
        self.config = shapes.shape(name, miniature=options.miniature, layers=layers)
        self.folder = Path(options.folder) / f"moe-outliers-{name}"
        random = np.random.default_rng(0)
        shape = (options.sequences, options.tokens)
        self.ids = random.integers(0, self.config["vocab_size"], shape).astype("int32")
        self.delimiter = random.random(shape) < 0.08
        self.delimiter[:, 0] = False
        self.note("layers", self.config["num_hidden_layers"])
        self.note("micro_batch", options.micro_batch)

    def note(self, key: str, value: Any) -> None:
        self.found[key] = value
        print(f"{self.name}: {key} = {show(value)}", flush=True)

    def make(self) -> None:
        """Write the checkpoint, unless it is there."""
        started = time.perf_counter()
        if not (self.folder / "config.json").is_file():
            shapes.write(self.folder, self.config)
        files = self.folder.glob("*.safetensors")
        self.note("checkpoint_gb", sum(path.stat().st_size for path in files) / GB)
        self.note("written_s", time.perf_counter() - started)

    def source(self) -> Folder:
        return Folder(self.folder, headers.shards(self.folder))

    def timed(self, run: Callable[[], Any]) -> tuple[float, Any]:
        """Run; return seconds until the device is done, and the result."""
        self.sync()
        started = time.perf_counter()
        result = run()
        self.sync()
        return time.perf_counter() - started, result

    def sync(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def clean(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self, prefix: str) -> None:
        if self.cuda:
            self.note(f"{prefix}_allocated_gb", torch.cuda.max_memory_allocated() / GB)
            self.note(f"{prefix}_reserved_gb", torch.cuda.max_memory_reserved() / GB)

    # -- parts ---------------------------------------------------------------------------------

    def floors(self) -> None:
        """Measure the source with the same threads and reads, the copy, and matrix products."""
        options = streamed.Options()
        size = options.chunk_bytes
        with closing(self.source()) as source:
            jobs = [
                (name, at, min(size, source.size(name) - at))
                for name in source.names
                for at in range(0, source.size(name), size)
            ]
            pinned = [torch.empty(size, dtype=torch.uint8, pin_memory=self.cuda)]
            pinned += [torch.empty_like(pinned[0]) for _ in range(options.readers - 1)]
            best = min(self.read(source, jobs, pinned) for _ in range(2))
        total = sum(length for _, _, length in jobs)
        self.note("source_s", best)
        self.note("source_gb_s", total / best / GB)
        work = shapes.flops(self.config, *self.ids.shape)
        self.note("pflop", work / 1e15)
        if self.cuda:
            device = torch.empty(size, dtype=torch.uint8, device="cuda")
            host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
            copy = self.rate(lambda: device.copy_(host, non_blocking=True), size)
            self.note("h2d_gb_s", copy / GB)
            a = torch.randn((8192, 8192), device="cuda", dtype=torch.bfloat16)
            rate = self.rate(lambda: a @ a, 2 * 8192**3)
            self.note("matrix_tflop_s", rate / 1e12)
            self.note("flop_s", work / rate)

    def cool(self) -> None:
        """Drop the page cache, if asked to: only root may."""
        if self.options.cold:
            os.sync()
            Path("/proc/sys/vm/drop_caches").write_text("3")

    def read(self, source: Folder, jobs: list[Any], buffers: list[torch.Tensor]) -> float:
        """Read all bytes with as many threads as buffers; return the seconds."""
        lock, left = threading.Lock(), iter(jobs)

        def reader(view: memoryview) -> None:
            while True:
                with lock:
                    job = next(left, None)
                if job is None:
                    return
                source.read_into(job[0], job[1], view[: job[2]])

        threads = [
            threading.Thread(target=reader, args=(memoryview(buffer.numpy()),))
            for buffer in buffers
        ]
        self.cool()
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - started

    def rate(self, run: Callable[[], Any], amount: float, times: int = 20) -> float:
        for _ in range(3):
            run()
        seconds, _ = self.timed(lambda: [run() for _ in range(times)])
        return amount * times / seconds

    def streamed(self) -> None:
        """Run the engine twice; compare its statistics with those of the resident model."""
        self.clean()
        self.cool()
        first, statistics = self.timed(self.stream)
        one = fingerprint(statistics)
        self.note("streamed_first_s", first)
        self.clean()
        self.cool()
        seconds, statistics = self.timed(self.stream)
        two = fingerprint(statistics)
        self.note("streamed_s", seconds)
        self.note("startup_s", first - seconds)
        self.peak("streamed")
        self.note("streamed_repeats", one == two)
        self.streamed_statistics = two
        self.clean()
        self.cool()
        bare, _ = self.timed(partial(self.stream, bare=True))
        self.note("streamed_bare_s", bare)
        self.note("sequence_s", seconds / len(self.ids))
        sites = 2 * self.config["num_hidden_layers"]
        wide = "float32" in (self.options.dtype, self.config.get("dtype"))
        bytes_each = 4 if wide and self.options.dtype != "bfloat16" else 2
        activations = self.ids.size * sites * self.config["hidden_size"] * bytes_each
        self.note("activations_mb", activations / 1e6)
        self.note("statistics_mb", sum(map(len, two.values())) / 1e6)  # before compression
        self.stream(then=self.write)

    def stream(self, bare: bool = False, then: Callable[[Recorder], None] | None = None) -> Any:
        """Run the engine and return its statistics.

        Args:
            bare: without any statistics but the loss.
            then: takes the recorder at the end.
        """
        with closing(self.source()) as source:
            started = time.perf_counter()
            engine = streamed.Streamed(source, device=self.options.device, dtype=self.options.dtype)
            self.found["index_s"] = time.perf_counter() - started
            recorder = Recorder(engine.model, self.ids, self.delimiter, ALPHAS)
            if bare:
                recorder.close()
            rows = list(range(len(self.ids)))
            run = engine.run(
                recorder,
                rows,
                micro_batch=self.options.micro_batch,
                progress=lambda line: print(f"  {line}", flush=True),
            )
            statistics = {row: {} if bare else recorder.result(row) for row in run}
            if then:
                then(recorder)
            self.found |= {"waited_s": engine.waited_s, "plan": engine.plan}
            recorder.close()
            return statistics

    def write(self, recorder: Recorder) -> None:
        """Write the statistics as the workflow does, one file a sequence; count their bytes."""
        sites = [(site.block, site.kind, site.feeds) for site in recorder.sites]
        common = {"alphas": ALPHAS, "sites": sites, "moe_blocks": recorder.moe_blocks}
        attributes = dict.fromkeys(statistics_file.ATTRIBUTES, "benchmark")
        written = 0
        with tempfile.TemporaryDirectory(dir=self.options.folder) as folder:
            for row in range(len(self.ids)):
                variables = {name: value[None] for name, value in recorder.result(row).items()}
                coordinates = statistics_file.coordinates(sequences=[row], **common)
                path = Path(folder, f"{row}.nc")
                data = statistics_file.assemble(
                    variables | recorder.norms(), coordinates, attributes
                )
                statistics_file.write(data, path)
                written += path.stat().st_size
        self.note("files_mb", written / 1e6)

    def small(self) -> None:
        """Run the engine within the memory of a small card."""
        if not self.cuda:
            return
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(SMALL_BYTES / total)
        try:
            self.clean()
            seconds, statistics = self.timed(self.stream)
            self.note("small_s", seconds)
            self.peak("small")
            if "streamed_statistics" in self.__dict__:
                same = fingerprint(statistics) == self.streamed_statistics
                self.note("small_equal", same)
        except (ValueError, torch.OutOfMemoryError) as error:
            self.note("small_failed", str(error)[:300])
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)

    def resident(self) -> None:
        """Load with transformers, and run with and without statistics."""
        self.clean()
        whole = sum(p.numel() * p.element_size() for p in shapes.skeleton(self.config).parameters())
        if self.cuda and whole > 0.9 * torch.cuda.get_device_properties(0).total_memory:
            self.note("resident", f"does not fit: {whole / GB:.0f} GB")
            return
        seconds, model = self.timed(
            lambda: resident.load(self.folder, device=self.options.device, dtype=self.options.dtype)
        )
        self.note("from_pretrained_s", seconds)
        self.measure(model)
        if "streamed_statistics" in self.__dict__:
            statistics = self.recorded(model, range(len(self.ids)), None)
            self.note("equals_resident", fingerprint(statistics) == self.streamed_statistics)
        if "old" in self.options.parts:
            self.old(model)

    def measure(self, model: Any) -> None:
        """Time the forward pass without statistics, and with them."""
        self.forward(model, 2 * self.options.micro_batch)  # warms up
        self.note("forward_s", self.forward(model, len(self.ids)))
        self.peak("resident")
        for key, kernels in (("kernels", True), ("torch", False)):
            if kernels and not self.cuda:
                continue
            some = range(min(self.options.overhead, len(self.ids)))
            self.recorded(model, some[:1], kernels)  # compiles
            alone = self.forward(model, len(some))
            run = partial(self.recorded, model, some, kernels)
            with_statistics, _ = self.timed(run)
            self.note(f"statistics_{key}_share", with_statistics / alone - 1)
            seconds = (with_statistics - alone) / len(some) * len(self.ids)
            self.note(f"statistics_{key}_s", seconds)

    def forward(self, model: Any, count: int) -> float:
        """Run the layers and the head without statistics; return the seconds."""
        ids = torch.from_numpy(self.ids[:count].astype("int64")).to(model.device)

        def run() -> None:
            with torch.inference_mode():
                for part in ids.split(self.options.micro_batch):
                    hidden = model.model(input_ids=part, use_cache=False).last_hidden_state
                    for row in hidden:
                        for piece in row.split(256):
                            model.lm_head(piece)

        return self.timed(run)[0]

    def recorded(self, model: Any, rows: Any, kernels: bool | None) -> Any:
        recorder = Recorder(model, self.ids, self.delimiter, ALPHAS, kernels)
        run = resident.run(
            model, recorder, list(rows), micro_batch=self.options.micro_batch, progress=len
        )
        done = list(run)
        self.sync()
        statistics = {row: recorder.result(row) for row in done}
        recorder.close()
        return statistics

    def old(self, model: Any) -> None:
        """Capture and analyse as before, for some sequences; scale to all."""
        count = min(OLD_SEQUENCES, len(self.ids))
        ids = torch.from_numpy(self.ids[:count].astype("int64")).to(model.device)
        scale = len(self.ids) / count
        folder = self.folder.with_name(self.folder.name + "-activations")
        folder.mkdir(exist_ok=True)
        traces = {"hooks": old_way.by_hooks}
        try:
            import nnsight  # noqa: F401

            traces["nnsight"] = old_way.by_nnsight
        except ImportError:
            self.note("nnsight", "not installed: captured by hooks")
        for name, trace in traces.items():
            for hits, magnitude in (("hits", 6.0), ("no_hits", float("inf"))):
                chunk = old_way.CHUNKS.get(self.name, 8)
                how = {"chunk": chunk, "magnitude": magnitude, "trace": trace}
                found = old_way.run(model, ids, folder, **how)
                values = 2 * self.config["num_hidden_layers"] * ids.numel()
                rate = found["outliers"] / values / self.config["hidden_size"]
                self.note(f"old_{name}_{hits}_rate", rate)
                self.note(f"old_{name}_{hits}_capture_s", found["capture_s"] * scale)
                self.note(f"old_{name}_{hits}_analysis_s", found["analysis_s"] * scale)
                seconds = (found["capture_s"] + found["analysis_s"]) * scale
                total = self.found["from_pretrained_s"] + seconds
                self.note(f"old_{name}_{hits}_s", total)
        for path in folder.glob("*"):
            path.unlink()
        folder.rmdir()

    def attention(self) -> None:
        if self.config["model_type"] == "gpt_oss":
            for scale in (1.0, 4.0):
                for row in sinks.compare(self.options.device, self.options.tokens, 128, scale):
                    for key, value in row.items():
                        self.note(f"attention_{row['layer']}_{scale:g}_{key}", value)

    def kernels(self) -> None:
        """Time the reduction of one site and one block, for one sequence and for all."""
        if not self.cuda:
            return
        from moe_outliers.recording import reduction
        from moe_outliers.recording.gpu import launch

        shape = (self.options.tokens, self.config["hidden_size"])
        hs = [torch.randn(shape, device="cuda").bfloat16() * 3 for _ in range(len(self.ids))]
        mask = torch.from_numpy(self.delimiter).cuda()
        kinds, alphas = launch.kinds(mask), torch.tensor(ALPHAS, device="cuda")
        hits = [torch.zeros(shape, dtype=torch.bool, device="cuda") for _ in hs]
        how = {"alphas": alphas, "eps": 1e-6, "layer_norm": False}

        def sites(count: int) -> Any:
            return launch.sites(hs[:count], hs[:count], kinds[:count], hits[:count], **how)

        z = reduction.normalised(hs[0], eps=1e-6, layer_norm=False)
        wanted = reduction.site(hs[0], z, mask[0], ALPHAS) | reduction.residual(hs[0])
        got = sites(1) | launch.residuals(hs[:1])
        errors = {
            name: ((got[name][0].double() - value.double()).abs().max().item())
            for name, value in wanted.items()
        }
        self.note("kernels_differ", {name: e for name, e in errors.items() if e})
        runs = {
            "site_torch": lambda: reduction.site(hs[0], z, mask[0], ALPHAS),
            "site_one": lambda: sites(1),
            "site_all": lambda: sites(len(hs)),
            "block_torch": lambda: reduction.residual(hs[0]),
            "block_one": lambda: launch.residuals(hs[:1]),
            "block_all": lambda: launch.residuals(hs),
        }
        for name, run in runs.items():
            each = len(hs) if name.endswith("_all") else 1
            self.note(f"{name}_us", 1e6 / self.rate(run, each))


def fingerprint(statistics: dict[int, dict[str, Any]]) -> dict[Any, bytes]:
    """Return all statistics as bytes."""
    return {
        (row, name): np.asarray(value).tobytes()
        for row, values in statistics.items()
        for name, value in values.items()
    }


def show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def derived(found: dict[str, Any]) -> dict[str, Any]:
    """Compute the ratios that the aims are about."""
    ratios: dict[str, Any] = {}
    floors = [found[key] for key in ("source_s", "forward_s") if key in found]
    if "streamed_s" in found and floors:
        ratios["over_floor"] = found["streamed_s"] / max(floors)
    if "streamed_s" in found:
        for key in [key for key in found if key.startswith("old_") and key.endswith("hits_s")]:
            ratios[f"{key.removesuffix('_s')}_over_streamed"] = found[key] / found["streamed_s"]
    if "streamed_bare_s" in found:
        statistics_s = found["streamed_s"] - found["streamed_bare_s"]
        ratios["statistics_share_of_forward"] = statistics_s / found.get("forward_s", float("nan"))
        ratios["statistics_share_of_download"] = statistics_s / found["checkpoint_gb"]  # at 1 GB/s
    if "files_mb" in found:
        ratios["files_share_of_activations"] = found["files_mb"] / found["activations_mb"]
    return ratios


def table(results: list[dict[str, Any]]) -> str:
    """Lay the results out as a Markdown table, a column a model."""
    keys = list(dict.fromkeys(key for found in results for key in found if key != "model"))
    lines = ["| | " + " | ".join(found["model"] for found in results) + " |"]
    lines.append("|---" * (len(results) + 1) + "|")
    for key in keys:
        cells = (show(found.get(key, "")) for found in results)
        lines.append(f"| {key} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machine(options: argparse.Namespace) -> dict[str, Any]:
    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor()
    return {
        "device": device,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "kernels": choose.KERNELS,
        "sequences": options.sequences,
        "tokens": options.tokens,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["olmoe-1b-7b"], choices=list(shapes.FULL))
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--folder", default="/dev/shm", help="where the checkpoint is written")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoint there")
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "bfloat16", "float32"], help="to compute with"
    )
    parser.add_argument(
        "--miniature", action="store_true", help="miniatures instead of true shapes"
    )
    parser.add_argument("--cold", action="store_true", help="drop the page cache before reading")
    parser.add_argument("--layers", type=int, default=4, help="of a model that is not run whole")
    parser.add_argument("--whole", action="store_true", help="run every model whole")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--micro-batch", type=int, default=1)
    parser.add_argument("--overhead", type=int, default=4, help="sequences for the overhead")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    results = []
    print(machine(options), flush=True)
    for name in options.models:
        bench = Bench(name, options)
        results.append(bench.found)
        try:
            bench.make()
            for part in PARTS:  # `old` needs the resident model: it runs with that
                if part in options.parts and part != "old":
                    getattr(bench, part)()
            bench.found |= derived(bench.found)
        finally:
            if not options.keep:
                shapes.remove(bench.folder)
        if options.out:
            options.out.write_text(
                json.dumps({"machine": machine(options), "results": results}, indent=1)
            )
    print(table(results))


if __name__ == "__main__":
    main()
