"""The rules of the house that a reader relies on."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from moe_outliers.workflow import paths

ROOT = Path(__file__).parents[2]
RULES = sorted((ROOT / "rules").glob("*.smk"))
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
MODULES = sorted((ROOT / "src").rglob("*.py"))


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_neither_package_imports_the_other_and_the_science_imports_no_executor(path):
    package = path.relative_to(ROOT / "src").parts[0]
    forbidden = {
        "moe_outliers": {"snakemake", "runpod", "snakemake_executor_plugin_runpod"},
        "snakemake_executor_plugin_runpod": {"moe_outliers", "torch"},
    }[package]
    assert not forbidden & set(_imports(path))


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
    shares = re.compile(r"=\s*0?\.(?:25|06)\b")
    assert not [p for p in MODULES if shares.search(p.read_text())]


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
