"""Products of an earlier pod are used, and pods at work are taken over, for the same job only.

What decides a job's result is all that is staged, how it is run, and the user's will. A change of
any of it, and nothing else, makes the job run anew.
"""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from rig import wait_until

from snakemake_executor_plugin_runpod.failpoints import VARIABLE, Failpoint
from snakemake_executor_plugin_runpod.job.from_snakemake import plain
from snakemake_executor_plugin_runpod.job.staging import DOCUMENTS
from snakemake_executor_plugin_runpod.task import Recipe, deciding_options

slow = pytest.mark.slow

SNAKEFILE = """
configfile: "config.yaml"

localrules: all

rule all:
    input: "body.txt", "script.txt", "second.txt"

rule body:
    output: "body.txt"
    run:
        open(output[0], "w").write("OLD")

rule script:
    input: "data.txt"
    output: "script.txt"
    log: "script.log"
    params: size=config["size"]
    script: "script.py"

rule first:
    output: "first.txt"
    group: "both"
    shell: "date +%N > {output}"

rule second:
    input: "first.txt"
    output: "second.txt"
    group: "both"
    shell: "cat {input} > {output}; date +%N >> {output}"
"""

SCRIPT = """
import json, time
from pathlib import Path
import helper, package
settings = json.loads(Path("settings.json").read_text())
time.sleep(settings["seconds"])
Path(snakemake.output[0]).write_text(f"{helper.WORD} {package.WORD} {settings['word']}")
"""

FILES = {
    "Snakefile": SNAKEFILE,
    "script.py": SCRIPT,
    "helper.py": 'WORD = "OLD"\n',
    "src/package.py": 'WORD = "OLD"\n',
    "settings.json": '{"word": "OLD", "seconds": 0}',
    "config.yaml": "size: 1\n",
    "data.txt": "1\n",
    "pods.txt": "snakemake\n",
    "README.md": "words\n",
    "docs/page.md": "words\n",
}


@pytest.fixture
def foreign(project):
    """A workflow whose jobs read what Snakemake does not know of."""
    for name in ("Snakefile", "count.py", "config.yaml"):
        (project.folder / name).unlink()
    shutil.rmtree(project.folder / "src")
    for name, text in FILES.items():
        path = project.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    project.commit()
    return project


def change(project, name, old="OLD", new="NEW"):
    path = project.folder / name
    path.write_text(path.read_text().replace(old, new))


def recipe(project, *words):
    """Return what decides the result of the job `script`, as a run writes it down.

    No kind of GPU is free, so that each run ends there.
    """
    project.account.change(stock={"NVIDIA L4": 0})
    said = project("--runpod-gpu", "NVIDIA L4", "--runpod-capacity-wait", "0", *words)
    assert "no pod in 0 minutes" in said.text, said.text
    *_, asked = (e for e in project.ledger() if e.get("title") == "script")
    path = project.folder / f".snakemake/runpod/recipes/{asked['fingerprint'][:32]}.json"
    return Recipe(**json.loads(path.read_text()))


CHANGES = {
    "an imported module": ("helper.py", "OLD", "NEW"),
    "src": ("src/package.py", "OLD", "NEW"),
    "a file that the script reads": ("settings.json", "OLD", "NEW"),
    "the script": ("script.py", "time.sleep", "(lambda seconds: None)"),
    "the body of a rule": ("Snakefile", "OLD", "NEW"),
    "an input": ("data.txt", "1", "2"),
}

SAME = {
    "README.md": ("words", "other words"),
    "docs/page.md": ("words", "other words"),
}


@slow
def test_whatever_decides_a_result_is_in_its_recipe_by_name(foreign):
    before = recipe(foreign)
    for name, old, new in CHANGES.values():
        change(foreign, name, old, new)
        after = recipe(foreign)
        assert before.differences(after)[0] == name
        assert set(before.differences(after)) <= {name, "parameters"}  # which hold the script's own
        before = after
    change(foreign, "config.yaml", "1", "2")
    after = recipe(foreign)
    assert before.differences(after) == ["config.yaml", "parameters"]
    words = ["--runpod-requirements", "pods.txt"]
    before, after = after, recipe(foreign, *words)
    assert before.differences(after) == ["the requirements"]
    change(foreign, "pods.txt", "snakemake", "snakemake  # another")
    assert "the requirements" in after.differences(recipe(foreign, *words))
    assert before.differences(recipe(foreign, "--runpod-image", "a/b:1")) == [
        "pods.txt",
        "the image",
    ]
    before = recipe(foreign)
    assert before.differences(recipe(foreign, "--config", "size=3")) == [
        "parameters",
        "the command",
    ]


@slow
def test_what_decides_nothing_is_in_no_recipe(foreign):
    """Documents, what the job itself writes, and how a run is told of."""
    (foreign.folder / "script.log").write_text("tracked, though the job itself writes it\n")
    foreign.commit()
    before = recipe(foreign)
    for name, (old, new) in SAME.items():
        change(foreign, name, old, new)
    (foreign.folder / "script.log").unlink()
    after = recipe(foreign, "--verbose", "--printshellcmds", "--latency-wait", "9")
    assert before.differences(after) == []
    assert before.fingerprint == after.fingerprint


def test_what_has_no_order_in_a_command_has_none_in_the_recipe():
    one = "python -m snakemake --target-jobs a b --allowed-rules x y --attempt 1 --verbose"
    other = "python -m snakemake --allowed-rules y x --target-jobs b a --attempt 2"
    assert deciding_options(one) == deciding_options(other)
    for order in ("--configfiles a.yaml b.yaml", "--config word=A word=B"):
        name, *values = order.split()
        assert deciding_options(order) != deciding_options(f"{name} {' '.join(reversed(values))}")
    assert deciding_options("python '") == [["python '"]]


def test_parameters_have_one_form_in_every_process():
    class Own:
        pass

    assert plain({"a", "b", "c"}) == plain({"c", "b", "a"})
    assert plain({"x": {1, 2}, "y": [Path("p"), None]}) == plain(
        {"y": [Path("p"), None], "x": {2, 1}}
    )
    assert plain([Own()]) == plain([Own()])
    assert plain({"a"}) != plain({"b"})


def test_code_and_inputs_are_no_documents():
    names = ("README", "README.md", "docs/a/page.rst", ".gitignore", ".github/workflows/ci.yml")
    assert all(DOCUMENTS.fullmatch(name) for name in names)
    code = ("security.py", "changes.py", "authors.csv", "docs/template.html", "docs/list.txt")
    code += ("citation.tsv", "readme.py", "src/README.md", "docs/generate.py")
    assert not any(DOCUMENTS.fullmatch(name) for name in code)


def start(project, *words):
    change(project, "settings.json", '"seconds": 0', '"seconds": 6')
    run = project.start("script.txt", *words)
    wait_until(lambda: any(e.get("phase") == "running" for e in project.ledger_so_far()))
    return run


@slow
@pytest.mark.parametrize(
    ("what", "end"),
    [
        ("an imported module", "SIGINT"),
        ("src", "SIGKILL"),
        ("a file that the script reads", "SIGKILL"),
    ],
)
def test_a_pod_that_computes_something_else_is_ended_by_name(foreign, what, end):
    run = start(foreign, "--runpod-on-interrupt", "detach")
    os.kill(run.pid, getattr(signal, end))
    run.communicate()
    (pod,) = foreign.account.alive
    change(foreign, *CHANGES[what])
    said = foreign("script.txt")
    assert said.code == 0, said.text
    assert "NEW" in (foreign.folder / "script.txt").read_text()
    assert (
        f"its pod computes something else by now: {CHANGES[what][0]} changed; pod {pod['id']}"
        in (said.text)
    )
    assert ", on which $0.0" in said.text
    assert len(foreign.account.pods) == 2


@slow
@pytest.mark.parametrize(
    "will", [["--forceall"], ["--forcerun", "./script.txt"], ["--force", "--until", "script.txt"]]
)
def test_a_pod_at_work_on_what_is_wanted_anew_is_ended(foreign, will):
    run = start(foreign)
    run.kill()
    run.communicate()
    said = foreign("script.txt", *will)
    assert said.code == 0, said.text
    assert "it is forced, so it runs anew" in said.text
    assert len(foreign.account.pods) == 2


@slow
def test_what_is_forced_or_has_changed_runs_anew_also_in_groups(foreign):
    assert foreign().code == 0
    made = {name: (foreign.folder / name).read_bytes() for name in ("second.txt", "body.txt")}
    change(foreign, "Snakefile")
    said = foreign("--rerun-triggers", "code")
    assert said.jobs == {"all": 1, "body": 1, "total": 2}, said.text
    assert (foreign.folder / "body.txt").read_text() == "NEW"
    assert len(foreign.account.pods) == 4
    assert foreign("--forcerun", "second").code == 0
    assert (foreign.folder / "second.txt").read_bytes() != made["second.txt"]
    assert len(foreign.account.pods) == 5
    change(foreign, "helper.py")
    assert foreign("--forceall").code == 0
    assert (foreign.folder / "script.txt").read_text() == "NEW OLD OLD"
    assert len(foreign.account.pods) == 8
    assert "Nothing to be done" in foreign().text


@slow
@pytest.mark.parametrize("forced", [False, True])
def test_products_that_are_here_are_used_only_for_who_waits_for_them(project, undisturbed, forced):
    """The controller was killed when the products had come home, before Snakemake heard of it."""
    said = project(**{VARIABLE: str(Failpoint.AFTER_RENAME)})
    assert said.code == -signal.SIGKILL
    said = project(*(["--forcerun", "count"] if forced else []))
    project.ends_like(undisturbed, said, pods=2 if forced else 1)


KNOWN = """
localrules: all
rule all:
    input: "made.txt", "late.txt"
rule make:
    input: "data.txt"
    output: update("made.txt")
    shell: "date +%N > {output}"
rule late:
    input: "made.txt"
    output: "late.txt"
    shell: "sleep 60; touch {output}"
"""


def kill_behind_a_success(project, *words):
    """Kill a run when Snakemake has heard of the success of `make`, while `late` works."""
    (project.folder / "Snakefile").write_text(KNOWN)
    project.commit()
    run = project.start("all", *words)
    wait_until(
        lambda: any(
            e.get("phase") == "running" and "late" in e["name"] for e in project.ledger_so_far()
        )
    )
    run.kill()
    run.communicate()
    return (project.folder / "made.txt").read_text()


@slow
@pytest.mark.parametrize("store", ["file", "db"])
def test_what_snakemake_knows_of_and_wants_again_runs_anew(foreign, store):
    """No mark says that it waits; in a database the name of the job outlives the mark."""
    words = ["--rerun-triggers", "mtime", "--max-checksum-file-size", "0"]
    words += ["--persistence-backend", store]
    made = kill_behind_a_success(foreign, *words)
    os.utime(foreign.folder / "data.txt")
    said = foreign("made.txt", *words)
    assert said.code == 0, said.text
    assert "nothing to do" not in said.text
    assert (foreign.folder / "made.txt").read_text() != made


@slow
def test_a_forced_job_that_was_killed_is_not_done_by_older_products(foreign):
    made = kill_behind_a_success(foreign)
    said = foreign("made.txt", "--forcerun", "make", **{VARIABLE: str(Failpoint.AFTER_START)})
    assert said.code == -signal.SIGKILL
    said = foreign("made.txt")
    assert said.code == 0, said.text
    assert "nothing to do" not in said.text
    assert (foreign.folder / "made.txt").read_text() != made


@slow
def test_finished_parts_that_came_home_change_no_job(project, undisturbed):
    """Of three parts one is here when the controller is killed: its pod is taken over."""
    run = project.start(*project.slow(2.5))
    wait_until((project.folder / "counts/alpha/00.json").exists, patience=60)
    run.kill()
    run.communicate()
    assert not (project.folder / "counts/alpha/02.json").exists()
    (pod,) = project.account.alive
    said = project(*project.slow(2.5))
    project.ends_like(undisturbed, said, pods=1)
    assert f"taking over pod {pod['id']}" in said.text
