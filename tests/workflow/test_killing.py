"""A run that is killed at any moment: the same command then ends as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import time
from contextlib import suppress

import psutil
import pytest
from safetensors.torch import load_file, save_file
from support.slice import MODELS, VERDICTS, Slice
from support.snake import ROOT, command

from moe_outliers.failpoints import VARIABLE, Failpoint
from moe_outliers.storage import parquet
from moe_outliers.tokenization import SCHEMA

OLMOE, MIXTRAL = MODELS


@pytest.fixture
def fresh(undisturbed, tmp_path) -> Slice:
    """The slice before anything has run."""
    (tmp_path / "run").mkdir()
    return Slice(tmp_path / "run", undisturbed.overlay)


def _start(run: Slice, **environment: str) -> subprocess.Popen:
    words = command(*VERDICTS, directory=run.folder, overlay=run.overlay)
    return subprocess.Popen(
        words,
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _ends_like(run: Slice, undisturbed: Slice) -> None:
    """Run again, and compare everything with the undisturbed run."""
    kept = run.contents()
    said = run(*VERDICTS)
    assert said.code == 0, said.text
    assert run.digests() == undisturbed.digests()
    left = [p for p in run.folder.rglob("*") if p.name.endswith(".part")]
    assert not left
    backups = run.folder / ".snakemake/backups"
    assert not [p for p in backups.rglob("*") if p.is_file()]
    assert run("-n", *VERDICTS).nothing_to_do
    after = run.contents()
    pairs = {name.rpartition(".")[0] for name in kept}
    for pair in pairs:  # a finished pair is never made again
        receipt = kept.get(f"{pair}.json")
        if receipt and f"{pair}.nc" in kept:
            assert after[f"{pair}.json"] == receipt


IN_CONTROLLER = {Failpoint.HEALED, Failpoint.OWNED}
WITH_A_HUB = {Failpoint.SHARD_GROWN, Failpoint.SHARD_VERIFIED}


def test_every_failpoint_has_a_test():
    """Those of a download are reached where there is a hub."""
    shards = (ROOT / "tests/unit/checkpoint/test_download.py").read_text()
    assert all(f'"{point}:' in shards for point in WITH_A_HUB)


@pytest.mark.slow
@pytest.mark.fault(48, 49, 50, 51, 52, 53, 54, 55, 56, 57)
@pytest.mark.parametrize("point", [point for point in Failpoint if point not in WITH_A_HUB])
def test_killed_at_a_failpoint(undisturbed, fresh, point):
    said = fresh(*VERDICTS, **{VARIABLE: str(point)})
    by_itself = said.code == -signal.SIGKILL
    script = "died with <Signals.SIGKILL" in said.text
    assert by_itself or (script and point not in IN_CONTROLLER), f"not reached: {said.text}"
    _ends_like(fresh, undisturbed)


MANY = [pytest.mark.slow, pytest.mark.xdist_group("killing")]  # a process of their own
KILLS = range(5, int(os.environ.get("CHAOS_KILLS", "15")))  # `make soak` has more


@pytest.mark.parametrize("seed", [*range(5), *(pytest.param(s, marks=MANY) for s in KILLS)])
def test_killed_at_a_random_moment(undisturbed, fresh, seed):
    """Kill the controller, or a worker, or both; the worker of a dead controller ends by itself."""
    draw = random.Random(seed)
    run = _start(fresh)
    try:
        time.sleep(draw.uniform(1.0, 14.0))
        controller = psutil.Process(run.pid)
        victims = [controller]
        with suppress(psutil.Error):
            workers = [p for p in controller.children(recursive=True) if "python" in p.name()]
            victims = draw.choice([victims, workers or victims, [*workers, controller]])
        for victim in victims:
            with suppress(psutil.Error):
                victim.kill()
        run.wait(timeout=60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL) if draw.random() < 0.2 else None
    _ends_like(fresh, undisturbed)


@pytest.mark.slow
def test_the_worker_of_a_killed_controller_ends_by_itself(fresh):
    run = _start(fresh)
    workers = []
    for _ in range(200):
        with suppress(psutil.Error):
            children = psutil.Process(run.pid).children(recursive=True)
            workers = [p for p in children if any("extract.py" in word for word in p.cmdline())]
        if workers:
            break
        time.sleep(0.1)
    assert workers
    time.sleep(1)
    run.kill()
    run.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive


@pytest.mark.slow
@pytest.mark.fault(59)
def test_a_second_controller_stops_and_names_the_first(undisturbed, fresh):
    run = _start(fresh)
    owner = fresh.folder / ".snakemake/moe-outliers/owner"
    try:
        for _ in range(200):
            if owner.is_file() and owner.read_text():
                break
            time.sleep(0.05)
        second = fresh(*VERDICTS)
        assert second.code == 1
        assert f"process {run.pid} on " in second.text
        beside = fresh("-n", *VERDICTS)
        assert beside.code == 0
        assert f"another run is under way here: process {run.pid}" in beside.text
        assert fresh("--lint").code == 0
        assert fresh("--summary").code == 0
        assert run.wait(timeout=120) == 0
    finally:
        run.kill()
    assert fresh.digests() == undisturbed.digests()


@pytest.mark.slow
def test_what_a_failed_job_has_finished_with_new_settings_is_not_taken_back(undisturbed, tmp_path):
    run = undisturbed.copy(tmp_path / "run")
    overlay = json.loads(run.overlay.read_text())
    overlay["data"]["tokens"] = 80
    run.overlay = tmp_path / "overlay.yaml"
    run.overlay.write_text(json.dumps(overlay))
    assert run(VERDICTS[0], **{VARIABLE: f"{Failpoint.BEFORE_RECEIPT}:3!"}).code == 1
    finished = [path for batch in range(2) for path in run.pair(OLMOE, batch)]
    kept = [path.read_bytes() for path in finished]
    said = run(VERDICTS[0])
    assert said.jobs == {"extract": 1, "verify": 1}
    assert [path.read_bytes() for path in finished] == kept
    assert json.loads((run.folder / VERDICTS[0]).read_text())["valid"]
    assert run("-n", VERDICTS[0]).nothing_to_do


@pytest.mark.slow
@pytest.mark.fault(85)
def test_a_batch_that_fails_does_not_cost_its_siblings(undisturbed, tmp_path):
    """A token that only sequence 1 has gets a NaN for an embedding."""
    tokens = parquet.read(undisturbed.folder / f"results/tokens/{OLMOE}.parquet", SCHEMA)
    rows = [set(ids) for ids in tokens["ids"].to_pylist()]
    rare = min(rows[1] - rows[0] - rows[2])
    table = (undisturbed.overlay.parent / "models.tsv").read_text()
    source = undisturbed.overlay.parent / OLMOE
    broken = tmp_path / OLMOE
    broken.mkdir()
    for path in source.iterdir():
        if path.suffix == ".safetensors":
            weights = load_file(path)
            weights["model.embed_tokens.weight"][rare] = float("nan")
            save_file(weights, broken / path.name, metadata={"format": "pt"})
        else:
            (broken / path.name).write_bytes(path.read_bytes())
    (tmp_path / "models.tsv").write_text(table.replace(str(source), str(broken)))
    overlay = json.loads(undisturbed.overlay.read_text())
    overlay |= {"table": str(tmp_path / "models.tsv"), "models": OLMOE}
    (tmp_path / "overlay.yaml").write_text(json.dumps(overlay))
    (tmp_path / "run").mkdir()
    run = Slice(tmp_path / "run", tmp_path / "overlay.yaml")

    said = run(VERDICTS[0])
    assert said.code == 1
    message = "batch 01: sequence 1: NaN or infinite activations at block 0 attn_in"
    assert message in said.text
    kept = run.contents()
    assert {name.rpartition("/")[2] for name in kept} == {"00.nc", "00.json", "02.nc", "02.json"}

    said = run(VERDICTS[0])
    assert message in said.text
    assert run.contents() == kept
    log = (run.folder / f"logs/extract/{OLMOE}.log").read_text()
    assert "forward passes: 1, each of 2 blocks" in log
