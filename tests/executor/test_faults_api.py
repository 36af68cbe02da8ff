"""Faults of RunPod's API, through the literal `snakemake --profile runpod`.

Each test names its fault by its number in docs/guarantees.md.
"""

import re

import pytest
from executor_rig import wait_until

slow = pytest.mark.slow
TRANSPORTS = ["rest-v2", pytest.param("sdk", marks=slow)]


@pytest.mark.fault(1)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_01_the_answer_to_create_is_lost_but_the_pod_exists(project, undisturbed, transport):
    project.account.change(faults=[{"on": "create", "kind": "lost"}])
    said = project("--runpod-api", transport)
    project.ends_like(undisturbed, said, pods=1)
    assert "no clear answer" in said.text
    assert "it is there" in said.text


@pytest.mark.fault(2)
@slow
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_02_create_answers_500_but_the_pod_exists(project, undisturbed, transport):
    project.account.change(faults=[{"on": "create", "kind": "done-status", "value": 500}])
    said = project("--runpod-api", transport)
    project.ends_like(undisturbed, said, pods=1)


@pytest.mark.fault(3)
@slow
def test_03_a_pod_that_turns_up_late_is_ended_on_sight(project, undisturbed):
    project.account.change(faults=[{"on": "create", "kind": "lost"}], lag=2.5)
    said = project()
    project.ends_like(undisturbed, said, pods=2)
    assert "is left over: ending it" in said.text


@pytest.mark.fault(4)
@slow
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_04_create_answers_5xx_and_there_is_no_pod(project, undisturbed, transport):
    project.account.change(faults=[{"on": "create", "kind": "status", "value": 503, "times": 2}])
    said = project("--runpod-api", transport)
    project.ends_like(undisturbed, said, pods=1)


@pytest.mark.fault(5)
@slow
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_05_a_kind_of_gpu_that_is_not_free_is_passed_over(project, undisturbed, transport):
    project.account.change(stock={"NVIDIA RTX A4000": 0, "NVIDIA RTX A5000": 0})
    said = project("--runpod-api", transport)
    project.ends_like(undisturbed, said, pods=1)
    assert project.account.pods[0]["gpu"] == "NVIDIA L4"
    assert project.account.calls["create"] == 3


@pytest.mark.fault(5)
@slow
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_05_a_kind_that_this_account_may_not_rent_is_passed_over(project, undisturbed, transport):
    """Where it may rent none, waiting would not help."""
    fault = {"on": "create", "kind": "status", "value": 403}
    project.account.change(faults=[fault | {"times": 99}])
    said = project("--runpod-api", transport, "--runpod-capacity-wait", "30")
    assert said.code == 1
    assert "this account may rent none of these kinds. Tried:" in said.text
    assert project.account.faults[0]["fired"] > 1


@pytest.mark.fault(6)
@slow
def test_06_no_gpu_is_free_until_patience_ends(project):
    project.account.change(faults=[{"on": "create", "kind": "error", "value": "x", "times": 0}])
    gpus = ["NVIDIA RTX A4000", "NVIDIA L4"]
    project.account.change(stock=dict.fromkeys(gpus, 0))
    said = project("--runpod-gpu", *gpus)
    assert said.code == 1
    assert "nothing was billed" in said.text
    assert re.search(r"NVIDIA L4 \(secure\): .*There are no longer any instances", said.text)
    assert project.account.bill == 0


@pytest.mark.fault(7, 8)
@slow
@pytest.mark.parametrize("kind", ["null", "html"])
def test_07_08_answers_that_make_no_sense_are_asked_for_again(project, undisturbed, kind):
    fault = {"kind": kind, "value": 502, "times": 2}
    project.account.change(faults=[{"on": "list", **fault}, {"on": "get", **fault}])
    said = project()
    project.ends_like(undisturbed, said, pods=1)


@pytest.mark.fault(9)
@slow
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("wait", [None, 0.5])
def test_09_too_many_requests(project, undisturbed, transport, wait):
    limit = {"kind": "status", "value": 429, "retry_after": wait}
    faults = [{"on": on, **limit} for on in ("account", "list", "create", "get", "terminate")]
    project.account.change(faults=faults[transport == "rest-v2" :])
    said = project("--runpod-api", transport)
    project.ends_like(undisturbed, said, pods=1)


@pytest.mark.fault(10)
@slow
def test_10_no_key_is_said_before_any_job_runs(project, tmp_path):
    said = project(RUNPOD_API_KEY="", HOME=str(tmp_path))
    assert said.code == 1
    assert "there is no API key for RunPod: make a key at https://" in said.text
    assert "localrule text" not in said.text
    assert not project.account.calls


@pytest.mark.fault(11)
@slow
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_11_a_wrong_key_is_said_before_any_job_runs(project, transport):
    said = project("--runpod-api", transport, RUNPOD_API_KEY="no-such-key")
    assert said.code == 1
    assert "RunPod refuses the API key: make a key at https://" in said.text
    assert "localrule text" not in said.text


@pytest.mark.fault(11)
@slow
def test_11_a_key_that_is_revoked_during_a_run(project, undisturbed):
    """The results come home all the same, the pods are named, and end themselves."""
    run = project.start(*project.slow(1), "--runpod-grace", "0.05")
    wait_until(lambda: any(e.get("phase") == "running" for e in _ledger(project)))
    project.account.change(valid=False)
    said = project.finish(run)
    assert said.code == 0, said.text
    assert project.digests() == undisturbed.digests()
    assert "MAY STILL BE ALIVE AND BILLED AT $0.25/h" in said.text
    assert "https://console.runpod.io/pods" in said.text
    (pod,) = project.account.alive
    assert pod["id"] in said.text
    project.account.change(valid=True)
    wait_until(lambda: not project.account.alive)


@pytest.mark.fault(12)
@slow
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_12_no_money(project, transport):
    """One of the two tells the balance before; the other refuses the first pod."""
    project.account.change(balance=0)
    said = project("--runpod-api", transport)
    assert said.code == 1
    before = "the account at RunPod has $0.00: add credit at https://"
    refused = "your balance is too low to rent this pod. Add credit at https://"
    assert (before if transport == "sdk" else refused) in said.text
    assert not project.account.pods


@pytest.mark.fault(13)
@slow
@pytest.mark.parametrize("kind", ["never-ready", "no-port"])
def test_13_a_pod_that_never_gets_a_port_is_left_for_another(project, undisturbed, kind):
    project.account.change(faults=[{"on": "pod", "kind": kind}])
    said = project(SNAKEMAKE_RUNPOD_TIME_SCALE="0.005")
    project.ends_like(undisturbed, said, pods=2)
    assert "no port for SSH after" in said.text


@pytest.mark.fault(16)
@slow
@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "gpu", "value": []},
        {"kind": "gpu", "value": [["NVIDIA T4", 8000]]},
        {"kind": "cuda", "value": "12.4"},
        {"kind": "disk", "value": 3},
    ],
    ids=["no GPU", "less memory", "old driver", "less disk"],
)
def test_16_a_machine_that_is_not_what_was_rented(project, undisturbed, fault):
    project.account.change(faults=[{"on": "pod", **fault}])
    said = project()
    project.ends_like(undisturbed, said, pods=2)
    assert "trying another pod" in said.text
    first, second = project.account.pods
    assert first["machine"] != second["machine"]


@pytest.mark.fault(17)
@slow
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_17_a_pod_that_costs_more_than_was_quoted_ends_at_once(project, undisturbed, transport):
    project.account.change(faults=[{"on": "pod", "kind": "price", "value": 2.5}])
    said = project("--runpod-api", transport)
    project.ends_like(undisturbed, said, pods=2)
    assert project.account.pods[0]["seconds"] < 2


@pytest.mark.fault(18)
@slow
def test_18_a_pod_that_is_deleted_by_hand(project, undisturbed):
    run = project.start(*project.slow(0.5))
    wait_until(lambda: any(e.get("phase") == "running" for e in _ledger(project)))
    project.account.change(terminate=[project.account.alive[0]["id"]])
    said = project.finish(run)
    project.ends_like(undisturbed, said, pods=2)
    assert "it is gone: trying another pod" in said.text


@pytest.mark.fault(19)
@slow
@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "value": 500},
        {"kind": "cut"},
        {"kind": "ignored"},
        {"kind": "error", "value": "pod not found to terminate"},
    ],
    ids=["500", "no answer", "done but it stays", "404 but it is there"],
)
def test_19_a_pod_that_will_not_end_is_ended_all_the_same(project, undisturbed, fault):
    project.account.change(faults=[{"on": "terminate", "times": 3, **fault}])
    said = project()
    project.ends_like(undisturbed, said, pods=1)


@pytest.mark.fault(19)
@slow
def test_19_a_pod_that_cannot_be_ended_is_named(project, undisturbed):
    project.account.change(faults=[{"on": "terminate", "kind": "ignored", "times": 10_000}])
    said = project("--runpod-grace", "0.1", SNAKEMAKE_RUNPOD_TIME_SCALE="0.005")
    assert project.digests() == undisturbed.digests()
    (pod,) = project.account.alive
    assert f"POD {pod['id']} MAY STILL BE ALIVE" in said.text
    assert "reap" in said.text
    wait_until(lambda: not project.account.alive)


@pytest.mark.fault(20)
@slow
@pytest.mark.parametrize("late", ["lag", "stale"], ids=["new pods are missing", "dead ones stay"])
def test_20_listings_that_lag_make_no_second_pod(project, undisturbed, late):
    project.account.change(**{late: 1.0})
    said = project(SNAKEMAKE_RUNPOD_TIME_SCALE="0.05")
    project.ends_like(undisturbed, said, pods=1)


@pytest.mark.fault(21)
@slow
def test_21_pods_of_an_earlier_run_that_crashed_are_ended_at_the_next_start(project, undisturbed):
    """Their job is not needed any more; a pod of somebody else is left alone."""
    run = project.start(*project.overlay(texts=["beta"], count={"seconds": 60}))
    wait_until(lambda: any(e.get("phase") == "running" for e in _ledger(project)))
    run.kill()
    run.communicate()
    (left,) = project.account.alive
    said = project()
    project.ends_like(undisturbed, said, pods=2)
    assert left["id"] in said.text or f"{left['name']}" in said.text


def _ledger(project):
    try:
        return project.ledger()
    except (FileNotFoundError, ValueError):
        return []
