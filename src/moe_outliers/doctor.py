"""What is wrong with this machine for a sweep, and how to mend it."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

HUB = "https://huggingface.co"
PATIENCE_S = 10
RESULTS_GB = 5
"""Free disk for the results of the seven models, with room to spare."""


@dataclass(frozen=True)
class Finding:
    """What was looked at.

    Attributes:
        state: `ok`, `warning` (something will not work) or `fault` (nothing will).
        fix: what to do; empty if nothing.
    """

    what: str
    state: str
    found: str
    fix: str = ""


def examine(workflow: Path, directory: Path) -> Iterator[Finding]:
    """Look at everything that a sweep needs.

    Args:
        workflow: the folder of the Snakefile.
        directory: the folder in which results/ lies or will lie.
    """
    checks: list[Callable[[], Finding]] = [
        python,
        lambda: packages(workflow / "envs/constraints.txt"),
        lambda: disk(directory),
        lambda: writable(directory),
        gpu,
        hub,
        ssh,
    ]
    for check in checks:
        yield check()


def python() -> Finding:
    """Check the version of Python."""
    found = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info < (3, 14):
        return Finding("Python", "ok", found)
    return Finding("Python", "fault", found, "use Python 3.11, 3.12 or 3.13: make install PYTHON=…")


def packages(constraints: Path) -> Finding:
    """Compare the installed packages with their pins."""
    pins = re.findall(r"^([\w.-]+)==([^\s;]+)", constraints.read_text(), re.MULTILINE)
    allowed: dict[str, set[str]] = {}
    for name, version in pins:  # a package has several pins where Python versions differ
        allowed.setdefault(name, set()).add(version)
    installed = {name: importlib.metadata.version(name) for name in allowed if _is_installed(name)}
    other = {n: v for n, v in installed.items() if v.partition("+")[0] not in allowed[n]}
    if not other:
        return Finding("packages", "ok", f"{len(installed)} installed, all as pinned")
    listed = ", ".join(f"{name} {version}" for name, version in sorted(other.items())[:5])
    return Finding("packages", "warning", f"not as pinned: {listed}", "make install")


def disk(directory: Path) -> Finding:
    """Check the free disk for results."""
    existing = next(p for p in [directory.resolve(), *directory.resolve().parents] if p.exists())
    free = shutil.disk_usage(existing).free / 1e9
    if free >= RESULTS_GB:
        return Finding("disk", "ok", f"{free:.0f} GB free")
    return Finding("disk", "warning", f"{free:.1f} GB free", f"free {RESULTS_GB} GB for results")


def writable(directory: Path) -> Finding:
    """Check that results can be written."""
    existing = next(p for p in [directory.resolve(), *directory.resolve().parents] if p.exists())
    if os.access(existing, os.W_OK):
        return Finding("results folder", "ok", str(existing))
    return Finding("results folder", "fault", f"{existing}: not writable", "choose --directory")


def gpu() -> Finding:
    """Ask the driver for GPUs."""
    if not shutil.which("nvidia-smi"):
        return Finding(
            "GPU",
            "warning",
            "none here",
            "snakemake --profile runpod rents one; make demo needs none",
        )
    query = "--query-gpu=name,memory.total,driver_version"
    done = subprocess.run(
        ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return Finding(
            "GPU", "fault", done.stdout.strip() or done.stderr.strip(), "mend the driver"
        )
    return Finding("GPU", "ok", "; ".join(done.stdout.strip().splitlines()))


def hub() -> Finding:
    """Reach the model hub, with the token if there is one."""
    where = os.environ.get("HF_ENDPOINT", HUB)
    token = os.environ.get("HF_TOKEN")
    path, headers = ("/api/whoami-v2", {"Authorization": f"Bearer {token}"}) if token else ("/", {})
    try:
        with urllib.request.urlopen(
            urllib.request.Request(where + path, headers=headers), timeout=PATIENCE_S
        ):
            said = "reached, the token is accepted" if token else "reached, without a token"
            return Finding("model hub", "ok", f"{where}: {said}")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return Finding("model hub", "fault", f"{where}: the token is refused", "set HF_TOKEN")
        return Finding("model hub", "warning", f"{where}: HTTP {error.code}", "try again later")
    except OSError as error:
        fix = "check the network; set HF_ENDPOINT for a mirror"
        return Finding("model hub", "warning", f"{where}: {error}", fix)


def ssh() -> Finding:
    """Check that pods can be reached: the SSH client of the runpod extra."""
    if _is_installed("asyncssh"):
        return Finding("SSH", "ok", f"asyncssh {importlib.metadata.version('asyncssh')}")
    return Finding("SSH", "warning", "asyncssh is not installed", "pip install -e '.[runpod]'")


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
