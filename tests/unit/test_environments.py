"""Every environment is the one that pyproject.toml and the constraints name."""

import re
import tomllib

import yaml
from snake import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
_PIN = r"^([\w.-]+)==([^\s;]+)(?: ; (?!python_full_version >= '3.12').*)?$"
PINS = dict(re.findall(_PIN, (ROOT / "envs/constraints.txt").read_text(), re.M))
"""Versions by name, for Python 3.11."""


def _names(requirements):
    return {re.match(r"[\w.-]+", r)[0].lower().replace("_", "-") for r in requirements}


def test_every_requirement_is_pinned():
    wanted = _names(PROJECT["dependencies"])
    for extra in PROJECT["optional-dependencies"].values():
        wanted |= _names(extra)
    assert not wanted - {name.lower() for name in PINS}


def test_pins_are_within_the_ranges_of_the_project():
    from packaging.requirements import Requirement

    for lines in [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]:
        for line in lines:
            requirement = Requirement(line)
            assert requirement.specifier.contains(PINS[requirement.name.lower()]), line


def test_conda_files_list_the_requirements_with_their_pins():
    for name, extras in (("analysis", []), ("extract", ["extract"])):
        environment = yaml.safe_load((ROOT / f"envs/{name}.yaml").read_text())
        wanted = _names(PROJECT["dependencies"])
        for extra in extras:
            wanted |= _names(PROJECT["optional-dependencies"][extra])
        pip = environment["dependencies"][-1]["pip"]
        assert sorted(pip) == sorted(f"{name}=={PINS[name]}" for name in wanted)


def test_a_pods_environment_has_what_extraction_needs_at_the_same_pins():
    text = (ROOT / "envs/worker.txt").read_text()
    pins = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.M))
    wanted = _names(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["extract"])
    assert not wanted - set(pins)
    listed = (ROOT / "envs/constraints.txt").read_text()
    for name, pin in pins.items():
        assert re.search(rf"^{re.escape(name)}=={re.escape(pin)}( ;|$)", listed, re.M), name
    assert text.count("--hash=sha256:") >= len(pins)


def test_the_workers_image_installs_this_project_with_its_pins():
    dockerfile = (ROOT / "envs/Dockerfile").read_text()
    assert '-c envs/constraints.txt ".[extract]"' in dockerfile
    copied = re.findall(r"^COPY (.+) \S+$", dockerfile, re.M)
    for word in " ".join(copied).split():
        assert (ROOT / word).exists(), word


def test_the_workflow_of_the_forge_runs_what_ci_runs():
    forge = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert forge["jobs"]["check"]["steps"][-1]["run"] == "make check"
    assert "make check" in (ROOT / ".ci/run").read_text()


def test_make_installs_every_extra():
    (line,) = re.findall(r"pip install .*-e '\.\[(.+)\]'", (ROOT / "Makefile").read_text())
    assert sorted(line.split(",")) == sorted(PROJECT["optional-dependencies"])


def test_every_place_names_a_python_that_the_project_supports():
    from packaging.specifiers import SpecifierSet

    supported = SpecifierSet(PROJECT["requires-python"])
    forge = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    (setup,) = [step for step in forge["jobs"]["check"]["steps"] if "setup-python" in str(step)]
    named = [setup["with"]["python-version"]]
    named += re.findall(r"^FROM python:([\d.]+)", (ROOT / "envs/Dockerfile").read_text(), re.M)
    named += re.findall(r"^PYTHON \?= python([\d.]+)", (ROOT / "Makefile").read_text(), re.M)
    for path in (ROOT / "envs").glob("*.yaml"):
        named += re.findall(r"python =([\d.]+)", path.read_text())
    assert len(named) == 5
    assert all(supported.contains(version) for version in named)
