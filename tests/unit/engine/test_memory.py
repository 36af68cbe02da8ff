import dataclasses
from contextlib import closing

import pytest
import torch
from support.running import ALPHAS, DELIMITER, IDS

from moe_outliers.checkpoint import headers
from moe_outliers.checkpoint.source import Folder
from moe_outliers.engine import host_memory, memory, streamed
from moe_outliers.recording.recorder import Recorder

CPU = torch.device("cpu")
NEEDED = memory.Needs(
    slot=10_000_000_000, work=1_000_000_000, states=500_000_000, forward=2_000_000_000
)


@pytest.mark.parametrize(
    ("there_gb", "asked", "depth"),
    [(100, None, 1), (100, 0, 0), (100, 4, 4), (50, 4, 3), (24.1, None, 1), (23.9, None, 0)],
)
def test_as_many_groups_are_read_ahead_as_fit(there_gb, asked, depth, monkeypatch):
    monkeypatch.setattr(host_memory, "free_bytes", lambda: int(there_gb * 1e9))
    chosen = memory.choose(NEEDED, CPU, asked, pinned=256_000_000)
    assert chosen.depth == depth
    assert chosen.scarce == (depth != (memory.DEPTH if asked is None else asked))
    assert chosen.line.startswith(f"prefetch depth {depth}: {NEEDED.device(depth) / 1e9:.1f} GB")


@pytest.mark.parametrize(
    ("there_gb", "depth", "graphs"), [(26.1, 1, True), (25.9, 1, False), (23.9, 0, False)]
)
def test_graphs_are_given_up_before_reading_ahead(there_gb, depth, graphs, monkeypatch):
    monkeypatch.setattr(host_memory, "free_bytes", lambda: int(there_gb * 1e9))
    needed = dataclasses.replace(NEEDED, graph=2_000_000_000)
    chosen = memory.choose(needed, CPU, None, pinned=0)
    assert (chosen.depth, chosen.graphs) == (depth, graphs)
    assert ("no graphs" in chosen.line) == chosen.scarce == (not graphs)


def test_a_device_that_is_too_small_is_refused_with_figures(monkeypatch):
    monkeypatch.setattr(host_memory, "free_bytes", lambda: 13_900_000_000)
    with pytest.raises(ValueError, match=r"14\.0 GB .*13\.9 GB of memory are free.*at least 14 GB"):
        memory.choose(NEEDED, CPU, None, pinned=0)


def test_a_host_that_is_too_small_is_refused_with_figures(monkeypatch):
    monkeypatch.setattr(host_memory, "free_bytes", lambda: 2_200_000_000)
    with pytest.raises(ValueError, match=r"2\.3 GB of host memory are needed, 2\.2 GB are free"):
        memory.choose(NEEDED, CPU, None, pinned=256_000_000)


def test_where_free_memory_is_unknown_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(host_memory, "free_bytes", lambda: None)
    assert memory.choose(NEEDED, CPU, None, pinned=0).depth == memory.DEPTH


def test_this_machine_has_some_memory():
    assert 100_000_000 < host_memory.free_bytes() < 10**14


@pytest.mark.parametrize(
    ("groups", "place"),
    [
        ("0::/\n", "sys/fs/cgroup"),
        ("0::/slurm/job_7/step_0\n", "sys/fs/cgroup/slurm/job_7"),
        ("3:cpu,cpuacct:/x\n4:memory:/docker/ab\n0::/\n", "sys/fs/cgroup/memory"),
        ("4:memory:/slurm/job_7\n", "sys/fs/cgroup/memory/slurm/job_7"),
    ],
)
def test_the_limit_of_a_group_counts_and_its_cached_files_do_not(
    groups, place, tmp_path, monkeypatch
):
    monkeypatch.setattr(host_memory, "ROOT", tmp_path)
    assert host_memory.free_bytes() is None
    old = "/memory" in place
    for path, text in {
        "proc/meminfo": "MemTotal: 99000000 kB\nMemAvailable:   64000000 kB\n",
        "proc/self/cgroup": groups,
        "sys/fs/cgroup/memory.max": "max\n",
        f"{place}/{'memory.limit_in_bytes' if old else 'memory.max'}": "32000000000\n",
        f"{place}/{'memory.usage_in_bytes' if old else 'memory.current'}": "31900000000\n",
        f"{place}/memory.stat": "active_file 7000\ninactive_file 30000000000\n"
        + "total_active_file 7000\ntotal_inactive_file 30000000000\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert host_memory.free_bytes() == 30_100_007_000


def test_needs_follow_from_the_model_and_grow_with_what_is_asked(tiny_checkpoint):
    folder = tiny_checkpoint("gpt_oss-mxfp4")
    with closing(Folder(folder, headers.shards(folder))) as source:
        engine = streamed.Streamed(source, device="cpu", dtype="auto")
    how = {"sequences": 4, "tokens": 64, "micro_batch": 1, "alphas": 9}
    base = memory.needs(engine.model, engine.anatomy, engine.layouts, **how)
    experts = 8 * (64 * 128 + 64 * 64) * 2  # bytes of a block's two expert weights in bfloat16
    assert base.work == experts
    assert experts / 4 < base.slot < experts
    for key, field in [("sequences", "states"), ("tokens", "forward"), ("micro_batch", "forward")]:
        more = memory.needs(
            engine.model, engine.anatomy, engine.layouts, **how | {key: how[key] * 4}
        )
        assert getattr(more, field) > 2 * getattr(base, field), key
        assert dataclasses.replace(more, states=0, forward=0) == dataclasses.replace(
            base, states=0, forward=0
        )


def test_what_was_chosen_for_lack_of_memory_is_in_the_plan(tiny_checkpoint, monkeypatch):
    folder = tiny_checkpoint("mixtral")
    with closing(Folder(folder, headers.shards(folder))) as source:
        engine = streamed.Streamed(source, device="cpu", dtype="auto")
        tight = memory.needs(
            engine.model,
            engine.anatomy,
            engine.layouts,
            sequences=5,
            tokens=64,
            micro_batch=1,
            alphas=5,
        ).device(0)
        monkeypatch.setattr(host_memory, "free_bytes", lambda: max(tight, 0) + 10_000)
        monkeypatch.setattr(memory, "HOST_BYTES", 0)
        options = dataclasses.replace(engine.options, readers=1, chunk_bytes=1 << 10)
        engine.options = options
        recorder = Recorder(engine.model, IDS, DELIMITER, ALPHAS)
        assert list(engine.run(recorder, [0], micro_batch=1, progress=len)) == [0]
        assert [line.split(":")[0] for line in engine.plan] == ["prefetch depth 0"]
