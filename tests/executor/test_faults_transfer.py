"""Faults of the connection: files arrive whole or not at all, and a job outlives its connection."""

import pytest

slow = pytest.mark.slow


@pytest.mark.fault(35)
@slow
def test_35_sshd_answers_late(project, undisturbed):
    project.account.change(faults=[{"on": "pod", "kind": "late-sshd", "value": 1.5}])
    said = project()
    project.ends_like(undisturbed, said, pods=1)


@pytest.mark.fault(40)
@slow
@pytest.mark.parametrize("command", ["hello", "missing", "start", "poll", "manifest"])
def test_40_the_link_drops_in_a_command(project, undisturbed, command):
    """The job goes on detached, and is never started twice."""
    fault = {"kind": "drop", "at": rf'agent\.py" {command}', "bytes": 20}
    project.account.change(faults=[{"on": "pod", **fault}])
    said = project()
    project.ends_like(undisturbed, said, pods=1)
    assert project.log().count("part 0 was made") == 1


@pytest.mark.fault(42)
@pytest.mark.parametrize(
    "command", ["get", pytest.param("put", marks=slow)], ids=["download", "upload"]
)
def test_42_the_link_drops_in_a_transfer(project, undisturbed, command):
    fault = {"kind": "drop", "at": rf'agent\.py" {command}', "bytes": 300}
    project.account.change(faults=[{"on": "pod", **fault}])
    said = project()
    project.ends_like(undisturbed, said, pods=1)


@pytest.mark.fault(42, 43)
@slow
@pytest.mark.parametrize("kind", ["truncate", "flip"])
def test_42_43_a_transfer_is_cut_or_altered(project, undisturbed, kind):
    fault = {"kind": kind, "at": r'agent\.py" get', "bytes": 200}
    project.account.change(faults=[{"on": "pod", **fault}])
    said = project()
    project.ends_like(undisturbed, said, pods=1)


@pytest.mark.fault(43)
@slow
def test_43_a_pod_that_alters_every_transfer_is_left_for_another(project, undisturbed):
    fault = {"kind": "flip", "at": r'agent\.py" get', "bytes": 200, "times": 50}
    project.account.change(faults=[{"on": "pod", **fault}])
    said = project()
    assert said.code in (0, 1)
    assert not project.leftovers()
    assert not project.account.alive
    made = project.digests()
    assert made.items() <= undisturbed.digests().items()


@pytest.mark.fault(44)
@slow
def test_44_names_that_lead_elsewhere_are_refused(project):
    """A link in a job's output that points out of its folder is not followed."""
    script = project.folder / "count.py"
    script.write_text(
        script.read_text()
        + "\nPath(outputs[1]).unlink()\nPath(outputs[1]).symlink_to('/etc/passwd')\n"
    )
    said = project("--runpod-restarts", "0")
    assert said.code == 1
    assert "leads out of the job's folder" in said.text
    assert not (project.folder / "counts/alpha/01.json").exists()
    assert not project.account.alive
