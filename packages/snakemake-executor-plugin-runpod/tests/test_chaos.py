"""Random layers over the named faults: kills at random moments, components that die by chance.

Sizes are for `make test-slow`; the variables CHAOS_KILLS, CHAOS_ROUNDS and CHAOS_P enlarge them for
`make soak`.
"""

import os
import random
import signal
import time

import pytest
from rig import Project

from snakemake_executor_plugin_runpod.ledger import Ledger

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("CHAOS_KILLS", "20"))
ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "1"))
P = float(os.environ.get("CHAOS_P", "0.1"))
TICK_S = 0.5
GAP_USD = 3 * 0.25 / 3600
"""What a pod is counted too long that ended just after its controller was killed: until the next
one looks, some seconds later, which is as long as pods live here. Few kills hit that moment."""
MOST_RUNS = 60
TEXTS = ["alpha", "beta", "gamma"]


def dice():
    """Chance, and the seed that repeats it: always the same one, but for `make soak`."""
    seed = random.randrange(10**6) if "CHAOS_ROUNDS" in os.environ else 0
    return random.Random(seed), seed


def kill(run):
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()


def finish(project, wanted, words, seed):
    """Run to the end without disturbance, and check everything that must hold."""
    said = project(*words, timeout=240)
    assert said.code == 0, (seed, said.text[-4000:])
    assert project.digests() == wanted, seed
    assert not project.leftovers(), seed
    assert not project.account.alive, (seed, said.text[-4000:])
    assert project.account.bill < 1, seed
    return Ledger(project.folder / ".snakemake/runpod").spent()


@pytest.mark.fault(48, 49, 50, 51, 52, 53, 54, 55, 56, 57)
def test_killed_at_random_moments_a_rerun_ends_alike(project, undisturbed):
    """The controller of one project dies again and again; each time the same command goes on."""
    (chance, seed), words = dice(), project.slow(0.2)
    for round_ in range(KILLS):
        run = project.start(*words)
        time.sleep(chance.uniform(0.3, 4.5))
        kill(run)
        pods = project.account.alive
        known = Ledger(project.folder / ".snakemake/runpod").leases
        assert {pod["name"] for pod in pods} <= known.keys(), (seed, round_, pods)  # all are named
        names = [pod["name"].rpartition("-")[0] for pod in pods]
        assert len(set(names)) == len(names), (seed, round_, pods)  # never two of one job
        if not (project.folder / "report.json").exists():
            continue
        for path in [project.folder / "report.json", *project.folder.glob("counts/*/*.json")]:
            path.unlink(missing_ok=True)
    spent = finish(project, undisturbed.digests(), words, seed)
    bill = project.account.bill
    assert spent > 0.95 * bill - 2e-4, seed
    assert spent < 1.05 * bill + 2e-4 + KILLS / 20 * GAP_USD, seed


@pytest.mark.parametrize("round_", range(ROUNDS))
def test_random_components_die_by_chance_and_the_end_is_the_same(
    project, round_, emulator, tmp_path
):
    """Every tick the controller is killed, a pod dies or the API fails, each by a chance of P."""
    (chance, seed), words = dice(), project.overlay(texts=TEXTS, count={"seconds": 0.3})
    words = (*words, "--runpod-restarts", "9")
    struck = 0
    calm = Project(tmp_path / "calm", emulator)
    assert calm(*calm.overlay(texts=TEXTS)).code == 0
    for _ in range(MOST_RUNS):
        run = project.start(*words)
        while run.poll() is None:
            time.sleep(TICK_S)
            if chance.random() < P:
                kill(run)
                struck += 1
                break
            if chance.random() < P and (alive := project.account.alive):
                project.account.change(terminate=[chance.choice(alive)["id"]])
                struck += 1
            if chance.random() < P:
                call = chance.choice(["create", "list", "get", "terminate"])
                kind = chance.choice(["lost", "html", "status", "slow"])
                fault = {"on": call, "kind": kind, "value": 0.5 if kind == "slow" else 503}
                project.account.change(faults=[fault])
        else:
            run.communicate()
            if run.returncode == 0:
                break
    struck += sum(fault["fired"] for fault in project.account.faults)
    assert struck, f"chance has struck nothing: seed {seed}"
    finish(project, calm.digests(), words, seed)
