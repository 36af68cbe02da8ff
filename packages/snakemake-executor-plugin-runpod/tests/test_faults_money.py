"""Money, secrets and people: no pod outlives its use, no secret leaves its file."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from rig import CANARY, wait_until

slow = pytest.mark.slow


@pytest.mark.fault(96)
@slow
def test_96_the_budget_is_reached_during_a_run(project, undisturbed):
    """At 90 dollars an hour 8 cents last for three seconds."""
    project.account.change(faults=[{"on": "pod", "kind": "price", "value": 90}])
    said = project(*project.slow(2), "--runpod-max-price", "100", "--runpod-budget", "0.08")
    assert said.code == 1
    assert "the budget of $0.08 is spent" in said.text
    assert "of the budget of $0.08 are spent" in said.text
    assert not project.account.alive
    assert project.account.bill < 0.08 + 90 / 3600 * 3
    said = project()
    project.ends_like(undisturbed, said)


@pytest.mark.fault(97)
@slow
def test_97_an_estimate_over_the_budget_is_refused_before_any_job_runs(project):
    said = project("--runpod-budget", "0.01")
    assert said.code == 1
    assert "are expected to cost $0.05, over the budget of $0.01" in said.text
    assert not project.account.pods


@pytest.mark.fault(98)
@slow
def test_98_secrets_stay_in_their_files(project, undisturbed):
    """Neither argument lists, nor variables, logs or the ledger hold them."""
    snakefile = project.folder / "Snakefile"
    declared, dump = 'envvars: "DECLARED"\n\n\n', "env > inherited.txt; for i in"
    code = snakefile.read_text().replace("localrules:", f"{declared}localrules:", 1)
    snakefile.write_text(code.replace("for i in", dump, 1))
    project.variables["DECLARED"] = secret = "declared-canary-0123456789"
    run = project.start(*project.slow(1), "--runpod-pass-env", "HF_TOKEN")
    wait_until(lambda: "phase-load" in str(list(_pods(project))))
    key = project.account.key
    for process in psutil.process_iter():
        try:
            words, known = " ".join(process.cmdline()), process.environ()
        except psutil.Error:
            continue
        assert CANARY not in words
        assert secret not in words
        assert key not in words
        if process.pid == run.pid:
            assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0)
        if process.pid != run.pid and known.get("RUNPOD_POD_ID"):
            assert CANARY not in known.values()
            assert key not in known.values()
    said = project.finish(run)
    project.ends_like(undisturbed, said, pods=1)
    assert secret not in said.text
    inherited = project.folder / "inherited.txt"
    assert "RUNPOD_API_BASE_URL=" in inherited.read_text()
    assert "RUNPOD_API_KEY=" not in inherited.read_text()  # no job of this machine needs it
    inherited.unlink()
    (pod,) = project.account.pods
    assert set(pod["env"]) == {"PUBLIC_KEY", "SNAKEMAKE_RUNPOD_POD"}
    import hashlib

    assert hashlib.sha256(CANARY.encode()).hexdigest() in project.log()
    assert not project.spilt(secret)


@pytest.mark.fault(98)
@slow
def test_98_the_hubs_token_goes_where_a_job_asks_for_it_and_to_no_host_of_anybody(project, hub):
    """The key is in no variable of a local job either, also where nothing is rented."""
    snakefile = project.folder / "Snakefile"
    code = snakefile.read_text().replace("for i in", "env > inherited.txt; for i in", 1)
    snakefile.write_text(code)
    said = project()
    assert said.code == 0, said.text
    assert "token" not in project.log()
    nothing = project("--until", "text", "--forcerun", "text", *project.overlay(texts=["alpha"]))
    assert nothing.code == 0, nothing.text
    inherited = project.folder / "inherited.txt"
    assert "RUNPOD_API_KEY=" not in inherited.read_text()
    inherited.unlink()
    snakefile.write_text(code.replace("env > inherited.txt; ", ""))
    words = project.overlay(texts=["beta", "gamma"], hub=f"org/model@{'c' * 40}")
    said = project(*words, "--runpod-cloud", "community", HF_ENDPOINT=hub.url)
    assert said.code == 0, said.text
    assert "its host is anybody's: HF_TOKEN does not go there" in said.text
    assert "token" not in project.log("beta")
    shutil.rmtree(project.folder / "counts/beta")
    said = project(*words, HF_ENDPOINT=hub.url)
    assert said.code == 0, said.text
    assert "token" in project.log("beta")
    tracked = project.folder / ".snakemake/runpod/id_ed25519"
    assert tracked.exists()
    listed = subprocess.run(
        ["git", "add", "-A", "--dry-run"], cwd=project.folder, capture_output=True, check=True
    )
    assert b"runpod/" not in listed.stdout.replace(b"profile", b"")


@pytest.mark.fault(73)
@slow
@pytest.mark.parametrize(
    ("hub", "message"),
    [(401, "is gated or private: accept its licence"), (404, "has no org/model at c")],
    indirect=["hub"],
)
def test_73_what_the_hub_would_refuse_is_said_before_a_pod_is_rented(project, hub, message):
    said = project(*project.overlay(hub=f"org/model@{'c' * 40}"), HF_ENDPOINT=hub.url)
    assert [headers["Authorization"] for headers in hub.heard] == [f"Bearer {CANARY}"]
    assert said.code == 1
    assert message in said.text
    assert "localrule text" not in said.text
    assert not project.account.pods


def _pods(project):
    for process in psutil.process_iter(["cwd"]):
        folder = process.info["cwd"] or ""
        if "/.snakemake-runpod/jobs/count-alpha" in folder:
            yield from (p.name for p in Path(folder).glob("phase-*"))


@pytest.mark.fault(102)
@pytest.mark.parametrize(
    "retry",
    [pytest.param(False, id="at once"), pytest.param(True, marks=slow, id="after retries")],
)
def test_102_the_laptop_dies_for_ever(project, retry):
    """The pod ends itself within its grace, also when its first calls fail."""
    if retry:
        fault = {"on": "terminate", "kind": "status", "value": 500, "times": 4, "own": True}
        project.account.change(faults=[fault | {"skip": 3}])  # the three of its trial
    run = project.start(*project.slow(60), "--runpod-grace", "0.05")
    wait_until(lambda: project.account.alive and _phase(project) == "running")
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    wait_until(lambda: not project.account.alive, patience=3 + 5)
    assert all(fault["fired"] for fault in project.account.faults)


@pytest.mark.fault(102)
@slow
def test_102_the_laptop_dies_before_the_first_login(project):
    """The switch is on from the start of the container."""
    said = project("--runpod-grace", "0.03", SNAKEMAKE_RUNPOD_FAILPOINT="after_bind")
    assert said.code == -signal.SIGKILL
    assert project.account.alive
    wait_until(lambda: not project.account.alive, patience=2 + 5)


@pytest.mark.fault(103)
@slow
def test_103_a_pod_that_may_not_end_itself_is_refused(project, undisturbed):
    project.account.change(faults=[{"on": "pod", "kind": "no-power"}])
    said = project()
    project.ends_like(undisturbed, said, pods=2)
    assert "it could not end itself" in said.text


def _phase(project):
    try:
        return [e["phase"] for e in project.ledger() if e["event"] == "phase"][-1]
    except (FileNotFoundError, IndexError, ValueError):
        return ""
