"""Faults of the connection: files arrive whole or not at all, and a job outlives its connection."""

import re

import pytest

from snakemake_executor_plugin_runpod.remote.link import RemoteError
from snakemake_executor_plugin_runpod.remote.transfer import read_manifest

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
    fault = {"kind": "drop", "at": rf'agent\.py" {command}', "bytes": 40}  # in its answer
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
    fault = {"kind": "flip", "at": r'agent\.py" get', "bytes": 40, "times": 5}
    project.account.change(faults=[{"on": "pod", **fault}])
    said = project()
    project.ends_like(undisturbed, said, pods=2)
    assert "arrived 5 times with a wrong sha256: trying another pod" in said.text


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


ENTRY = {"product": "a.json", "below": "", "kind": "file", "mtime_ns": 1, "mode": 0o644}
ENTRY |= {"size": 3, "sha256": "a" * 64}
LINK = {"product": "d", "below": "x/l", "kind": "link", "mtime_ns": 1, "link": "../f"}
LIES = {
    "product": ["b.json", "../a.json", "/etc/passwd", "a.json/../b", ["a.json"], None],
    "below": ["../b", "/etc/passwd", "b/../../c", "b\0c"],
    "kind": ["link", "socket", None],
    "size": [-1, float("inf"), float("nan"), None, "many", []],
    "sha256": ["a" * 63, "A" * 64, "a" * 64 + "\n", None],
    "mtime_ns": [float("inf"), None],
}


@pytest.mark.fault(44)
def test_44_a_list_of_products_is_believed_in_nothing():
    assert len(read_manifest({"entries": [ENTRY]}, ["a.json"])) == 1
    lies = [{"entries": [ENTRY | {key: lie}]} for key, these in LIES.items() for lie in these]
    others = [{"entries": value} for value in (None, 5, "a", {"a": 1}, [None], [[]], [{}])]
    for answer in [*lies, *others, {}]:
        with pytest.raises(RemoteError, match="untrusted output") as refusal:
            read_manifest(answer, ["a.json"])
        assert str(refusal.value).isprintable()


@pytest.mark.fault(44)
def test_44_links_lead_nowhere_else_and_nothing_is_written_through_one():
    """Names may have any other character: they are the job's, not the host's fault."""
    for name in ("x/日本\u3000語", "a\u00a0b", "b\nc", "b\x1b[2Jc", "n" * 255):
        (found,) = read_manifest({"entries": [LINK | {"below": name, "link": "f"}]}, ["d"])
        assert found.below == name
    for target in ("/etc/passwd", "../../../f", "../../..", "a\0b", ""):
        with pytest.raises(RemoteError, match="untrusted output"):
            read_manifest({"entries": [LINK | {"link": target}]}, ["d"])
    through = ENTRY | {"product": "d", "below": "x/l/evil"}
    with pytest.raises(RemoteError, match="untrusted output"):
        read_manifest({"entries": [LINK, through]}, ["d"])
    above = LINK | {"product": "../d", "link": "../../e"}
    with pytest.raises(RemoteError, match="untrusted output"):
        read_manifest({"entries": [above]}, ["../d"])
    assert read_manifest({"entries": [above | {"link": "../f"}]}, ["../d"])


@pytest.mark.fault(44)
@slow
def test_44_a_product_that_is_larger_than_the_disk_here_is_not_fetched(
    project, undisturbed, small_disk
):
    project.move(small_disk / "project")
    script = project.folder / "count.py"
    sound = script.read_text()
    script.write_text(
        f"{sound}\nwith open(outputs[1], 'wb') as file:\n    file.truncate(1 << 27)\n"
    )
    said = project()
    assert said.code == 1
    assert re.search(r"its products have 1342\d+ bytes, \d+ are free here: free some", said.text)
    assert not project.leftovers()
    assert len(project.account.pods) == 1
    assert not project.account.alive
    script.write_text(sound)
    project.ends_like(undisturbed, project(), pods=2)
