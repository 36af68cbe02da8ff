"""Docstrings whose sections a program can read: a broken one loses what a caller must know."""

import re

import griffe
import pytest
from support.snake import ROOT

SOURCES = [ROOT / "src", ROOT / "packages/snakemake-executor-plugin-runpod/src"]
SECTIONS = {"args": "parameters"} | {n: n for n in ("returns", "yields", "raises", "attributes")}
"""Kinds of section, by the word that begins one."""

EXCEPTIONS = re.compile(r"\(?[A-Z]\w*(, [A-Z]\w*)*\)?")


def documented(thing):
    """Go through all below a module that has a docstring: modules, classes, functions."""
    for member in thing.members.values():
        if not member.is_alias:
            if member.docstring and not member.is_attribute:
                yield member
            yield from documented(member)


def faults(thing):
    """Say what is wrong with the sections of a docstring, in words."""
    sections = {s.kind.value: s for s in thing.docstring.parse("google", warnings=False)}
    for word in re.findall(r"^ *(\w+):", thing.docstring.value, re.MULTILINE):
        if SECTIONS.get(word.lower(), "text") not in {*sections, "text"}:
            yield f"{word}: the section is lost"
    for kind in SECTIONS.values() & sections.keys():
        entries = sections[kind].value
        if sections[kind].title:
            yield f"{kind}: an entry stands beside the word: {sections[kind].title}"
        if kind == "parameters" and thing.is_function:
            taken = {parameter.name.lstrip("*") for parameter in thing.parameters}
            if unknown := {entry.name.lstrip("*") for entry in entries} - taken:
                yield f"{kind}: it takes no {', '.join(sorted(unknown))}"
        if kind == "raises":
            named = [str(entry.annotation) for entry in entries]
            yield from (
                f"{kind}: {n} is no exception" for n in named if not EXCEPTIONS.fullmatch(n)
            )
        if any(not entry.description for entry in entries):
            yield f"{kind}: an entry without a description"


@pytest.mark.parametrize("package", ["moe_outliers", "snakemake_executor_plugin_runpod"])
def test_the_sections_of_every_docstring_can_be_read(package):
    module = griffe.load(package, search_paths=SOURCES, resolve_aliases=False)
    found = {thing.path: list(faults(thing)) for thing in documented(module)}
    assert not {path: wrong for path, wrong in found.items() if wrong}


@pytest.mark.parametrize(
    "section",
    [
        "Raises: ValueError: if it lacks tensors, or some have\n        another shape.",
        "Returns: One row a sequence,\n        of SCHEMA.",
        "Args:\n        folder: where it lies.\n        dtype: to compute with.",
        "Raises:\n        If it lacks tensors: ValueError.",
    ],
)
def test_a_broken_section_is_found(section):
    code = f'def load(folder):\n    """Load.\n\n    {section}\n    """\n'
    with griffe.temporary_visited_module(code) as module:
        (function,) = documented(module)
        assert list(faults(function))
