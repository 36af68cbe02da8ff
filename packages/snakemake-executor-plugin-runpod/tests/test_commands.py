"""The command `python -m snakemake_executor_plugin_runpod`, beside runs and after them."""

import json
import os
import shlex
import shutil
import signal
import subprocess

import pytest
from rig import PYTHON, Said, wait_until

KEYLESS = {"RUNPOD_API_KEY": "", "HOME": "/nonexistent"}


def command(project, *words, **environment):
    done = subprocess.run(
        [str(PYTHON), "-m", "snakemake_executor_plugin_runpod", *words],
        cwd=project.folder,
        env=project.environment() | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Said(done.returncode, done.stdout + done.stderr)


def ask(project, *words, **environment):
    said = command(project, *words, "--json", **environment)
    assert said.code == 0, said.text
    return json.loads(said.text)


def test_after_a_run_it_says_what_was_done_and_that_no_pod_is_alive(undisturbed):
    (job,) = ask(undisturbed, "status")
    assert (job["job"], job["phase"], job["done"], job["files"]) == ("count alpha", "fetched", 3, 3)
    assert not job["alive"]
    assert job["dollars"] == pytest.approx(undisturbed.account.bill, rel=0.05, abs=2e-4)
    assert "no pod is alive" in command(undisturbed, "list").text
    assert "no pod is alive" in command(undisturbed, "reap").text
    assert "3 of 3 parts" in command(undisturbed, "logs", "alpha").text
    assert command(undisturbed, "doctor").code == 0


def test_without_a_key_it_says_how_to_get_one_and_shows_the_price_list(undisturbed):
    listed = command(undisturbed, "offers", **KEYLESS)
    assert listed.code == 0
    assert "NVIDIA L4" in listed.text
    assert "these are the prices of 20" in listed.text
    for words in (["doctor"], ["reap"], ["ssh", "alpha"]):
        said = command(undisturbed, *words, **KEYLESS)
        assert said.code == 1
        assert "console.runpod.io/user/settings" in said.text
    wrong = command(undisturbed, "logs", "omega")
    assert wrong.code == 1
    assert "no job or pod of this folder is 'omega'; there are: count alpha" in wrong.text


@pytest.mark.slow
def test_beside_a_run_and_after_its_controller_was_killed(project):
    run = project.start(*project.slow(20))
    try:
        wait_until(lambda: "Building DAG" in command(project, "logs", "alpha").text, 60)
        (pod,) = ask(project, "list")
        assert pod["state"] == "alive"
        assert pod["pod"] == project.account.alive[0]["id"]
        (job,) = ask(project, "status")
        assert job["alive"]
        assert (job["done"], job["pod"]) == (0, pod["pod"])
        printed = command(project, "logs", "alpha").text
        assert job["said"]
        assert job["said"] in printed
        assert "in use by process" in command(project, "reap", "--yes").text
        shown = shlex.split(command(project, "ssh", "alpha", "--print").text)
        if shutil.which("ssh"):
            inside = [*shown, "echo", "inside", "$RUNPOD_POD_ID"]
            done = subprocess.run(inside, capture_output=True, text=True, timeout=30, check=False)
            assert "inside" in done.stdout, done.stderr
        other = ask(project, "list", "--directory", ".git")
        assert [pod["state"] for pod in other] == ["of another folder"]
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    assert project.account.alive
    asked = command(project, "reap")
    assert asked.code == 1
    assert "End 1 pods?" in asked.text
    said = command(project, "reap", "--yes")
    assert "no pod is alive any more" in said.text, said.text
    assert not project.account.alive
    assert command(project, "doctor").code == 0
