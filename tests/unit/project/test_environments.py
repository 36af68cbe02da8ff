"""Every environment is the one that pyproject.toml and the constraints name."""

import os
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from support.snake import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PLUGIN = ROOT / "packages/snakemake-executor-plugin-runpod"
PLUGINS = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
REQUIRED = [
    lines
    for project in (PROJECT, PLUGINS)
    for lines in [project["dependencies"], *project["optional-dependencies"].values()]
]
OURS = {PROJECT["name"], PLUGINS["name"]}
_PIN = r"^([\w.-]+)==([^\s;]+)(?: ; (?!python_full_version >= '3.12').*)?$"
PINS = dict(re.findall(_PIN, (ROOT / "envs/constraints.txt").read_text(), re.M))
"""Versions by name, for Python 3.11."""


def _names(requirements):
    return {re.match(r"[\w.-]+", r)[0].lower().replace("_", "-") for r in requirements}


def test_every_requirement_is_pinned():
    wanted = set().union(*map(_names, REQUIRED))
    assert not wanted - OURS - {name.lower() for name in PINS}


def test_our_own_distributions_are_never_pinned_to_one_of_an_index():
    text = (ROOT / "envs/constraints.txt").read_text() + (ROOT / "envs/worker.txt").read_text()
    assert not [name for name in OURS if re.search(rf"^{re.escape(name)}\b", text, re.M)]


def test_pins_are_within_the_ranges_of_the_project():
    from packaging.requirements import Requirement

    for line in (line for lines in REQUIRED for line in lines):
        requirement = Requirement(line)
        if requirement.name not in OURS:
            assert requirement.specifier.contains(PINS[requirement.name.lower()]), line


def test_conda_files_list_the_requirements_with_their_pins():
    for name, extras in (("analysis", []), ("extract", ["extract"])):
        environment = yaml.safe_load((ROOT / f"envs/{name}.yaml").read_text())
        wanted = _names(PROJECT["dependencies"])
        for extra in extras:
            wanted |= _names(PROJECT["optional-dependencies"][extra])
        pip = environment["dependencies"][-1]["pip"]
        assert sorted(pip) == sorted(f"{name}=={PINS[name]}" for name in wanted)


@pytest.mark.slow
def test_a_rule_runs_in_the_environment_of_its_conda_file(demo, tmp_path):
    """In what `pip` makes of the file's list alone, at the same versions, to the same bytes."""
    environment = yaml.safe_load((ROOT / "envs/analysis.yaml").read_text())
    (tmp_path / "list.txt").write_text("\n".join(environment["dependencies"][-1]["pip"]))
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env/bin/python"
    install = [python, "-m", "pip", "install", "--quiet", "-r", tmp_path / "list.txt"]
    subprocess.run(install, check=True)
    copy = demo.copy(tmp_path / "run")
    product = copy.folder / "results/metrics/mini-olmoe.parquet"
    before = product.read_bytes()
    product.unlink()
    run = [python, "-m", "snakemake", product.relative_to(copy.folder)]
    subprocess.run(
        [*run, "--directory", copy.folder, "--configfile", copy.overlay],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        check=True,
    )
    assert product.read_bytes() == before


def test_a_pods_environment_has_what_extraction_needs_at_the_same_pins():
    text = (ROOT / "envs/worker.txt").read_text()
    pins = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.M))
    wanted = _names(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["extract"])
    assert not wanted - set(pins)
    listed = (ROOT / "envs/constraints.txt").read_text()
    for name, pin in pins.items():
        assert re.search(rf"^{re.escape(name)}=={re.escape(pin)}( ;|$)", listed, re.M), name
    assert text.count("--hash=sha256:") >= len(pins)


def test_continuous_integration_runs_the_command_for_tests_that_the_readme_prints():
    printed = re.findall(r"```sh\n(make \w+)\n```", (ROOT / "README.md").read_text())
    assert printed == ["make demo", "make test"]
    assert printed[1] in (ROOT / ".ci/run").read_text().splitlines()
    targets = dict(re.findall(r"^([\w-]+): ([\w -]+)$", (ROOT / "Makefile").read_text(), re.M))
    assert targets["demo"] == targets["test"] == "install"
    forge = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert forge["jobs"]["check"]["steps"][-1]["run"] == "make check"
    assert "test" in targets["check"].split()


def test_make_installs_every_extra_of_both_distributions():
    words = r"pip install .*-e '\$\(PLUGIN\)\[(.+)\]' -e '\.\[(.+)\]'"
    ((plugins, own),) = re.findall(words, (ROOT / "Makefile").read_text())
    assert sorted(own.split(",")) == sorted(PROJECT["optional-dependencies"])
    assert sorted(plugins.split(",")) == sorted(PLUGINS["optional-dependencies"])


def test_no_command_lets_an_index_be_asked_for_the_plugin():
    """Whoever installs the extra `runpod` names the plugin's folder in the same command."""
    names = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    asking = re.compile(r"\[[a-z,]*runpod[a-z,]*\]|install \S*snakemake-executor-plugin-runpod")
    for name in names:
        path = ROOT / name
        text = path.read_text(errors="replace") if path.is_file() else ""
        for line in re.findall(r"^.*pip install.*$", text.replace("\\\n", " "), re.M):
            here = "packages/" in line or "$(PLUGIN)" in line
            assert here or not asking.search(line), (name, line)


def test_every_place_names_a_python_that_the_project_supports():
    from packaging.specifiers import SpecifierSet

    supported = SpecifierSet(PROJECT["requires-python"])
    forge = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    (setup,) = [step for step in forge["jobs"]["check"]["steps"] if "setup-python" in str(step)]
    named = [setup["with"]["python-version"]]
    named += re.findall(r"^PYTHON \?= python([\d.]+)", (ROOT / "Makefile").read_text(), re.M)
    for path in (ROOT / "envs").glob("*.yaml"):
        named += re.findall(r"python =([\d.]+)", path.read_text())
    assert len(named) == 4
    assert all(supported.contains(version) for version in named)
