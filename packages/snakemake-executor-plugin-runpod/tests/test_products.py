"""What comes home and what is said of a job that fails: it is the job's, and no host is blamed."""

import os
import signal
import stat

import pytest
from rig import Project, wait_until

slow = pytest.mark.slow

LONG = "n" * 250 + ".txt"

RULES = """
import os

localrules: all, tree_used

SMALL = dict(vram_gb=16, disk_gb=20, min_memory_gb=4)

rule all:
    input: "used.txt", "../above/a.txt", "out2.txt", "words.txt", "killed.txt", "late.txt",
        "partial.txt", "far.txt"

rule tree:
    output: directory("tree"), "tool", "{LONG}", protected("kept.txt")
    resources: **SMALL
    run:
        os.makedirs("tree/empty/er"); os.makedirs("tree/real")
        for name in ("real/日本\\u3000語.txt", "a\\u00a0b", "line\\nend", "{LONG}"):
            open(f"tree/{name}", "w").write(f"tree/{name}")
        os.symlink("real", "tree/link"); os.symlink("nowhere", "tree/dangling")
        os.symlink("../tool", "tree/tool")
        for name in ("tool", "tree/run"):
            open(name, "w").write("#!/bin/sh\\necho it runs\\n"); os.chmod(name, 0o755)
        open("{LONG}", "w").write("long"); open("kept.txt", "w").write("kept")

rule tree_used:
    input: "tree", "tool"
    output: "used.txt"
    shell: "./tool > {output}; tree/run >> {output}; tree/tool >> {output}"

rule above:
    output: "../above/a.txt"
    resources: **SMALL
    shell: "echo above > {output}"

rule out:
    output: directory("out"), "out2.txt"
    resources: **SMALL
    shell: "mkdir -p out; echo 1 > out/1; ln -s /etc/hostname out/host; echo 2 > out2.txt"

rule words:
    output: "words.txt"
    log: "words.log"
    resources: **SMALL
    shell: "echo 'torch.OutOfMemoryError: CUDA out of memory - retrying with batch 32: ok' > {log};"
        "printf '\\\\033[31mMemoryError: No space left on device\\\\n' >> {log};"
        "echo 'the true error' | tee -a {log}; exit 1"

rule killed:
    output: "killed.txt"
    resources: **SMALL
    shell: "echo about to die; kill -9 $$"

rule partial:
    output: "partial.txt"
    resources: **SMALL
    shell: "echo half > {output}; exit 3"

rule first:
    output: "first.txt"
    resources: **SMALL
    shell: "echo 0 > {output}"

rule late:
    input: "first.txt"
    output: "late.txt"
    resources: **SMALL, runtime=lambda wildcards, input: int(open(input[0]).read())
    shell: "cp {input} {output}"

rule far:
    input: "first.txt", "outside"
    output: "far.txt"
    resources: **SMALL
    shell: "cp {input[0]} {output}"
"""

ONE = """
rule a:
    output: "{}"
    resources: vram_gb=16, disk_gb=20, min_memory_gb=4
    shell: "{}"
"""


def workflow(project, text):
    (project.folder / "Snakefile").write_text(text)
    project.commit()


@pytest.fixture(scope="module")
def made(emulator, tmp_path_factory):
    """One run of ten jobs, most of which fail by themselves."""
    folder = tmp_path_factory.mktemp("made")
    project = Project(folder / "project", emulator)
    (folder / "elsewhere").mkdir()
    (project.folder / "outside").mkdir()
    (project.folder / "outside/link").symlink_to("../../elsewhere")
    profile = project.folder / "profile.yaml"
    profile.write_text(f"{profile.read_text()}show-failed-logs: true\n".replace("8", "16"))
    workflow(project, RULES.replace("{LONG}", LONG))
    said = project("--runpod-max-pods", "16", "--runpod-max-price", "4", timeout=170)
    yield project, said
    alive = project.account.alive
    project.account.change(terminate=[pod["id"] for pod in alive])
    assert not alive


@pytest.mark.fault(44)
@slow
def test_modes_links_empty_folders_and_long_names_come_home(made):
    project, said = made
    tree = project.folder / "tree"
    assert (project.folder / "used.txt").read_text() == "it runs\n" * 3, said.text[-6000:]
    assert (tree / "empty/er").is_dir()
    assert {p.name for p in (tree / "link").iterdir()} == {"日本\u3000語.txt"}
    assert str((tree / "link").readlink()) == "real"
    assert str((tree / "dangling").readlink()) == "nowhere"
    for name in ("a\u00a0b", "line\nend", LONG):
        assert (tree / name).read_text() == f"tree/{name}"
    assert (project.folder / LONG).read_text() == "long"
    assert not (project.folder / "kept.txt").stat().st_mode & stat.S_IWUSR
    assert (project.folder.parent / "above/a.txt").read_text() == "above\n"
    assert not project.leftovers()


@pytest.mark.fault(32, 109)
@slow
def test_what_a_job_is_or_prints_is_blamed_on_no_host(made):
    """One pod each: no other would do better; the last words and the place of all are said."""
    project, said = made
    assert said.code == 1
    names = [pod["name"].split("-")[2] for pod in project.account.pods]
    assert sorted(names) == sorted(["above", "first", "killed", "out", "partial", "tree", "words"])
    assert {pod["gpu"] for pod in project.account.pods} == {"NVIDIA RTX A4000"}
    assert "its product out/host is a link to /etc/hostname, which leads out" in said.text
    assert (project.folder / "out2.txt").read_text() == "2\n"
    for words in ("the true error", "about to die"):
        assert words in said.text
    assert said.text.count("(all of it: .snakemake/runpod/logs/") >= 4
    assert "too little" not in said.text
    assert (project.folder / "partial.txt").read_text() == "half\n"
    assert "\x1b[31m" not in said.text
    assert "^[[31mMemoryError" in (project.folder / "words.log").read_text()


@pytest.mark.fault(110)
@slow
def test_a_job_that_is_refused_late_ends_no_pod_of_another(made):
    """And what can be known is known before anything is rented for it."""
    project, said = made
    assert "resource runtime is 0 minutes" in said.text
    assert "the input outside has a link, outside/link, to ../../elsewhere" in said.text
    assert (project.folder / "first.txt").exists()
    assert (project.folder / "tree").is_dir()


@pytest.mark.fault(111)
@slow
def test_the_results_come_before_a_long_console_of_which_the_middle_is_left_out(project):
    chatter = "echo the first line; head -c 60000000 /dev/zero | tr '\\\\0' x | fold -w 99"
    workflow(project, ONE.format("a.txt", f"{chatter}; echo the last line; echo > {{output}}"))
    said = project("a.txt")
    assert said.code == 0, said.text[-3000:]
    (path,) = (project.folder / ".snakemake/runpod/logs").iterdir()
    text = path.read_text()
    assert "the first line" in text[:5000]
    assert text.rstrip().endswith("the last line") or "the last line" in text[-5000:]
    assert "bytes of the console are left out" in text
    assert len(text) < 3_000_000


@pytest.mark.fault(58)
@slow
def test_58_what_a_finished_job_has_made_comes_home_when_its_run_is_interrupted(project):
    """In the middle of its transfer; the next run takes it as it is."""
    project.account.change(
        faults=[{"on": "pod", "kind": "throttle", "value": 400_000, "times": 99}]
    )
    workflow(
        project,
        'rule a:\n    output: "a.bin"\n    resources: vram_gb=16, min_memory_gb=4\n'
        '    shell: "head -c 3000000 /dev/urandom > {output}"\n',
    )
    run = project.start("a.bin")
    wait_until(lambda: any(e.get("phase") == "done" for e in project.ledger_so_far()), 60)
    os.kill(run.pid, signal.SIGINT)
    said = project.finish(run)
    assert said.code == 1
    assert "Traceback" not in said.text
    assert (project.folder / "a.bin").stat().st_size == 3_000_000, said.text[-3000:]
    assert not project.account.alive
    again = project("a.bin")
    assert again.code == 0, again.text
    assert len(project.account.pods) == 1


@pytest.mark.fault(96)
@slow
def test_96_what_a_finished_job_has_made_comes_home_when_the_budget_is_spent(project):
    """At 36 dollars an hour it is spent after 45 seconds; the transfer takes 40."""
    slow_line = {"on": "pod", "kind": "throttle", "value": 100_000, "times": 99}
    project.account.change(faults=[slow_line, {"on": "pod", "kind": "price", "value": 36}])
    workflow(project, ONE.format("a.bin", "head -c 4000000 /dev/urandom > {output}"))
    said = project("a.bin", "--runpod-max-price", "99", "--runpod-budget", "0.45", timeout=180)
    assert said.code == 1
    assert "the budget of $0.45 is spent" in said.text
    assert (project.folder / "a.bin").stat().st_size == 4_000_000, said.text[-3000:]
    assert not project.account.alive
