"""Write the parts of the documentation that are made from the code: between two marks, in place.

python docs/generate.py           writes them
python docs/generate.py --check   says which are not up to date
"""

import re
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

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


def guarantees() -> str:
    """List every fault that a test injects, and what is promised."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    from faults import table

    return _text([table()])


PARTS: dict[str, tuple[str, Callable[[], str]]] = {
    "variables": ("statistics-file.md", variables),
    "attributes": ("statistics-file.md", attributes),
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
