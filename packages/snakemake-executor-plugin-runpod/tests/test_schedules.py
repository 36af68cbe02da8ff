"""Schedules in which money would leak, each led to its right end.

What is said and counted is held against what the emulator knows: pods alive, and the bill.
"""

import os
import shutil
import signal
import time

import pytest
from rig import Project, wait_until
from test_commands import ask, command

slow = pytest.mark.slow
IMMORTAL = {"on": "terminate", "kind": "ignored", "times": 100_000}


def phase(project, name):
    """Wait until a job of a run is in a phase; return the pods that are alive then."""
    wait_until(lambda: any(e.get("phase") == name for e in project.ledger_so_far()), 60)
    return project.account.alive


def kill(run):
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()


@pytest.mark.fault(19, 104)
@slow
def test_pods_that_will_not_end_hold_their_places_and_their_clocks(project):
    """Of five jobs two get a pod; the run ends, fails, and says what is alive; the bill goes on."""
    project.account.change(faults=[IMMORTAL, {"on": "pod", "kind": "price", "value": 0.9}])
    texts = [*"abcde"]
    words = (*project.overlay(texts=texts), "--runpod-max-pods", "2")
    said = project(*words, SNAKEMAKE_RUNPOD_TIME_SCALE="0.005")
    alive = project.account.alive
    assert said.code == 1
    assert project.account.peak == len(alive) == 2, said.text[-3000:]
    for pod in alive:
        assert said.text.count(f"POD {pod['id']} MAY STILL BE ALIVE") == 1  # no endless alarm
        assert f"pods may be alive, and are billed: {alive[0]['id']}" in said.text or len(alive) > 1
    assert "--runpod-max-pods 2, and as many may be alive" in said.text
    spent, bill = (sum(pod["dollars"] for pod in ask(project, "list")), project.account.bill)
    assert spent == pytest.approx(bill, rel=0.05)
    time.sleep(1)
    assert sum(pod["dollars"] for pod in ask(project, "list")) > spent  # it is not frozen
    assert {pod["state"] for pod in ask(project, "list")} == {"alive"}
    project.account.change(terminate=[pod["id"] for pod in alive])


@pytest.mark.fault(105)
@slow
def test_pods_of_another_account_are_never_written_off(project, emulator):
    """With another key the same job gets another pod; the first one works on, and is named."""
    run = project.start(*project.slow(20), "--runpod-grace", "5")
    (left,) = phase(project, "running")
    kill(run)
    first, project.account = project.account, emulator.account(f"key-{time.time_ns()}")
    said = project("--configfile", "config.yaml")
    assert said.code == 0, said.text[-3000:]
    assert len(project.account.pods) == 1
    assert [pod["id"] for pod in first.alive] == [left["id"]]
    assert f"pod {left['id']} of count alpha was rented with another API key" in said.text
    of_left = [e["event"] for e in project.ledger() if e["name"] == left["name"]]
    assert "terminating" not in of_left
    assert "gone" not in of_left
    assert [pod["state"] for pod in ask(project, "list")] == ["of another account"]
    for words in (["doctor"], ["reap", "--yes"]):
        told = command(project, *words)
        assert told.code == 1
        assert left["id"] in told.text
        assert "no pod" not in told.text
    forgotten = command(project, "reap", "--forget", left["id"])
    assert "counts as gone, by your word" in forgotten.text
    assert "no pod is alive" in command(project, "list").text
    project.account = first
    assert [pod["state"] for pod in ask(project, "list")] == ["left over"]  # it is seen after all
    assert command(project, "reap", "--yes").code == 0
    assert not first.alive


@pytest.mark.fault(106)
@slow
def test_a_copy_of_a_folder_leaves_the_pods_of_the_original_alone(project, emulator, tmp_path):
    """And one that has moved takes them with it."""
    run = project.start(*project.slow(1.5))
    (pod,) = phase(project, "running")
    copy = Project.__new__(Project)
    copy.__dict__ |= project.__dict__ | {"folder": tmp_path / "copy"}
    shutil.copytree(project.folder, copy.folder, symlinks=True)
    assert [row["state"] for row in ask(copy, "list")] == ["of another folder"]
    said = copy(*copy.overlay(texts=["beta"]))
    assert said.code == 0, said.text[-3000:]
    assert pod["id"] not in said.text
    ended = project.finish(run)
    assert ended.code == 0
    assert len(project.account.pods) == 2, ended.text[-3000:]  # one each
    shutil.rmtree(project.folder / "counts")
    run = project.start(*project.slow(20), "--forcerun", "count")
    wait_until(lambda: project.account.alive)
    phase(project, "running")
    kill(run)
    (pod,) = project.account.alive
    project.move(tmp_path / "moved")
    assert [row["state"] for row in ask(project, "list")] == ["alive"]
    assert command(project, "reap", "--yes").code == 0
    assert not project.account.alive


@pytest.mark.fault(107)
@slow
def test_a_kept_pod_that_cannot_end_itself_is_named_until_it_is_gone(project):
    project.account.change(faults=[{"on": "pod", "kind": "no-power", "times": 9}])
    words = ("--runpod-allow-no-switch", "--runpod-keep-pod-on-failure", "--runpod-grace", "0.1")
    said = project(*project.overlay(count={"fail": "1", "message": "part of it"}), *words)
    (pod,) = project.account.alive
    assert said.code == 1
    assert f"pod {pod['id']} is kept for you and IS BILLED AT $0.25/h UNTIL YOU END IT" in said.text
    later = project(*project.overlay(count={"fail": ""}), *words)
    assert later.code == 0, later.text[-3000:]
    assert f"pod {pod['id']} of count alpha is kept for you at $0.25/h until you" in later.text
    told = command(project, "doctor").text
    assert f"may be alive: {pod['id']} (kept)" in told
    assert "take them over" not in told
    assert [row["state"] for row in ask(project, "list")] == ["kept"]
    assert command(project, "reap", "--yes").code == 0
    assert not project.account.alive


@pytest.mark.fault(19)
@slow
def test_an_api_that_fails_from_the_end_of_a_job_on_is_no_success(project, undisturbed):
    """Commands try again as a run does, and no one blames the key or says that no pod is alive."""
    run = project.start(*project.slow(0.5), SNAKEMAKE_RUNPOD_TIME_SCALE="0.005")
    phase(project, "running")
    project.account.change(outage=True)
    said = project.finish(run)
    (pod,) = project.account.alive
    assert said.code == 1
    assert project.digests() == undisturbed.digests() or "report" in said.text
    assert f"POD {pod['id']} MAY STILL BE ALIVE" in said.text
    for words in (["list"], ["doctor"], ["reap", "--yes"]):
        told = command(project, *words)
        assert told.code == 1
        assert "no pod" not in told.text
        assert "make a key" not in told.text
    outage = {"on": "any", "kind": "status", "value": 503, "times": 3}
    project.account.change(outage=False, faults=[outage])
    assert command(project, "reap", "--yes").code == 0
    assert not project.account.alive


@pytest.mark.fault(63)
@slow
def test_the_ledger_is_deleted_and_the_folder_renamed(project, tmp_path):
    """Its pod is of another folder then: it is told of, and nobody says that none is alive."""
    run = project.start(*project.slow(60))
    (pod,) = phase(project, "running")
    kill(run)
    shutil.rmtree(project.folder / ".snakemake")
    project.move(tmp_path / "renamed")
    assert [row["pod"] for row in ask(project, "list")] == [pod["id"]]
    for words in (["reap", "--yes"], ["doctor"]):
        assert "of this folder is alive; " in command(project, *words).text
    assert command(project, "reap", "--yes", "--all").code == 0
    assert not project.account.alive


@pytest.mark.fault(108)
@slow
def test_a_day_has_a_budget_beside_that_of_each_run(project, undisturbed):
    """What earlier runs of the folder have cost counts, whatever became of them."""
    project.account.change(faults=[{"on": "pod", "kind": "price", "value": 90}])
    words = ("--runpod-max-price", "100", "--runpod-daily-budget", "0.12")
    said = project(*project.slow(2), *words)
    assert said.code == 1
    assert "the budget of $0.12 for a day is spent" in said.text
    again = project(*words)
    assert again.code == 1
    assert "is over the daily budget of $0.12" in again.text.replace("that is over", "is over")
    assert len(project.account.pods) == 1
    project.ends_like(undisturbed, project())


@pytest.mark.fault(20)
@slow
def test_a_listing_that_is_empty_ends_nothing(project, undisturbed):
    """Neither listings nor ids show the pod for forty calls: its job goes on by SSH."""
    run = project.start(*project.slow(0.5))
    phase(project, "running")
    project.account.change(blind=40)
    project.ends_like(undisturbed, project.finish(run), pods=1)
    assert project.account.change()["blind"] < 40


@pytest.mark.fault(24)
@slow
def test_a_pod_whose_disk_is_wiped_is_left_for_another(project, undisturbed):
    wiped = {"kind": "wipe", "file": ".snakemake-runpod/jobs/*/root/phase-load"}
    project.account.change(faults=[{"on": "pod", **wiped}])
    project.ends_like(undisturbed, project(*project.slow(0.5)), pods=2)


@pytest.mark.fault(32)
@slow
def test_without_keep_going_the_other_job_comes_home(project):
    profile = project.folder / "profile.yaml"
    profile.write_text(profile.read_text().replace("keep-going: true", "keep-going: false"))
    script = project.folder / "count.py"
    fails = "if 'beta' in str(outputs[0]):\n    sys.exit('beta fails')\ntime.sleep(2)\n"
    script.write_text(script.read_text() + fails)
    said = project(*project.overlay(texts=["alpha", "beta"]))
    assert said.code == 1
    assert "beta fails" in said.text
    assert (project.folder / "counts/alpha/02.json").is_file()
    assert not project.account.alive


@pytest.mark.fault(3)
@slow
def test_a_creation_without_answer_is_found_again_from_its_own_folder_alone(
    project, emulator, tmp_path
):
    project.account.change(faults=[{"on": "create", "kind": "lost"}])
    said = project(SNAKEMAKE_RUNPOD_FAILPOINT="after_intent")
    assert said.code == -signal.SIGKILL
    run = project.start(*project.slow(20))
    wait_until(lambda: project.account.alive)
    kill(run)
    (pod,) = project.account.alive
    other = Project(tmp_path / "other", emulator)
    other.account = project.account
    assert other().code == 0
    assert [each["id"] for each in project.account.alive] == [pod["id"]]
    assert [row["state"] for row in ask(other, "list")] == ["of another folder"]
    assert project("--configfile", "config.yaml").code == 0
    assert len(project.account.pods) <= 3
    assert not project.account.alive
