"""Runs Python so that it can read only what a pod would have too.

usage: python guard.py ROOT -m MODULE ARGUMENTS…
"""

import os
import runpy
import site
import sys
import tempfile
from pathlib import Path
from typing import Any


def allowed(root: str) -> tuple[str, ...]:
    """Return the folders below which everything may be read, wherever they lie."""
    home = os.path.expanduser("~")  # noqa: PTH111 - compared as text
    cache = os.environ.get("XDG_CACHE_HOME", f"{home}/.cache")
    python = {sys.prefix, sys.base_prefix, sys.exec_prefix, *site.getsitepackages()}
    python.add(site.getusersitepackages())
    system = {"/usr", "/lib", "/lib64", "/etc", "/proc", "/sys", "/dev", "/opt", "/run", "/var/lib"}
    own = {root, cache, str(Path(__file__).resolve().parents[1])}
    folders = {os.path.realpath(folder) for folder in python | system | own}
    return tuple(f"{folder}/" for folder in folders | python)


def guard(root: str) -> None:
    """Refuse to read files that lie elsewhere and are no temporary files of this process."""
    prefixes = allowed(root)
    temporary = os.path.realpath(tempfile.gettempdir())
    before = {entry.name for entry in os.scandir(temporary)}

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not isinstance(arguments[0], str | bytes):
            return
        path = os.path.normpath(Path.cwd() / os.fsdecode(arguments[0]))
        writes = bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if writes or path.startswith(prefixes) or not os.path.isfile(path):  # noqa: PTH113
            return
        inside = path.removeprefix(f"{temporary}/")
        if inside == path or inside.split("/")[0] in before:
            raise FileNotFoundError(f"{path} would not be on the pod")

    sys.addaudithook(watch)


if __name__ == "__main__":
    _, root, _, module, *rest = sys.argv
    sys.argv = [module, *rest]
    guard(root)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
