"""Write the parts of the documentation that are made from the code: between two marks, in place.

python docs/generate.py           writes them
python docs/generate.py --check   says which are not up to date
"""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PLUGIN = "../packages/snakemake-executor-plugin-runpod"
sys.path.insert(0, str(HERE.parent / "src"))

MARK = "<!-- made by docs/generate.py: {} -->\n"
END = "<!-- end -->\n"


def variables() -> str:
    """List the variables of a statistics file."""
    from moe_outliers.storage.statistics_file import VARIABLES

    rows = ["| variable | axes | type | meaning |", "| --- | --- | --- | --- |"]
    rows += [
        f"| `{name}` | {', '.join(v.dims)} | {v.dtype} | {v.meaning} |"
        for name, v in VARIABLES.items()
    ]
    return _text(rows)


def attributes() -> str:
    """List the global attributes of a statistics file."""
    from moe_outliers.storage.statistics_file import ATTRIBUTES

    return _text([", ".join(f"`{name}`" for name in ATTRIBUTES)])


def settings() -> str:
    """List the options of the executor."""
    from snakemake_executor_plugin_runpod.settings import ExecutorSettings

    rows = ["| option, and key of a profile | default | meaning |", "| --- | --- | --- |"]
    for field in fields(ExecutorSettings):
        default = "none" if field.default is None else f"`{field.default}`"
        name = f"`--runpod-{field.name.replace('_', '-')}`"
        rows.append(f"| {name} | {default} | {field.metadata['help']} |")
    return _text(rows)


def api() -> str:
    """Describe every function and class of the public face."""
    import moe_outliers

    lines = []
    for name in moe_outliers.__all__:
        thing = getattr(moe_outliers, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            lines += _described(f"mo.{name}", thing, 2)
        parts = vars(thing).items() if inspect.isclass(thing) else ()
        for part, member in parts:
            if part.startswith("_"):
                continue
            if isinstance(member, property | cached_property):
                lines += [f"### `{name}.{part}`", "", inspect.getdoc(member) or "", ""]
            elif inspect.isfunction(member):
                lines += _described(f"{name}.{part}", member, 3)
    return _text(lines[:-1])


def _described(name: str, thing: Any, level: int) -> list[str]:
    """Write a heading, the signature and the docstring, its sections as lists."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(thing))).body
    lines = [f"{'#' * level} `{name}`", ""]
    if isinstance(node, ast.FunctionDef):
        lines += ["```python", *_signature(name, node), "```", ""]
    for line in (inspect.getdoc(thing) or "").splitlines():
        entry = re.match(r" {4}(\w+): (.*)", line)
        if heading := re.fullmatch(r"(Args|Returns|Raises|Attributes):", line):
            section = heading[1]
            lines += [f"*{section}*", ""]
        elif entry and section != "Returns":
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        else:
            lines.append(re.sub(r"^ {8}", "  ", line) if line[:8].isspace() else line.strip())
    return [*lines, ""]


def _signature(name: str, function: ast.FunctionDef) -> list[str]:
    """Write a signature with one parameter a line, without `self`."""
    parameters, arguments = [], function.args
    required = len(arguments.args) - len(arguments.defaults)
    defaults: list[ast.expr | None] = [*[None] * required, *arguments.defaults]
    for argument, default in zip(arguments.args, defaults, strict=True):
        parameters += [_parameter(argument, default)] if argument.arg != "self" else []
    parameters += ["*"] if arguments.kwonlyargs else []
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        parameters.append(_parameter(argument, default))
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return [f"{name}(", *(f"    {each}," for each in parameters), f"){returns}"]


def _parameter(argument: ast.arg, default: ast.expr | None) -> str:
    kind = f": {ast.unparse(argument.annotation)}" if argument.annotation else ""
    return f"{argument.arg}{kind}" + (f" = {ast.unparse(default)}" if default else "")


def guarantees() -> str:
    """List every fault that a test injects, and what is promised."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    from support.faults import table

    return _text([table()])


PARTS: dict[str, tuple[str, Callable[[], str]]] = {
    "variables": ("statistics-file.md", variables),
    "attributes": ("statistics-file.md", attributes),
    "api": ("api.md", api),
    "settings": (f"{PLUGIN}/docs/further.md", settings),
    "guarantees": ("guarantees.md", guarantees),
}


def main() -> int:
    """Write or check every part."""
    stale = []
    for name, (file, make) in PARTS.items():
        path = HERE / file
        text = path.read_text(encoding="utf-8")
        pattern = re.escape(MARK.format(name)) + ".*?" + re.escape(END)
        found = re.findall(pattern, text, re.S)
        if len(found) != 1:
            raise ValueError(f"{path}: has {len(found)} parts {name!r}, must have one")
        new = text.replace(found[0], MARK.format(name) + make() + END)
        if new != text:
            stale.append(f"{file}: {name}")
            if "--check" not in sys.argv:
                path.write_text(new, encoding="utf-8")
    if stale and "--check" in sys.argv:
        print("not up to date, run python docs/generate.py:", "; ".join(stale))
        return 1
    return 0


def _text(lines: list[str]) -> str:
    return "\n" + "\n".join(lines) + "\n\n"


if __name__ == "__main__":
    sys.exit(main())
