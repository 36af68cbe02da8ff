"""The controller is killed at every point, or interrupted: a plain rerun ends as if nothing was."""

import os
import signal
import subprocess

import pytest
from rig import PYTHON, wait_until

from snakemake_executor_plugin_runpod.failpoints import VARIABLE, Failpoint
from snakemake_executor_plugin_runpod.ledger import Ledger

slow = pytest.mark.slow
FAST = {Failpoint.POLLING}


@pytest.mark.fault(48, 49, 50, 51, 52, 53, 54, 55, 56, 57)
@pytest.mark.parametrize(
    "point", [p if p in FAST else pytest.param(p, marks=slow) for p in Failpoint]
)
def test_48_to_57_the_controller_is_killed(project, undisturbed, point):
    said = project(**{VARIABLE: str(point)})
    assert said.code == -signal.SIGKILL, f"{point} was never reached: {said.text[-3000:]}"
    said = project()
    project.ends_like(undisturbed, said, pods=1)
    again = project("-n")
    assert "Nothing to be done" in again.text


@pytest.mark.fault(65)
@slow
@pytest.mark.parametrize("point", [Failpoint.AFTER_CREATE, Failpoint.AFTER_RENAME])
def test_65_an_error_in_the_plugin_leaves_no_pod(project, undisturbed, point):
    said = project(**{VARIABLE: f"{point}!"})
    assert said.code == 1
    assert f"failpoint {point}" in said.text
    assert not project.account.alive
    project.ends_like(undisturbed, project())


def _running(project, *more, **environment):
    run = project.start(*project.slow(1.5), *more, **environment)
    wait_until(lambda: '"phase": "running"' in _ledger(project))
    return run


def _ledger(project):
    path = project.folder / ".snakemake/runpod/ledger.jsonl"
    return path.read_text() if path.exists() else ""


@pytest.mark.fault(58)
@slow
@pytest.mark.parametrize("sign", ["SIGINT", "SIGHUP"])
def test_58_an_interrupt_ends_all_pods(project, undisturbed, sign):
    run = _running(project)
    os.kill(run.pid, getattr(signal, sign))
    said = project.finish(run)
    assert said.code == 1
    assert "interrupted: ending all pods" in said.text
    assert not project.account.alive
    project.ends_like(undisturbed, project())


@pytest.mark.fault(58)
@slow
def test_58_a_second_interrupt_ends_the_run_at_once(project, undisturbed):
    project.account.change(faults=[{"on": "terminate", "kind": "slow", "value": 20, "times": 1}])
    run = _running(project, "--runpod-grace", "0.2", SNAKEMAKE_RUNPOD_TIME_SCALE="1")
    os.kill(run.pid, signal.SIGINT)
    wait_until(lambda: project.account.calls.get("terminate"))
    os.kill(run.pid, signal.SIGINT)
    said = project.finish(run)
    (pod,) = project.account.pods
    assert f"pod {pod['id']} of count alpha may be alive" in said.text
    assert "reap" in said.text
    project.ends_like(undisturbed, project())


@pytest.mark.fault(58)
@slow
def test_58_sigterm_lets_running_jobs_end_and_starts_no_more(project):
    run = _running(project)
    os.kill(run.pid, signal.SIGTERM)
    said = project.finish(run)
    assert said.code == 1
    assert "Will exit after finishing currently running jobs" in said.text
    assert (project.folder / "counts/alpha/02.json").is_file()
    assert not (project.folder / "report.json").exists()
    assert not project.account.alive


@pytest.mark.fault(21, 51)
@slow
def test_51_what_a_dead_run_left_is_named_by_every_later_one(project, undisturbed):
    """Also by one that is refused, by a dry run, and if its entry in the ledger is damaged."""
    run = _running(project)
    run.kill()
    run.communicate()
    (pod,) = project.account.alive
    snakefile = project.folder / "Snakefile"
    offer = "from snakemake_executor_plugin_runpod import costs\n\ncosts.show(workflow)\n"
    snakefile.write_text(offer + snakefile.read_text())
    for words in (["--runpod-budget", "0.001"], ["-n"]):
        said = project(*words)
        assert f"pod {pod['id']} of count alpha may be alive at $0.25/h" in said.text
        assert f"reap --directory {project.folder}" in said.text
    path = project.folder / ".snakemake/runpod/ledger.jsonl"
    path.write_text(path.read_text().replace('"intent"', '"imtent"'))
    said = project()
    assert said.code == 0, said.text
    assert project.digests() == undisturbed.digests()
    assert f"POD {pod['id']} ({pod['name']}) IS OF THIS FOLDER" in said.text
    assert [left["id"] for left in project.account.alive] == [pod["id"]]
    words = said.text.partition("End it: python -m ")[2].splitlines()[0].split()
    done = subprocess.run(
        [PYTHON, "-m", *words, "--yes"], env=project.environment(), check=False, capture_output=True
    )
    assert b"not in the ledger" in done.stdout
    assert done.returncode == 0
    assert not project.account.alive


@slow
def test_a_pod_that_may_turn_up_is_not_called_gone(project):
    """Of a pod that was asked for a moment ago a listing proves nothing."""
    ledger = Ledger(project.folder / ".snakemake/runpod")
    facts = {"key": "k", "title": "count alpha", "fingerprint": "f", "gpu": "NVIDIA L4", "gpus": 1}
    name = f"{ledger.prefix}k-1"
    ledger.intend(name, rate=0.43, outputs=[], **facts)
    done = subprocess.run(
        [PYTHON, "-m", "snakemake_executor_plugin_runpod", "reap", "--yes"],
        cwd=project.folder,
        env=project.environment() | {"SNAKEMAKE_RUNPOD_TIME_SCALE": "1"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert f"may still be alive, or turn up: {name}" in done.stderr


@pytest.mark.fault(58)
@slow
def test_58_detached_pods_work_on_and_are_taken_over(project, undisturbed):
    run = _running(project, "--runpod-on-interrupt", "detach")
    os.kill(run.pid, signal.SIGINT)
    said = project.finish(run)
    (pod,) = project.account.alive
    assert f"pod {pod['id']} works on: run again to take over" in said.text
    said = project(*project.slow(1.5))
    project.ends_like(undisturbed, said, pods=1)
    assert f"taking over pod {pod['id']}" in said.text


@pytest.mark.fault(59)
@slow
def test_59_a_second_controller_stops_and_names_the_first(project, undisturbed):
    run = _running(project)
    second = project()
    assert second.code == 1
    assert f"the pods of this folder are in use by process {run.pid} on " in second.text
    said = project.finish(run)
    project.ends_like(undisturbed, said, pods=1)


@pytest.mark.fault(60)
@slow
def test_60_two_folders_leave_each_others_pods_alone(project, undisturbed, tmp_path, emulator):
    from rig import Project

    other = Project(tmp_path / "other", emulator)
    other.account = project.account
    run = _running(project)
    said = other()
    assert said.code == 0, said.text
    said = project.finish(run)
    project.ends_like(undisturbed, said, pods=2)


@slow
def test_a_changed_job_is_not_taken_over(project):
    run = _running(project)
    run.kill()
    run.communicate()
    wordlib = project.folder / "src/wordlib/__init__.py"
    wordlib.write_text(wordlib.read_text().replace("abc", "bca", 1))
    said = project()
    assert said.code == 0, said.text
    assert "computes something else by now" in said.text
    assert len(project.account.pods) == 2


def test_every_failpoint_is_exercised():
    """The parametrised test above takes them from the enum itself."""
    marks = [
        m for m in test_48_to_57_the_controller_is_killed.pytestmark if m.name == "parametrize"
    ]
    listed = {getattr(p, "values", (p,))[0] for p in marks[0].args[1]}
    assert listed == set(Failpoint)
