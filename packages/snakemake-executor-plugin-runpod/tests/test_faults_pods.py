"""Faults of pods that are at work: what was finished stays, the rest is made again elsewhere."""

import pytest
from rig import wait_until

slow = pytest.mark.slow
ROOT = ".snakemake-runpod/jobs/*/root"

DEATHS = {
    "24 boot": {"after": 0},
    "25 upload": {"at": r'agent\.py" put', "bytes": 1000},
    "26 download": {"file": f"{ROOT}/phase-download"},
    "27 load": {"file": f"{ROOT}/phase-load"},
    "28 forward pass": {"file": f"{ROOT}/counts/alpha/01.json"},
    "29 transfer": {"at": r'agent\.py" get', "bytes": 100},
}


@pytest.mark.fault(24, 25, 26, 27, 28, 29)
@pytest.mark.parametrize(
    "death",
    [d if d.startswith("28") else pytest.param(d, marks=slow) for d in DEATHS],
)
def test_24_to_29_the_pod_dies(project, undisturbed, death):
    project.account.change(faults=[{"on": "pod", "kind": "die", **DEATHS[death]}])
    said = project(*project.slow(0.3))
    project.ends_like(undisturbed, said, pods=2)
    assert "trying another pod" in said.text


@pytest.mark.fault(28)
@slow
def test_28_finished_parts_come_home_while_the_job_works(project, undisturbed):
    """Of three parts two are here when the pod dies; the third alone is made again."""
    fault = {"kind": "die", "file": f"{ROOT}/counts/alpha/02.json"}
    project.account.change(faults=[{"on": "pod", **fault}])
    said = project(*project.slow(2.5))
    project.ends_like(undisturbed, said, pods=2)
    assert "finished files are here" in said.text
    assert "part 0 is there\npart 1 is there\npart 2 was made" in project.log()


@pytest.mark.fault(31)
@slow
def test_31_a_pod_that_dies_again_and_again_fails_the_job(project, undisturbed):
    """What the first had finished stays."""
    fault = {"kind": "die", "file": f"{ROOT}/counts/alpha/02.json", "times": 2}
    project.account.change(faults=[{"on": "pod", **fault}])
    said = project(*project.slow(2.5), "--runpod-restarts", "1")
    assert said.code == 1
    assert "it was tried often enough" in said.text
    assert len(project.account.pods) == 2
    assert not project.account.alive
    said = project("--configfile", "config.yaml")
    project.ends_like(undisturbed, said, pods=3)
    assert "part 0 is there" in project.log()


@pytest.mark.fault(33)
@slow
def test_33_a_worker_that_hangs_is_stopped_at_its_limit(project, undisturbed):
    """The rule's `runtime` is a minute here."""
    snakefile = project.folder / "Snakefile"
    snakefile.write_text(snakefile.read_text().replace("runtime=10,", "runtime=1,"))
    said = project(*project.slow(600))
    assert said.code == 1
    assert "it ran longer than its limit of 1 minutes" in said.text
    assert not project.account.alive
    project.ends_like(undisturbed, project("--configfile", "config.yaml"), pods=2)


@slow
@pytest.mark.fault(33)
def test_33_a_limit_of_no_minutes_is_refused_before_a_pod(project):
    """It would be no limit at all: the pod would be billed for as long as pods may live."""
    snakefile = project.folder / "Snakefile"
    snakefile.write_text(snakefile.read_text().replace("runtime=10,", "runtime=0.05,"))
    dry = project("-n")
    said = project()
    assert said.code == 1
    assert "resource runtime is 0 minutes" in said.text
    assert not project.account.pods
    assert "Traceback" not in dry.text


OOM = """
if not os.environ.get("RUNPOD_STEPS"):
    events = Path(os.environ["SNAKEMAKE_RUNPOD_CGROUP"], "memory.events")
    events.write_text("oom 1\\noom_kill 1\\n")  # as the kernel does that kills
    os.kill(os.getpid(), 9)
"""
FULL = """
if not os.environ.get("RUNPOD_STEPS"):
    import shutil
    df = Path(shutil.which("df"))
    df.write_text(df.read_text().replace("20000000000", "0").replace("19531250", "0"))
    sys.exit("no more room, and a message that nobody knows")
"""


@pytest.mark.fault(34)
@slow
@pytest.mark.parametrize(
    ("code", "what"), [(OOM, "memory after 64 GB"), (FULL, "disk after 20 GB")]
)
def test_34_a_job_that_provably_had_too_little_gets_a_larger_pod(project, undisturbed, code, what):
    """The kernel's count of killed processes, or the disk itself, is the evidence."""
    script = project.folder / "count.py"
    script.write_text(script.read_text().replace("\ntext = ", f"\n{code}\ntext = "))
    said = project()
    project.ends_like(undisturbed, said, pods=2)
    assert f"steps more {what}" in project.log()


@pytest.mark.fault(83)
@slow
def test_83_out_of_gpu_memory_gets_a_larger_gpu(project, undisturbed):
    script = project.folder / "count.py"
    kind = "\nclass OutOfMemoryError(RuntimeError):\n    __module__ = 'torch'\n\n\n"
    code = script.read_text().replace("\ntext = ", f"{kind}\ntext = ")
    ends = 'sys.exit(f"part {number} failed: {params.message}")'
    assert ends in code
    script.write_text(code.replace(ends, "raise OutOfMemoryError(params.message)"))
    count = {"fail": "1", "message": "CUDA out of memory. Tried", "touch": "NVIDIA L40S"}
    said = project(*project.overlay(count=count, vram_gb=20))
    project.ends_like(undisturbed, said, pods=2)
    assert [pod["gpu"] for pod in project.account.pods] == ["NVIDIA RTX A5000", "NVIDIA L40S"]
    assert "steps more vram after 24 GB" in project.log()
    assert "part 0 is there" in project.log()


@pytest.mark.fault(41)
@slow
def test_a_frozen_pod_is_left_for_another(project, undisturbed):
    """It answers nothing any more, although the API lists it."""
    fault = {"kind": "freeze", "file": f"{ROOT}/phase-load"}
    project.account.change(faults=[{"on": "pod", **fault}])
    run = project.start(*project.slow(0.5))
    said = project.finish(run, timeout=120)
    assert "no contact" in said.text
    wait_until(lambda: not project.account.alive)
    project.ends_like(undisturbed, said, pods=2)


@pytest.mark.fault(13)
@slow
@pytest.mark.parametrize(("api", "state"), [("sdk", "EXITED"), ("rest-v2", "ERROR")])
def test_13_a_container_that_has_failed_for_good_is_not_awaited(project, undisturbed, state, api):
    """Twenty minutes are what a pod may take that comes."""
    project.account.change(faults=[{"on": "pod", "kind": "state", "value": state}])
    said = project("--runpod-api", api, SNAKEMAKE_RUNPOD_TIME_SCALE="0.2")
    project.ends_like(undisturbed, said, pods=2)
    assert f"its container does not run: {state}" in said.text


@slow
@pytest.mark.fault(89)
def test_89_an_environment_that_cannot_be_made_is_said_with_pips_words(project):
    project.account.change(faults=[{"on": "pod", "kind": "bare", "times": 9}])
    (project.folder / "worker.txt").write_text("no-such-package-of-anyone==1.0\n")
    project.commit()
    said = project("--runpod-requirements", "worker.txt")
    assert said.code == 1
    assert "no-such-package-of-anyone" in said.text
    assert not project.account.alive


@slow
def test_a_pod_makes_the_environment_of_its_job(project, undisturbed):
    """Nothing is ready on this pod: pip really installs Snakemake there."""
    project.account.change(faults=[{"on": "pod", "kind": "bare"}])
    said = project(timeout=400, SNAKEMAKE_RUNPOD_TIME_SCALE="1")
    project.ends_like(undisturbed, said, pods=1)


@slow
@pytest.mark.parametrize(
    ("why", "kept"),
    [({"message": "part of it", "fail": "1"}, 1), ({}, 0)],
    ids=["the job failed", "the pod was no good"],
)
def test_a_pod_is_kept_for_a_job_that_failed_and_for_nothing_else(project, why, kept):
    """One that cannot end itself, above all, is never kept."""
    if not kept:
        project.account.change(faults=[{"on": "pod", "kind": "no-power", "times": 2}])
    said = project(*project.overlay(count=why), "--runpod-keep-pod-on-failure")
    assert (said.code, len(project.account.alive)) == (kept, kept), said.text
    if kept:
        (pod,) = project.account.alive
        assert f"pod {pod['id']} is kept for you" in said.text
        project.account.change(terminate=[pod["id"]])
        assert project(*project.overlay(count={"fail": ""})).code == 0
        assert not _open(project)


def _open(project):
    from snakemake_executor_plugin_runpod.ledger import Ledger

    ledger = Ledger(project.folder / ".snakemake/runpod")
    return [vars(lease) for lease in ledger.open_leases()]
