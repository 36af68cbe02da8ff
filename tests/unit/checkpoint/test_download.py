import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from support.hub import COMMIT, Fault, Hub
from support.snake import ROOT

from moe_outliers.checkpoint import download, hub
from moe_outliers.checkpoint.download import Shards
from moe_outliers.checkpoint.http_ranges import Ranges
from moe_outliers.checkpoint.hub import File
from moe_outliers.checkpoint.shard_cache import ShardCache

NAMES = [f"model-{number}.safetensors" for number in range(5)]
SIZE = 100_000
ORDER = [[NAMES[0]], [NAMES[0], NAMES[1]], [NAMES[2]], [NAMES[3]], [NAMES[4]], [NAMES[0]]]


@pytest.fixture
def served(tmp_path):
    folder = tmp_path / "repo"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        (folder / name).write_bytes(random.Random(number).randbytes(SIZE))
    with Hub(models={"org/model": folder}) as server:
        yield server


def opened(server, store, lines=None, **options):
    folder = server.models["org/model"]
    files = {name: File(SIZE, sha256=hub._sha256((folder / name).read_bytes())) for name in NAMES}
    ranges = Ranges(server.url, "org/model", COMMIT, files, patience_s=1, pause_s=0.01)
    progress = [].append if lines is None else lines.append
    held = ShardCache(store, files, **{"budget": 10**9, "progress": progress} | options)
    return Shards(ranges, folder, NAMES, held, progress=progress, connections=2, chunk_bytes=7_000)


def sweep(source, server, order=ORDER):
    """Read every group in order, and let it go; make sure that every byte is right."""
    source.expect(order)
    for number, group in enumerate(order):
        for name in group:
            got = bytearray(SIZE)
            source.read_into(name, 0, memoryview(got))
            assert got == (server.models["org/model"] / name).read_bytes()
        source.passed(number)


def threads():
    """Name the threads that are not the loopback hub's."""
    return sorted(t.name for t in threading.enumerate() if "process_request" not in t.name)


def shards_in(store):
    return sorted(path.name for path in store.glob("*.safetensors"))


def test_shards_come_in_the_order_of_use_and_what_is_needed_last_goes_first(served, tmp_path):
    store, before = tmp_path / "store", threads()
    with closing(opened(served, store, budget=2 * SIZE)) as source:
        sweep(source, served)
    asked = [path for _, path in served.requests]
    firsts = [next(n for n in NAMES if n in path) for path in asked]
    assert list(dict.fromkeys(firsts)) == NAMES
    assert served.bytes_sent[NAMES[0]] == SIZE  # needed again at the end: it stayed
    assert all(served.bytes_sent[name] == SIZE for name in NAMES)
    assert len(shards_in(store)) == 2
    assert threads() == before


def test_a_shard_that_was_read_before_it_was_dropped_is_not_waited_for(served, tmp_path):
    order = [[NAMES[0]], [NAMES[1]], [NAMES[0]], [NAMES[2]]]
    with closing(opened(served, tmp_path / "store", budget=SIZE)) as source:
        source.expect(order)
        source.read_into(NAMES[0], 0, memoryview(bytearray(10)))  # for the third group, too
        source.passed(0)
        source.read_into(NAMES[1], 0, memoryview(bytearray(10)))
        time.sleep(0.1)  # the first shard is waiting for room
        source.passed(2)
        last = threading.Thread(
            target=source.read_into, args=(NAMES[2], 0, memoryview(bytearray(10))), daemon=True
        )
        last.start()
        last.join(20)
        assert not last.is_alive()


def test_progress_of_a_shard_is_told_while_it_comes(served, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "REPORT_S", 0.0)
    lines = []
    with closing(opened(served, tmp_path / "store", lines)) as source:
        sweep(source, served, [[NAMES[0]]])
    pattern = rf"{NAMES[0]}: (0\.0 of )?0\.0 GB, \d\.\d\d GB/s"
    assert all(re.fullmatch(pattern, line) for line in lines)
    assert [" of " in line for line in lines] == [True] * 14 + [False]


@pytest.mark.fault(76)
def test_too_small_a_disk_is_refused_with_the_figures_before_anything_comes(served, tmp_path):
    with (
        closing(opened(served, tmp_path / "store", budget=2 * SIZE - 1)) as source,
        pytest.raises(ValueError, match=r"0\.0 GB of disk may be used.*0\.0 GB.*disk_gb"),
    ):
        source.expect(ORDER)
    assert not served.requests


@pytest.mark.fault(71)
def test_a_damaged_shard_is_fetched_again_and_never_read(served, tmp_path):
    served.faults.append(Fault("flip", NAMES[1], times=30))
    lines = []
    with closing(opened(served, tmp_path / "store", lines)) as source:
        sweep(source, served)
    assert served.faults[0].fired == 30
    damaged = [line for line in lines if "came damaged: its sha256 is" in line]
    assert [NAMES[1] in line for line in damaged] == [True, True]


@pytest.mark.fault(71)
def test_a_shard_that_is_always_damaged_is_an_error_that_names_it(served, tmp_path):
    served.faults.append(Fault("flip", NAMES[1], times=10**6))
    before = threads()
    with (
        closing(opened(served, tmp_path / "store")) as source,
        pytest.raises(ValueError, match=rf"{NAMES[1]}.*came damaged.*hub lists.*3 attempts"),
    ):
        sweep(source, served)
    assert NAMES[1] not in shards_in(tmp_path / "store")
    assert threads() == before


def test_a_header_that_came_damaged_is_noticed_when_its_shard_is_verified(served, tmp_path):
    served.faults.append(Fault("flip", NAMES[2], times=1))
    with closing(opened(served, tmp_path / "store")) as source:
        source.read_into(NAMES[2], SIZE // 2 - 10, memoryview(bytearray(20)))
        with pytest.raises(ValueError, match="header came damaged"):
            sweep(source, served)
    assert served.faults[0].fired == 1


def test_a_file_that_changes_under_us_ends_the_sweep(served, tmp_path):
    served.faults.append(Fault("commit", NAMES[3], times=10**6))
    with (
        closing(opened(served, tmp_path / "store")) as source,
        pytest.raises(ValueError, match=f"{NAMES[3]}.*changed on the way: its commit"),
    ):
        sweep(source, served)


def test_what_was_verified_is_not_fetched_again_and_what_rotted_is(served, tmp_path):
    store = tmp_path / "store"
    with closing(opened(served, store)) as source:
        sweep(source, served)
    served.bytes_sent.clear()
    with closing(opened(served, store)) as source:
        sweep(source, served)
    assert not served.bytes_sent
    damaged = bytearray((store / NAMES[4]).read_bytes())
    damaged[50] ^= 1
    (store / NAMES[4]).write_bytes(damaged)
    with closing(opened(served, store)) as source:
        sweep(source, served)
    assert dict(served.bytes_sent) == {NAMES[4]: SIZE}


def test_a_good_copy_elsewhere_is_used_and_a_bad_one_is_not(served, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    for name in NAMES[:2]:
        (cache / name).write_bytes((served.models["org/model"] / name).read_bytes())
    (cache / NAMES[1]).write_bytes(b"x" * SIZE)

    def elsewhere(name):
        return cache / name if (cache / name).exists() else None

    with closing(opened(served, tmp_path / "store", elsewhere=elsewhere)) as source:
        sweep(source, served)
        source.finished()
    assert set(served.bytes_sent) == set(NAMES[1:])
    assert not shards_in(tmp_path / "store")
    assert sorted(path.name for path in cache.iterdir()) == NAMES[:2]


@pytest.mark.waits
@pytest.mark.fault(75)
@pytest.mark.parametrize("place", ["shard_grown:20", "shard_verified:2", "shard_grown:3"])
def test_an_interrupted_download_goes_on_with_what_it_had(place, served, tmp_path):
    store = tmp_path / "store"
    environment = os.environ | {"MOE_OUTLIERS_FAILPOINT": place}
    program = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent), str(ROOT / "tests")]!r}
import test_download, types
from pathlib import Path
models = {{"org/model": Path({str(served.models["org/model"])!r})}}
server = types.SimpleNamespace(url={served.url!r}, models=models)
test_download.sweep(test_download.opened(server, Path({str(store)!r})), server)
"""
    killed = subprocess.run([sys.executable, "-c", program], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    there = sum(path.stat().st_size for path in store.glob("*.safetensors"))
    part = sum(path.stat().st_size for path in store.glob(".*.part"))
    assert there == (SIZE if place != "shard_grown:3" else 0) * (1 + ("verified" in place))
    served.bytes_sent.clear()
    lines = []
    with closing(opened(served, store, lines)) as source:
        sweep(source, served)
    assert sum(served.bytes_sent.values()) == 5 * SIZE - there - part
    assert any("were there" in line for line in lines) == bool(part)


def test_a_second_process_waits_for_the_first(served, tmp_path):
    store, lines = tmp_path / "store", []
    first = opened(served, store)
    done = threading.Event()

    def second():
        with closing(opened(served, store, lines)):
            done.set()

    thread = threading.Thread(target=second)
    thread.start()
    while not lines:
        time.sleep(0.01)
    assert "another process fetches the same model here" in lines[0]
    assert not done.is_set()
    first.close()
    thread.join(5)
    assert done.is_set()


@pytest.mark.fault(76)
def test_a_disk_that_takes_no_more_is_an_error_that_names_the_shard(served, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with closing(opened(served, tmp_path / "store")) as source:
        resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, before[1]))
        try:
            with pytest.raises(ValueError, match=r"cannot write model-0\.safetensors: .*too large"):
                sweep(source, served)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
