"""The documentation: links lead somewhere, generated parts are current, commands are such."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.snake import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"])
PAGES += sorted([ROOT / "config/README.md", *(ROOT / "docs").glob("*.md")])
PAGES += sorted([*ROOT.glob("packages/*/*.md"), *ROOT.glob("packages/*/docs/*.md")])
BIN = Path(sys.executable).parent
BLOCK = re.compile(r"(<!-- (?P<mark>[^\n]+) -->\n)?```sh\n(?P<body>.*?)```", re.S)
STARTS = ("snakemake", "moe-outliers", "make ", "pip ", "python ", "export ", "source ")
STARTS += (".venv/bin/", "cp ", "diff ")
OLD = ("python deploy_sweep.py", "python verify_results", "python analyze_", "python create_")
KEYLESS = {"status", "list", "offers", "doctor"}
LANGUAGES = {"sh", "python", "yaml", "text", "mermaid"}


def anchors(page):
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_leads_to_a_file_and_a_heading(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_reached_from_the_readme():
    seen, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        seen.add(page)
        for link in re.findall(r"\]\(([^)\s#]+\.md)[)#]", page.read_text()):
            target = (page.parent / link).resolve()
            todo += [target] if target not in seen else []
    assert set(PAGES) <= seen


def test_what_is_made_from_the_code_is_up_to_date():
    done = subprocess.run(
        [sys.executable, ROOT / "docs/generate.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def commands():
    """Give every command in a block or between backticks: page, command, mark."""
    found = {}
    for page in PAGES:
        text = page.read_text()
        for block in BLOCK.finditer(text):
            for line in block["body"].replace("\\\n", " ").splitlines():
                if line.strip():
                    found.setdefault(line.strip(), (page.name, block["mark"]))
        for code in re.findall(r"`([^`\n]+)`", BLOCK.sub("", text)):
            if code.startswith(STARTS) and not code.startswith(OLD) and " " in code:
                found.setdefault(code, (page.name, "in a sentence"))
    return [(page, command, mark) for command, (page, mark) in found.items()]


def different():
    """Give those commands that are not tried as another one is: twice is no better proof."""
    found, demo = {}, SimpleNamespace(folder=Path("demo"), overlay=Path("demo.yaml"))
    for page, command, mark in commands():
        words = shlex.split(command, comments=True)
        told = words[0] in {"export", "source", "pip"}
        key = words if told else runnable(words, mark, demo, Path())
        found.setdefault(tuple(map(str, key)), (page, command, mark))
    return list(found.values())


def templates():
    """Give every text of the program as words; None stands for a word that is filled in."""
    modules = [*ROOT.glob("src/**/*.py"), *ROOT.glob("packages/*/src/**/*.py")]
    for path in modules:
        for node in ast.walk(ast.parse(path.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            if all(isinstance(part, ast.Constant | ast.FormattedValue) for part in parts):
                values = [part.value if isinstance(part, ast.Constant) else "\0" for part in parts]
                words = "".join(v for v in values if isinstance(v, str)).split()
                yield [None if "\0" in word else word.strip(".,:;") for word in words]


def says(template, words):
    """Whether words are a run of a template, at least three of its own among them."""
    ends = {(start, 0) for start in range(len(template))}
    for word in words:
        following = set()
        for at, own in ends:
            if at < len(template) and template[at] == word:
                following.add((at + 1, own + 1))
            elif at < len(template) and template[at] is None:
                following |= {(at, own), (at + 1, own)}
        ends = following
    return any(own >= min(3, len(words)) for _, own in ends)


def test_every_message_that_is_quoted_is_one_of_the_program():
    text = BLOCK.sub("", (ROOT / "docs/troubleshooting.md").read_text())
    printed = re.findall(r"^\*It prints\*.*?(?=\n\n)|^\| `[^|]+\|", text, re.M | re.S)
    quoted = [code for part in printed for code in re.findall(r"`([^`]+)`", part)]
    assert len(quoted) >= 15
    known = list(templates())
    strange = []
    for message in quoted:
        words = [word.strip(".,:;") for word in message.split()]
        if not any(says(template, words) for template in known):
            strange.append(message)
    assert not strange


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_block_is_in_a_language_that_is_tried(page):
    fences = re.findall(r"^ *```(.*)$", page.read_text(), re.M)
    assert set(fences[::2]) <= LANGUAGES
    assert set(fences[1::2]) <= {""}


def test_the_example_of_the_statistics_file_works(demo, monkeypatch):
    page = (ROOT / "docs/statistics-file.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.S)
    monkeypatch.chdir(demo.folder)
    found = {}
    exec(example.replace("olmoe-1b-7b", "mini-olmoe"), found)
    assert found["share"].dims == ("sequence", "site", "feature")
    assert 0 < float(found["share"].max()) <= 1


def runnable(words, mark, demo, folder):
    """Return a command line that shows that a command is one: as it stands, or as a dry run."""
    program, *rest = words
    program = program.removeprefix(".venv/bin/")
    if program == "snakemake":
        places = {"demo": demo.folder, "config/demo.yaml": demo.overlay, "PROFILE": "runpod"}
        rest = [places.get(word, word) for word in rest]
        dry = [] if "-n" in rest else ["-n"]
        quiet = [] if "--lint" in rest else [*dry, "--quiet", "all"]
        return [BIN / "snakemake", *rest, *quiet]
    if program == "moe-outliers":
        if rest[0] == "export":
            rest = [*rest[:2], folder / "FOLDER"]
        if rest[0] == "add":  # a folder in place of the hub, and a copy of the table
            table = shutil.copy(ROOT / "config/models.tsv", folder / "models.tsv")
            rest, where = ["add", demo.overlay.parent / "models/mini-qwen3", "--table", table], []
        else:
            where = ["--directory", demo.folder]
        if "--watch" in rest:  # test_status.py runs it, in a terminal
            rest, where = [rest[0], "--help"], []
        overlay = [] if not where or rest[0] == "doctor" else ["--configfile", demo.overlay]
        rest = [str(word).replace("olmoe-1b-7b", "mini-olmoe") for word in rest]
        return [BIN / "moe-outliers", *rest, *where, *overlay]
    if program == "python":
        if rest[:2] == ["-m", "snakemake_executor_plugin_runpod"]:
            rest = rest if KEYLESS.intersection(rest) else [*rest[:3], "--help"]
        elif mark:
            rest = [*rest[: 2 if rest[0] == "-m" else 1], "--help"]
        return [sys.executable, *rest]
    if program in {"cp", "diff"}:  # beside the results of `make demo`
        places = {"demo/results": demo.folder / "results", "demo/before": folder / "before"}
        if program == "diff":
            places["demo/before"] = places["demo/results"]
        return [program, *(places.get(word, word) for word in rest)]
    if program == "make":
        return ["make", "-n", *rest]
    raise AssertionError(f"no rule for {words}")


@pytest.mark.slow
@pytest.mark.parametrize(("page", "command", "mark"), different(), ids=lambda v: str(v)[:60])
def test_every_command_is_one(page, command, mark, demo, tmp_path):
    words = shlex.split(command, comments=True)
    if words[0] == "export":
        known = re.compile(r"(RUNPOD_API_KEY|HF_TOKEN)=…|RUNPOD_SMOKE=1")
        assert all(map(known.fullmatch, words[1:]))
        return
    if words[0] == "source":
        assert words[1:] == [".venv/bin/activate"]
        return
    if words[0] == "pip":
        named = re.findall(r"(\.|packages/[\w-]+)\[([\w,]+)\]", command)
        assert named
        for folder, extras in named:
            project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
            assert set(extras.split(",")) <= set(project["optional-dependencies"])
        return
    environment = os.environ | {"RUNPOD_API_KEY": "", "HOME": str(tmp_path)}
    done = subprocess.run(
        runnable(words, mark, demo, tmp_path),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    said = done.stdout + done.stderr
    assert "Traceback (most recent call last)" not in said, said
    if "doctor" in words:  # here it finds no key, and no GPU
        assert done.returncode in (0, 1)
        return
    assert done.returncode == 0, said[-3000:]
