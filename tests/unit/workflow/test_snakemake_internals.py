"""A Snakemake that lacks a private name is refused in one sentence, before anything is done."""

import ast
import pkgutil
import re
import subprocess
import sys
import tomllib

import pytest
import snakemake.api  # noqa: F401 - its other modules can only be imported after it
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from snakemake.exceptions import WorkflowError
from snakemake.persistence.file import FilePersistence
from support.snake import ROOT

from moe_outliers.workflow import snakemake_internals
from moe_outliers.workflow.snakemake_internals import NAMES, TESTED


def test_this_snakemake_has_every_name():
    snakemake_internals.check()


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_gone_is_told_with_the_versions_that_work(name, monkeypatch):
    module, _, within = name.partition(":")
    *owner, last = within.split(".")
    where = pkgutil.resolve_name(f"{module}:{'.'.join(owner)}" if owner else module)
    monkeypatch.delattr(where, last)
    with pytest.raises(WorkflowError) as told:
        snakemake_internals.check()
    assert name in str(told.value)
    assert f"pip install snakemake=={TESTED[1]}" in str(told.value)


def test_a_module_that_is_gone_is_told_too(monkeypatch):
    monkeypatch.setitem(sys.modules, "snakemake.persistence.file", None)
    with pytest.raises(WorkflowError, match="_mark_incomplete"):
        snakemake_internals.check()


def test_every_private_name_that_is_used_is_checked():
    checked = {name.rpartition(".")[2].rpartition(":")[2] for name in NAMES}
    tree = ast.parse((ROOT / "src/moe_outliers/workflow/snakemake_internals.py").read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {name for name in used if name.startswith("_")} - {"_store"} <= checked
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("snakemake.")
        for alias in node.names
    }
    owners = {part for name in NAMES for part in name.partition(":")[2].split(".")}
    assert imported - {"WorkflowError"} <= owners


WITHOUT = """
import sys
from snakemake.cli import main
from snakemake.persistence import PersistenceBase
from snakemake.persistence.file import FilePersistence

FilePersistence._erase_mark = FilePersistence._unmark_incomplete
PersistenceBase._erase_mark = lambda store, key: None
del FilePersistence._unmark_incomplete, PersistenceBase._unmark_incomplete
FilePersistence.__abstractmethods__ = frozenset()
main(sys.argv[1:])
"""
"""Snakemake as it would be if it gave a private method another name."""


def test_a_renamed_private_name_stops_snakemake_with_a_sentence(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, "--list", "--directory", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "has no snakemake.persistence.file:FilePersistence._unmark_incomplete" in done.stderr
    assert f"It works with Snakemake {TESTED[0]} to {TESTED[1]}" in done.stderr
    assert "AttributeError" not in done.stderr
    assert not (tmp_path / ".snakemake/moe-outliers").exists()


def test_the_versions_that_are_said_to_work_are_those_that_are_tried():
    """`make oldest-snakemake` takes the least that pyproject.toml allows, pins have the newest."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (allowed,) = [line for line in project["dependencies"] if line.startswith("snakemake>")]
    specifier = SpecifierSet(allowed.removeprefix("snakemake"))
    (least,) = [part.version for part in specifier if part.operator == ">="]
    assert Version(least) == Version(TESTED[0])
    assert all(specifier.contains(version) for version in TESTED)
    pins = (ROOT / "envs/constraints.txt").read_text()
    assert re.findall(r"^snakemake==(\S+)", pins, re.M) == [TESTED[1]]


def test_a_value_error_is_shown_as_snakemakes_own():
    with pytest.raises(WorkflowError, match="a fault and its fix"), snakemake_internals.errors():
        raise ValueError("a fault and its fix")


def test_marks_are_those_that_snakemake_reads(tmp_path):
    folder = tmp_path / ".snakemake"
    marks = snakemake_internals.Marks(folder)
    marks.add("a.nc")
    marks.add("b.nc")
    marks.remove("b.nc")
    marks.remove("c.nc")
    store = FilePersistence(nolock=True, path=folder)
    store._mark_incomplete("d.nc", "pod-1")
    assert store._filter_incomplete_keys(["a.nc", "b.nc", "c.nc", "d.nc"]) == {"a.nc", "d.nc"}
    assert not marks.names_a_job("a.nc")
    assert not marks.names_a_job("c.nc")
    assert marks.names_a_job("d.nc")
