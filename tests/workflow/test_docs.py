"""The documentation: links lead somewhere, generated parts are current, commands are such."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from snake import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "config/README.md"])
PAGES += sorted((ROOT / "docs").glob("*.md"))
BIN = Path(sys.executable).parent
BLOCK = re.compile(r"(<!-- (?P<mark>[^\n]+) -->\n)?```sh\n(?P<body>.*?)```", re.S)
STARTS = ("snakemake", "moe-outliers", "make ", "pip ", "python ", "export ", ".venv/bin/")
OLD = ("python deploy_sweep.py", "python verify_results", "python analyze_", "python create_")
KEYLESS = ("status", "list", "offers", "doctor")


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


def runnable(words, mark, demo):
    """Return a command line that shows that a command is one: as it stands, or as a dry run."""
    program, *rest = words
    program = program.removeprefix(".venv/bin/")
    if program == "snakemake":
        dry = [] if "-n" in rest else ["-n"]
        quiet = [] if "--lint" in rest else [*dry, "--quiet", "all"]
        return [BIN / "snakemake", *rest, *quiet]
    if program == "moe-outliers":
        if rest[0] == "export" or "--watch" in rest:
            known = rest[:2] if rest[0] == "export" else rest[:1]
            return [BIN / "moe-outliers", *known, "--help"]
        where = ["--directory", demo.folder]
        overlay = [] if rest[0] == "doctor" else ["--configfile", demo.overlay]
        rest = [word.replace("olmoe-1b-7b", "mini-olmoe") for word in rest]
        return [BIN / "moe-outliers", *rest, *where, *overlay]
    if program == "python" and rest[:2] == ["-m", "snakemake_executor_plugin_runpod"]:
        return [sys.executable, *(rest if rest[2] in KEYLESS else [*rest[:3], "--help"])]
    if program == "python":
        return [sys.executable, *(rest if not mark else [rest[0], "--help"])]
    if program == "make":
        return ["make", "-n", *rest]
    raise AssertionError(f"no rule for {words}")


@pytest.mark.slow
@pytest.mark.parametrize(("page", "command", "mark"), commands(), ids=lambda v: str(v)[:60])
def test_every_command_is_one(page, command, mark, demo, tmp_path):
    words = shlex.split(command, comments=True)
    if words[0] == "export":
        assert re.fullmatch(r"(RUNPOD_API_KEY|HF_TOKEN)=…", words[1])
        return
    if words[0] == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        extras = re.search(r"\[(.+)\]", command)[1].split(",")
        assert set(extras) <= set(project["optional-dependencies"])
        return
    if words[0] in ("git", "cd", "hf"):
        return
    environment = os.environ | {"RUNPOD_API_KEY": "", "HOME": str(tmp_path)}
    done = subprocess.run(
        runnable(words, mark, demo),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    said = done.stdout + done.stderr
    assert "Traceback" not in said, said
    if "doctor" in words:  # here it finds no key, and no GPU
        assert done.returncode in (0, 1)
        return
    assert done.returncode == 0, said[-3000:]
