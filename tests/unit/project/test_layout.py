"""The rules of the house that a reader relies on."""

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter

import pytest
import yaml
from support.snake import ROOT

from moe_outliers.report.figures.catalogue import FIGURES
from moe_outliers.workflow import paths

RULES = sorted((ROOT / "rules").glob("*.smk"))
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
SRC = ROOT / "src"
PACKAGES = {
    "moe_outliers": SRC,
    "snakemake_executor_plugin_runpod": ROOT / "packages/snakemake-executor-plugin-runpod/src",
}
MODULES = sorted(path for source in PACKAGES.values() for path in source.rglob("*.py"))


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


INTERNALS = SRC / "moe_outliers/workflow/snakemake_internals.py"
"""The one module of the science that may import Snakemake; only rule files import it."""


def _package(path):
    return next(name for name, source in PACKAGES.items() if source in path.parents)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: f"{_package(p)}/{p.name}")
def test_neither_package_imports_the_other_and_the_science_imports_no_executor(path):
    package = _package(path)
    forbidden = {
        "moe_outliers": {"snakemake", "runpod", "snakemake_executor_plugin_runpod"},
        "snakemake_executor_plugin_runpod": {"moe_outliers", "torch"},
    }[package]
    allowed = {"snakemake"} if path == INTERNALS else set()
    assert not (forbidden - allowed) & set(_imports(path))


def test_snakemakes_internals_are_used_by_rule_files_only_and_through_one_module():
    arrows = _arrows("moe_outliers")
    name = "moe_outliers.workflow.snakemake_internals"
    assert not [module for module, others in arrows.items() if name in others]
    documented = {"snakemake.utils"}
    for path in [*RULES, ROOT / "Snakefile"]:
        text = path.read_text()
        assert not re.findall(r"\w\._[a-z]\w*", text), path
        assert set(re.findall(r"^\s*(?:from|import) (snakemake\b[\w.]*)", text, re.M)) <= documented


def test_files_stay_within_their_caps():
    caps = [(ROOT / "Snakefile", 40), (ROOT / "rules/common.smk", 80)]
    caps += [(path, 120) for path in RULES] + [(path, 60) for path in SCRIPTS]
    caps += [(path, 400) for path in MODULES]
    long = {str(p.relative_to(ROOT)): n for p, n in caps if p.read_text().count("\n") > n}
    assert not long


def test_functions_stay_within_their_cap():
    long = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                start = node.body[0].end_lineno if ast.get_docstring(node) else node.lineno
                if node.end_lineno - start > 40:
                    long.append(f"{path.name}: {node.name}")
    assert not long


FLOORS = {
    "moe_outliers": (
        {"__init__"},
        {"extract", "cli"},
        {"run_model", "results"},
        {"engine", "report"},
        {"checkpoint", "demo", "inference"},
        {"recording", "metrics", "verify", "workflow"},
        {"storage"},
        {"stats", "texts", "tokenization", "versions", "progress", "failpoints"},
    ),
    "snakemake_executor_plugin_runpod": (
        {"costs", "__main__", "__init__"},
        {"run"},
        {"commands", "renting", "job"},
        {"context", "remote"},
        {"ledger", "task"},
        {"lease"},
        {"failures", "needs", "settings", "digests"},
        {"api"},
        {"pod", "failpoints", "limits"},
    ),
}
"""The rooms of a package and its modules outside of any, from the top: each imports from lower
floors only."""


def _room(module):
    return [*module.split("."), "__init__"][1]


@cache
def _arrows(package):
    """Return which module of a package imports which, imports inside of functions too."""
    source = PACKAGES[package]
    names = {
        path: ".".join(path.relative_to(source).with_suffix("").parts)
        for path in MODULES
        if source in path.parents
    }
    names = {path: name.removesuffix(".__init__") for path, name in names.items()}
    known, arrows = set(names.values()), {}
    for path, name in names.items():
        arrows[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            assert not getattr(node, "level", 0), f"{name} imports relatively"
            if isinstance(node, ast.ImportFrom) and node.module in known:
                for alias in node.names:
                    module = f"{node.module}.{alias.name}"
                    arrows[name].add(module if module in known else node.module)
            elif isinstance(node, ast.Import):
                arrows[name] |= {alias.name for alias in node.names} & known
    return arrows


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_import_from_lower_floors_only(package):
    floor = {room: number for number, rooms in enumerate(FLOORS[package]) for room in rooms}
    assert set(floor) == {_room(module) for module in _arrows(package)}
    wrong = [
        f"{module} imports {other}"
        for module, others in _arrows(package).items()
        for other in others
        if _room(module) != _room(other) and floor[_room(module)] >= floor[_room(other)]
    ]
    assert not wrong


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_itself_through_others(package):
    TopologicalSorter(_arrows(package)).prepare()  # raises CycleError, which names the circle


def test_one_arrow_leads_to_the_gpu_kernels():
    wall = "moe_outliers.recording.gpu"
    arrows = [
        (module, other)
        for module, others in _arrows("moe_outliers").items()
        for other in others
        if other.startswith(wall) and not module.startswith(wall)
    ]
    assert arrows == [("moe_outliers.recording.choose", "moe_outliers.recording.gpu.batched")]


def _between_rooms():
    """Return which room of the science imports which, those left out that follow from others."""
    above = {}
    for module, others in _arrows("moe_outliers").items():
        above.setdefault(_room(module), set()).update(map(_room, others - {module}))
    above = {room: {other for other in others if other != room} for room, others in above.items()}
    order = list(TopologicalSorter(above).static_order())
    below = {}
    for room in order:
        below[room] = above.get(room, set()).union(*(below[r] for r in above.get(room, ())))
    return {
        (room, other)
        for room, others in above.items()
        for other in others
        if not any(other in below[between] for between in others)
    }


def test_the_picture_of_the_rooms_shows_their_imports():
    (picture,) = re.findall(
        r"```mermaid\n(.*?)```", (ROOT / "docs/architecture.md").read_text(), re.S
    )
    drawn = set(re.findall(r"(\w+) --> (\w+)", re.sub(r"\[.*?\]", "", picture)))
    shown = {room for arrow in drawn for room in arrow}
    rooms = {path.parent.name for path in (SRC / "moe_outliers").glob("*/__init__.py")}
    assert rooms <= shown
    assert drawn == {arrow for arrow in _between_rooms() if shown.issuperset(arrow)}


def test_the_tree_of_the_readme_shows_every_room_and_nothing_else():
    (tree,) = re.findall(r"```text\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    shown, above = set(), ""
    for indent, name in re.findall(r"^( *)([\w./]+)  +\S", tree, re.M):
        above = above if indent else name
        shown.add((above if indent else "") + name)
    assert len(shown) == len(tree.splitlines())
    assert not [name for name in shown if not (ROOT / name).exists()]
    there = {f"src/moe_outliers/{p.parent.name}/" for p in SRC.glob("moe_outliers/*/__init__.py")}
    listed = {name.partition("/")[0] for name in _tracked()}
    there |= {f"{name}/" for name in listed if (ROOT / name).is_dir() and name[0] != "."} - {"src/"}
    assert there <= shown


def _tracked():
    command = ["git", "ls-files"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_rooms_stay_small_enough_to_be_seen_whole():
    top = SRC / "moe_outliers"
    files = [p for p in top.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    rooms = {folder for path in files for folder in path.parents if folder.is_relative_to(top)}
    for room in rooms:
        modules = [p for p in files if p.parent == room and p.suffix == ".py"]
        below = [folder for folder in rooms if folder.parent == room]
        if room == top:
            assert len(below) <= 12
            assert len(modules) <= 10
        else:
            entries = len(below) + len([p for p in modules if p.name != "__init__.py"])
            assert entries <= (21 if room.name == "metrics" else 14), room


def test_no_module_has_a_name_of_the_standard_library():
    names = {name for package in PACKAGES for each in _arrows(package) for name in each.split(".")}
    assert not names & set(sys.stdlib_module_names)


def test_no_name_of_a_module_is_dead():
    """What stands at the top of a module is used by another part of the program than its tests."""
    used = set()
    for path in [*MODULES, *SCRIPTS, ROOT / "docs/generate.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                used.add(node.id)
            elif isinstance(node, ast.Attribute):
                used.add(node.attr)
            elif isinstance(node, ast.ImportFrom):
                used |= {alias.name for alias in node.names}
    for path in [*RULES, ROOT / "Snakefile"]:
        used |= set(re.findall(r"\w+", path.read_text()))
    used |= set(FIGURES)  # each is drawn by the function of its name
    used |= {"PHIMOE", "common_settings"}  # for a test, for Snakemake
    used |= {"__all__", "__getattr__", "__dir__"}  # for Python
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            dead = set(_defined(node)) - used
            assert not dead, f"{path}: {', '.join(dead)} is used by nothing"


def _defined(statement):
    """Name what a statement defines; what a decorator takes is used by it."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield from [] if statement.decorator_list else [statement.name]
    elif isinstance(statement, ast.Assign | ast.AnnAssign):
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id


def test_every_rule_but_extract_runs_on_the_controller():
    for path in [ROOT / "Snakefile", *RULES]:
        for name, body in re.findall(r"^rule (\w+):\n((?:    .*\n|\n)+)", path.read_text(), re.M):
            assert ("localrule: True" in body) == (name != "extract"), name


def test_every_script_is_a_main_around_its_rule_and_imports_no_snakemake():
    for path in SCRIPTS:
        tree = ast.parse(path.read_text())
        assert any(isinstance(n, ast.FunctionDef) and n.name == "main" for n in tree.body), path
        assert 'if __name__ == "__main__":\n    run(main, snakemake' in path.read_text(), path
        called = f'"../scripts/{path.name}"'
        assert sum(called in rules.read_text() for rules in RULES) == 1, path


def test_no_threshold_of_the_science_stands_outside_the_settings():
    """The shares of config/config.yaml are no numbers of a module, and no texts of the report.

    Quartiles are something else; so are shares that are swept, and those of simulated data.
    """
    found = {}
    for path in MODULES:
        tree = ast.parse(path.read_text())
        quartiles = {
            inner
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "quantile"
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            share = isinstance(node, ast.Constant) and node.value in (0.25, 0.06)
            if share and node not in quartiles:
                found.setdefault(path.stem, set()).add(node.value)
        if "report" in path.parts:
            assert not [text for text in _texts(tree) if re.search(r"\.(25|06)\b", text)], path
    others = {"by_threshold": {0.25, 0.06}, "simulate_intervals": {0.25}, "miniatures": {0.06}}
    others["legacy"] = {0.25, 0.06}  # those of 2022, which no setting moves
    assert found == others


def test_every_path_of_a_result_has_one_home_which_says_what_the_rules_say():
    rules = "\n".join(path.read_text() for path in RULES)
    for name, path in vars(paths).items():
        if isinstance(path, str) and path.startswith("results/"):
            assert f'"{path}"' in rules or f"paths.{name}" in rules, name
    spelt = {
        path.relative_to(ROOT).as_posix()
        for path in [*MODULES, *SCRIPTS]
        if any(text.startswith("results/") for text in _texts(ast.parse(path.read_text())))
    }
    assert spelt == {"src/moe_outliers/workflow/paths.py"}


def _texts(tree):
    """Yield every text of a module but its docstrings."""
    said = {n.value for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in said:
            yield node.value


def test_config_readme_documents_every_key_as_its_schema_does_and_no_other():
    schemas = sorted((ROOT / "config/schemas").glob("*.yaml"))
    described = {pair for path in schemas for pair in _described(yaml.safe_load(path.read_text()))}
    readme = (ROOT / "config/README.md").read_text()
    assert set(re.findall(r"^\| `(.+?)` \| (.+) \|$", readme, re.M)) == described


def _described(schema, above=""):
    for key, value in schema.get("properties", {}).items():
        if "description" in value:
            yield f"{above}{key}", " ".join(value["description"].split())
        yield from _described(value, f"{above}{key}.")


def test_no_test_is_content_with_any_crash():
    """A status that the fault of the test itself also gives proves nothing: words must be read."""
    failing = re.compile(r"code == 1$|code != 0$|code in \(0, 1\)$")
    read = re.compile(r"text|said|stderr|stdout|output")
    content = {}
    folders = [ROOT / "tests", ROOT / "packages/snakemake-executor-plugin-runpod/tests"]
    for path in (path for folder in folders for path in folder.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                tests = [ast.unparse(n.test) for n in ast.walk(node) if isinstance(n, ast.Assert)]
                others = [test for test in tests if not failing.search(test)]
                if len(others) < len(tests) and not any(map(read.search, others)):
                    content[node.name] = tests
    assert not content
