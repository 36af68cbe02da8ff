"""The sweep on emulated pods: the literal commands of a user, in a clone of this project."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from emulator.client import Emulator
from support.hub import COMMIT, Fault, Hub
from support.slice import ROOT, Slice

BIN = Path(sys.executable).parent


@pytest.fixture(scope="session")
def clone(tmp_path_factory) -> Path:
    """This project's files in a git repository of their own."""
    folder = tmp_path_factory.mktemp("clone") / "moe-outliers"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists() or (ROOT / name).is_symlink():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    for words in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)
    return folder


def run(clone, *words, **environment):
    """Run a command in the clone as a user would, without any key."""
    names = ("PATH", "HOME", "LANG", "TMPDIR")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    done = subprocess.run(
        words,
        cwd=clone,
        env=kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=580,
        check=False,
    )
    return done.returncode, done.stdout


def test_a_dry_run_needs_no_key_and_says_what_the_sweep_would_cost(clone):
    code, text = run(clone, BIN / "snakemake", "--profile", "runpod", "-n", "--quiet", "all")
    assert code == 0, text
    table = text.partition("What the 7 remote jobs would cost")[2]
    assert "by the price list of " in table
    rows = re.findall(
        r"^  extract (\S+) .* (\d+\.\d\d)  +(\d+)  +(\d+)((?: +\d+\.\d\d){3})$", table, re.M
    )
    assert [row[0] for row in rows][:2] == ["glm-4.5-air", "gpt-oss-120b"]
    for _, rate, disk, minutes, dollars in rows:
        low, expected, high = map(float, dollars.split())
        assert low < expected < high
        assert expected == pytest.approx(float(rate) * int(minutes) / 60, abs=0.006)
        assert int(disk) <= 60
    total = [sum(float(row[4].split()[i]) for row in rows) for i in range(3)]
    said = re.search(r"^  total((?: +\d+\.\d\d){3})$", table, re.M)[1].split()
    assert [float(x) for x in said] == pytest.approx(total, abs=0.03)
    assert "The budget of a run is $10.00" in table
    assert not list(clone.glob("results/*/*"))


def test_a_dry_run_says_that_the_budget_is_too_small_and_an_option_wrong(clone):
    dry = [BIN / "snakemake", "--profile", "runpod", "-n", "--quiet", "all"]
    assert (
        "Even the low estimate is over the budget" in run(clone, *dry, "--runpod-budget", "0.1")[1]
    )
    assert "--runpod-cloud: 'moon' is neither" in run(clone, *dry, "--runpod-cloud", "moon")[1]
    assert "costs at least" in run(clone, *dry, "--runpod-max-price", "0.01")[1]
    local = run(clone, BIN / "snakemake", "-n", "--quiet", "all")
    assert local[0] == 0
    assert "would cost" not in local[1]


@pytest.mark.slow
@pytest.mark.fault(68, 69)
def test_a_pod_fetches_its_model_from_the_hub_itself(clone, demo, tmp_path):
    """By the address that HF_ENDPOINT names, at the pinned commit, over a line that fails."""
    source = demo.folder.parent / "models/mini-olmoe"
    table = (ROOT / "config/demo.tsv").read_text().splitlines()
    row = table[1].replace("demo/models/mini-olmoe\tlocal", f"org/mini-olmoe\t{COMMIT}")
    (clone / "hub.tsv").write_text(f"{table[0]}\n{row}\n")
    settings = yaml.safe_load((ROOT / "config/demo.yaml").read_text())
    settings |= {"table": "hub.tsv", "data": settings["data"] | {"sequences": 2}}
    (clone / "hub.yaml").write_text(yaml.safe_dump(settings))
    subprocess.run(["git", "add", "hub.tsv"], cwd=clone, check=True)
    words = ["--profile", "runpod", "--directory", "hub-run", "--configfile", "hub.yaml"]
    words += ["--runpod-min-download", "0", "--", "results/verify/mini-olmoe.json"]
    with Hub(models={"org/mini-olmoe": source}) as hub:
        hub.faults += [Fault("503", ".safetensors", times=1), Fault("429", "config.json", times=1)]
        code, text = run(
            clone,
            *[sys.executable, "-m", "emulator", "--", BIN / "snakemake", *words],
            PYTHONPATH=str(ROOT / "packages/snakemake-executor-plugin-runpod/tests"),
            HF_ENDPOINT=hub.url,
            HF_HUB_OFFLINE="0",
        )
    assert code == 0, text[-6000:]
    assert "emulated RunPod: 1 pods, 0 alive" in text
    assert all(fault.fired for fault in hub.faults)
    verdict = json.loads((clone / "hub-run/results/verify/mini-olmoe.json").read_text())
    assert verdict["valid"]


@pytest.mark.slow
def test_the_demo_on_pods_ends_in_the_figures_of_the_demo(clone, demo):
    ready = clone / "ready"
    ready.touch()
    code, text = run(clone, "make", "demo-runpod", f"BIN={BIN}", f"INSTALLED={ready}")
    assert code == 0, text[-6000:]
    pods, alive, bill = re.search(
        r"^emulated RunPod: (\d+) pods, (\d+) alive, bill \$(.*)$", text, re.M
    ).groups()
    assert (pods, alive) == ("7", "0")
    spent = re.search(r"^  total \$(.*)$", text, re.M)[1]
    assert float(spent) == pytest.approx(float(bill), rel=0.05)
    wanted = {name: d for name, d in demo.digests().items() if name.startswith("results/figures/")}
    assert len(wanted) > 20
    found = Slice(clone / "demo-runpod", demo.overlay).digests()
    assert {name: found.get(name) for name in wanted} == wanted


@pytest.mark.slow
@pytest.mark.skipif("CHAOS_DEMO" not in os.environ, reason="a quarter of an hour: make soak")
def test_the_demo_on_pods_survives_kills_by_chance(clone, demo, tmp_path):
    """The controller is killed, and pods die, until a run happens to come to its end."""
    shutil.copytree(demo.folder.parent / "models", clone / "demo/models", dirs_exist_ok=True)
    emulator = Emulator(tmp_path / "pods")
    account = emulator.account("soak")
    words = [BIN / "snakemake", "--profile", "runpod", "--directory", "chaos-run"]
    words += ["--configfile", "config/demo.yaml"]
    names = os.environ | account.environment() | {"OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for _ in range(8):
        process = subprocess.Popen(words, cwd=clone, env=names, start_new_session=True, **quiet)
        try:
            process.wait(timeout=random.uniform(5, 90))
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if alive := account.alive:
            account.change(terminate=[random.choice(alive)["id"]])
    code, text = run(clone, *words, **account.environment())
    assert code == 0, text[-6000:]
    assert not account.alive
    emulator.close()
    wanted = {name: d for name, d in demo.digests().items() if name.startswith("results/figures/")}
    found = Slice(clone / "chaos-run", demo.overlay).digests()
    assert {name: found.get(name) for name in wanted} == wanted
