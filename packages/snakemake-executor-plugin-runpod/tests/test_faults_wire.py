"""Faults before and in a login: pods that are deaf, slow, elsewhere, or someone else's."""

import os
import signal
import time

import pytest
from rig import wait_until
from test_commands import command

slow = pytest.mark.slow


@pytest.mark.fault(14)
@slow
def test_14_a_pod_whose_port_changes_is_found_again(project, undisturbed):
    project.account.change(faults=[{"on": "pod", "kind": "moves", "value": 1.5}])
    said = project(*project.slow(1))
    project.ends_like(undisturbed, said, pods=1)
    assert "the connection was lost" in said.text


@pytest.mark.fault(15)
@slow
def test_15_a_pod_that_ends_right_after_its_start_is_left_for_another(project, undisturbed):
    project.account.change(faults=[{"on": "pod", "kind": "die", "after": 0, "times": 2}])
    said = project()
    project.ends_like(undisturbed, said, pods=3)


@pytest.mark.fault(22)
@slow
def test_22_a_pod_of_someone_else_is_left_alone(project, undisturbed):
    body = {
        "name": "snakemake-0badcafe-count-alpha-1-2",
        "gpu": {"id": "NVIDIA L4", "count": 1},
        "image": "runpod/base:1",
    }
    stranger = project.account.rent(body)
    said = project()
    assert said.code == 0, said.text
    assert project.digests() == undisturbed.digests()
    assert [pod["id"] for pod in project.account.alive] == [stranger]
    project.account.change(terminate=[stranger])


@pytest.mark.fault(23)
@slow
def test_23_what_the_api_says_cannot_reach_the_terminal_or_a_path(project):
    """Neither its message nor the name of a pod that somebody else has."""
    hostile = '\x1b]0;owned\x07 "}) { ../../../etc/passwd\r\nFAKE LINE'
    project.account.change(
        faults=[{"on": "create", "kind": "error", "value": hostile, "times": 999, "skip": 1}]
    )
    gpu = {"id": "NVIDIA L4", "count": 1}
    body = {"name": f"snakemake-{hostile}", "gpu": gpu, "image": hostile}
    stranger = project.account.rent(body)
    said, listed = project(), command(project, "list")
    assert said.code == 1
    assert stranger in listed.text
    for text in (said.text, listed.text):
        assert "etc/passwd" in text
        assert all(c.isprintable() or c in "\n\t" for c in text)
        assert "\nFAKE LINE" not in text
    assert [pod["id"] for pod in project.account.alive] == [stranger]
    project.account.change(terminate=[stranger])


@pytest.mark.fault(36)
@slow
@pytest.mark.parametrize("banner", ["silent", "junk", "hang"])
def test_36_a_port_that_answers_with_no_or_a_wrong_banner(project, undisturbed, banner):
    fault = {"kind": "banner", "value": banner, "times": 2}
    project.account.change(faults=[{"on": "pod", **fault}])
    said = project()
    project.ends_like(undisturbed, said)


@pytest.mark.fault(37)
@slow
def test_37_a_key_that_is_not_known_yet_is_tried_again(project, undisturbed):
    project.account.change(faults=[{"on": "pod", "kind": "denied", "value": 1.0}])
    said = project()
    project.ends_like(undisturbed, said, pods=1)


@pytest.mark.fault(38)
@slow
def test_38_a_pod_whose_host_key_changes_is_left_for_another(project, undisturbed):
    project.account.change(faults=[{"on": "pod", "kind": "new-key", "value": 2.0}])
    said = project(*project.slow(1.5))
    project.ends_like(undisturbed, said, pods=2)
    assert "HostKeyNotVerifiable" in said.text


@pytest.mark.fault(39)
@slow
def test_39_a_machine_that_calls_itself_otherwise_gets_nothing(project, undisturbed):
    project.account.change(faults=[{"on": "pod", "kind": "stranger"}])
    said = project()
    project.ends_like(undisturbed, said, pods=2)
    assert "calls itself snakemake-of-someone-else: nothing was sent to it" in said.text
    first = project.account.pods[0]["name"]
    assert "staging" not in [e.get("phase") for e in project.ledger() if e["name"] == first]


@pytest.mark.fault(41)
@slow
def test_41_a_link_that_swallows_everything_is_noticed(project, undisturbed):
    fault = {"kind": "blackhole", "bytes": 30_000}
    project.account.change(faults=[{"on": "pod", **fault}])
    said = project()
    project.ends_like(undisturbed, said, pods=1)


@pytest.mark.fault(45)
@slow
def test_45_a_slow_link_takes_long_and_is_not_given_up(project, undisturbed):
    fault = {"kind": "throttle", "value": 60_000, "times": 1}
    project.account.change(faults=[{"on": "pod", **fault}])
    said = project()
    project.ends_like(undisturbed, said, pods=1)


@pytest.mark.fault(46)
@slow
def test_46_a_laptop_that_sleeps_goes_on_where_it_was(project, undisturbed):
    run = project.start(*project.slow(0.7))
    wait_until(lambda: project.account.alive)
    time.sleep(1)
    os.killpg(run.pid, signal.SIGSTOP)
    time.sleep(8)  # longer than any limit on contact, as time is scaled here
    os.killpg(run.pid, signal.SIGCONT)
    said = project.finish(run)
    project.ends_like(undisturbed, said, pods=1)


@pytest.mark.fault(46)
@slow
def test_46_a_laptop_that_sleeps_for_hours_pays_for_no_more_than_the_grace(project, undisturbed):
    """The pod ends itself meanwhile; the hours do not count against the budget."""
    project.account.change(faults=[{"on": "pod", "kind": "price", "value": 90}])
    words = ["--runpod-max-price", "100", "--runpod-budget", "0.5", "--runpod-grace", "0.05"]
    run = project.start(*project.slow(1), *words)
    wait_until(lambda: project.account.alive)
    time.sleep(1)
    os.killpg(run.pid, signal.SIGSTOP)
    time.sleep(24)  # at 90 dollars an hour that is 60 cents
    os.killpg(run.pid, signal.SIGCONT)
    said = project.finish(run)
    project.ends_like(undisturbed, said, pods=2)
    assert "this machine slept since" in said.text


@pytest.mark.fault(45, 102)
@slow
def test_45_a_transfer_that_takes_longer_than_the_grace_is_no_silence(project):
    script = project.folder / "count.py"
    big = "\nPath(outputs[0]).write_bytes(os.urandom(16_000_000))\n"
    script.write_text(script.read_text() + big)
    project.account.change(faults=[{"on": "pod", "kind": "throttle", "value": 600_000}])
    said = project("--runpod-grace", "0.2", "--runpod-restarts", "0")
    assert said.code == 0, said.text
    assert len(project.account.pods) == 1
    assert not project.account.alive


@pytest.mark.fault(47)
@slow
def test_47_a_shell_that_chatters_is_understood(project, undisturbed):
    project.account.change(faults=[{"on": "pod", "kind": "noise", "times": 1}])
    said = project()
    project.ends_like(undisturbed, said, pods=1)


@pytest.mark.fault(61)
@slow
def test_61_a_full_disk_here_costs_a_rerun_and_no_pod(project, undisturbed, small_disk):
    project.move(small_disk / "project")
    ballast = small_disk / "ballast"
    run = project.start(*project.slow(0.7))
    wait_until(lambda: project.account.alive)
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(free - 8192, 1))
    said = project.finish(run)
    assert said.code != 0, said.text
    assert not project.leftovers()
    wait_until(lambda: not project.account.alive)
    ballast.unlink()
    said = project()
    assert said.code == 0, said.text
    assert project.digests() == undisturbed.digests()
