"""Faults of RunPod's API, through the literal `snakemake --profile runpod`.

Each test names its fault by its number in docs/guarantees.md.
"""

import itertools
import re
import secrets
from functools import partial

import pytest
from rig import wait_until

from snakemake_executor_plugin_runpod.api.errors import ApiError
from snakemake_executor_plugin_runpod.api.model import Spec
from snakemake_executor_plugin_runpod.api.open import open_api

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
def test_06_no_gpu_is_free_until_patience_ends(project, undisturbed):
    gpus = ["NVIDIA RTX A4000", "NVIDIA L4"]
    project.account.change(stock=dict.fromkeys(gpus, 0))
    said = project("--runpod-gpu", *gpus)
    assert said.code == 1
    assert "nothing was billed" in said.text
    assert re.search(r"NVIDIA L4 \(secure\): .*There are no longer any instances", said.text)
    assert project.account.bill == 0
    project.account.change(stock=dict(zip(gpus, (0, 1), strict=True)))
    said = project("--runpod-gpu", *gpus, *project.overlay(texts=["alpha", "beta"]))
    assert said.code == 1
    made = [(project.folder / f"counts/{text}/02.json").is_file() for text in ("alpha", "beta")]
    assert sorted(made) == [False, True]  # the other one went on
    project.account.change(stock={})
    project.ends_like(undisturbed, project("--configfile", "config.yaml"))


@pytest.mark.fault(7, 8)
@slow
@pytest.mark.parametrize("kind", ["null", "html", "half"])
def test_07_08_answers_that_make_no_sense_are_asked_for_again(project, undisturbed, kind):
    """But not for the creation of a pod: that is looked for."""
    fault = {"kind": kind, "value": 502}
    faults = [{"on": on, **fault, "times": 2} for on in ("list", "get")]
    project.account.change(faults=[*faults, {"on": "create", **fault}])
    said = project()
    project.ends_like(undisturbed, said, pods=1)
    assert project.account.calls["create"] == (2 if kind == "html" else 1)


ANSWERS = [
    *("", "null", "5", '"x"', "[]", "{}", "[5]", "NaN", "9" * 6000, "[" * 100_000, "\udcff", "{"),
    *('{"data": null}', '{"data": 5}', '{"data": {}}', '{"data": {"myself": null}}'),
    *('{"data": {"myself": {"pods": 5}}}', '{"data": {"myself": {"pods": [null]}}}'),
    *('{"data": {"gpuTypes": 5}}', '{"data": {"gpuTypes": [{"id": "x", "lowestPrice": 5}]}}'),
    *('{"data": {"gpuTypes": [{"id": "\\u001b[2J"}]}}', '{"data": {"pod": 5}}'),
    *(
        '{"data": {"pod": {"id": "a", "runtime": {"ports": 5}}}}',
        '{"data": {"pod": {"id": "../a"}}}',
    ),
    *('{"errors": 5}', '{"errors": [5]}', '{"errors": [{"message": 5}]}', '{"errors": {"a": 1}}'),
    *('{"data": {"podFindAndDeployOnDemand": {"id": "a b"}}}', '{"pods": 5}', '{"pods": [5]}'),
    *('{"pods": [{"id": "a", "runtime": {"ports": 5}}]}', '{"gpus": 5}', '{"gpus": [{"id": 5}]}'),
    *('{"id": "\\u001b[2J"}', '{"id": "a\\n"}', '{"id": "' + "a" * 65 + '"}'),
]
"""What a service that has gone mad may answer."""

HOSTILE = 'a"}) { id } podTerminate(input: {podId: "b"}) \\ \\" \x1b]0;owned\x07\r\n#'


@pytest.fixture(params=TRANSPORTS)
def service(request, emulator, monkeypatch):
    """A transport of the API, and its account."""
    account = emulator.account(f"key-{secrets.token_hex(8)}")
    for name, value in account.environment().items():
        monkeypatch.setenv(name, value)
    return open_api(request.param), account


def spec(word):
    return Spec(word, word, "NVIDIA L4", 1, "secure", 10, 4, None, "12.8", None, word, {word: word})


@pytest.mark.fault(7, 8, 23)
def test_07_08_23_whatever_the_service_answers_is_an_error_of_the_api_or_harmless(service):
    api, account = service
    calls = [api.account, api.offers, api.pods]
    calls += [partial(api.pod, "a"), partial(api.terminate, "a"), partial(api.create, spec("a"))]
    refusals = []
    for answer, call in itertools.product(ANSWERS, calls):
        on = "create" if call is calls[-1] else "any"
        account.change(faults=[{"on": on, "kind": "body", "value": answer}])
        try:
            found = call()
        except ApiError as error:
            refusals.append(str(error))
        else:
            assert "\x1b" not in str(found)
            assert on == "any", answer  # a creation is never believed
    assert len(refusals) > len(ANSWERS) * 4
    assert all(refusal.isprintable() for refusal in refusals)
    assert all(fault["fired"] for fault in account.faults)


@pytest.mark.fault(23)
def test_23_hostile_words_stay_words_in_a_query(service):
    api, account = service
    id = api.create(spec(HOSTILE))  # noqa: A001
    (pod,) = account.alive
    try:
        assert (pod["id"], pod["name"], pod["env"]) == (id, HOSTILE, {HOSTILE: HOSTILE})
        assert account.calls.get("terminate") is None
        for name in (HOSTILE, "", "a/../b", "a?b", "ä", "a" * 65):
            with pytest.raises(ApiError):
                api.terminate(name)
        assert account.alive
    finally:
        account.change(terminate=[id])


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
    found = project.account.change()
    for moment in (moment for fault in found["faults"] for moment in fault["moments"]):
        early = [m for m in found["moments"] if moment + 0.1 < m < moment + (wait or 0)]
        assert not early


@pytest.mark.fault(9)
@slow
def test_09_the_quota_of_a_window_is_waited_for(project, undisturbed):
    """REST v2 counts calls in windows, and says when the next one begins."""
    project.account.change(limits={"2": 6})
    project.ends_like(undisturbed, project(), pods=1)


@pytest.mark.fault(5)
@slow
def test_05_what_the_catalogue_denies_is_not_asked_for(project, undisturbed):
    """The creation of a pod by REST v2 cannot ask for all of it."""
    kinds = ["NVIDIA RTX A4000", "NVIDIA RTX A5000", "NVIDIA L4", "NVIDIA GeForce RTX 4090"]
    project.account.change(availability={kinds[0]: "NONE"}, cuda={kinds[1]: ["12.4"]})
    project.ends_like(undisturbed, project(), pods=1)
    assert project.account.pods[0]["gpu"] == kinds[2]
    assert project.account.calls["create"] == 1
    project.account.change(availability=dict.fromkeys(kinds, "NONE"))
    (project.folder / "counts/alpha/01.json").unlink()
    said = project("--runpod-gpu", *kinds)
    assert said.code == 1
    assert "none is free, says RunPod's catalogue" in said.text
    assert project.account.calls["create"] == 1


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
    wait_until(lambda: any(e.get("phase") == "running" for e in project.ledger_so_far()))
    project.account.change(valid=False)
    said = project.finish(run)
    assert said.code == 1, said.text  # a pod may be alive
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
    first = project.account.pods[0]["name"]
    phases = [e.get("phase") for e in project.ledger() if e["name"] == first]
    assert "rented" in phases
    assert "staging" not in phases  # nothing was sent to it


@pytest.mark.fault(16)
@slow
def test_16_a_host_that_was_no_good_is_avoided(project, undisturbed):
    """The second pod is on it again: it ends before anybody logs in."""
    where = {"on": "pod", "kind": "machine", "value": "host1", "times": 2}
    project.account.change(faults=[{"on": "pod", "kind": "disk", "value": 3}, where])
    said = project("--runpod-api", "sdk")  # REST v2 does not name the host
    project.ends_like(undisturbed, said, pods=3)
    second = project.account.pods[1]["name"]
    assert not [e for e in project.ledger() if e["name"] == second and e.get("host_key")]


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
    wait_until(lambda: any(e.get("phase") == "running" for e in project.ledger_so_far()))
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
    (pod,) = project.account.pods  # its own switch may have ended it by now
    assert f"POD {pod['id']} MAY STILL BE ALIVE" in said.text
    assert said.code == 1
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
    wait_until(lambda: any(e.get("phase") == "running" for e in project.ledger_so_far()))
    run.kill()
    run.communicate()
    (left,) = project.account.alive
    said = project()
    project.ends_like(undisturbed, said, pods=2)
    assert left["id"] in said.text or f"{left['name']}" in said.text
