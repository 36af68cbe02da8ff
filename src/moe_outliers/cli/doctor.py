"""Examines whether this machine can run a sweep, and names the fix of each fault."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from moe_outliers.checkpoint import facts
from moe_outliers.workflow import sweep

HUB = "https://huggingface.co"
PATIENCE_S = 10
RESULTS_GB = 5
"""Free disk space for the results of the seven models, with a reserve."""

EXECUTOR = "snakemake_executor_plugin_runpod"
"""It is run as a command: this package imports no executor."""

TORCH = "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.is_available())"


@dataclass(frozen=True)
class Finding:
    """One examination and its outcome.

    Attributes:
        state: `ok`, `warning` (something will not work) or `fault` (nothing will).
        fix: what to do; empty if nothing.
    """

    what: str
    state: str
    found: str
    fix: str = ""


def examine(workflow: Path, directory: Path) -> Iterator[Finding]:
    """Examine everything that a sweep needs.

    Args:
        workflow: the folder of the Snakefile.
        directory: the folder in which results/ lies or will lie.
    """
    yield python()
    yield packages(workflow / "envs/constraints.txt")
    yield settings(workflow)
    yield from rows(workflow)
    yield disk(directory)
    yield writable(directory)
    yield from gpu()
    yield hub()
    yield from runpod(directory)
    yield ssh()


def python() -> Finding:
    """Check the version of Python."""
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info < (3, 14):
        return Finding("Python", "ok", version)
    return Finding(
        "Python", "fault", version, "use Python 3.11, 3.12 or 3.13: make install PYTHON=…"
    )


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


def settings(workflow: Path) -> Finding:
    """Read the settings and the table of models."""
    try:
        loaded = sweep.load(Path(), [], workflow)
    except ValueError as error:
        fix = "mend config/config.yaml: config/README.md explains every key"
        return Finding("settings", "fault", str(error), fix)
    return Finding("settings", "ok", f"{len(loaded.models)} models: {', '.join(loaded.models)}")


def rows(workflow: Path) -> Iterator[Finding]:
    """Compare the rows of the selected models with their checkpoints."""
    try:
        loaded = sweep.load(Path(), [], workflow)
    except ValueError:
        return  # `settings` says it
    table = str(loaded.workflow / loaded.config["table"])
    wrong, unknown = facts.compare(
        loaded.models.values(), lambda path: str(loaded.workflow / path), table
    )
    for line in [line for said in wrong.values() for line in said]:
        told, _, fix = line.rpartition(": ")
        yield Finding("table of models", "fault", told, fix)
    for reason, named in facts.by_reason(unknown).items():
        fix = "run doctor again where the hub can be reached"
        yield Finding("table of models", "warning", f"not compared: {named}: {reason}", fix)
    if not wrong and not unknown:
        said = f"{len(loaded.models)} rows are as their checkpoints"
        yield Finding("table of models", "ok", said)


def disk(directory: Path) -> Finding:
    """Check the free disk for results."""
    existing = next(p for p in [directory.resolve(), *directory.resolve().parents] if p.exists())
    free = shutil.disk_usage(existing).free / 1e9
    if free >= RESULTS_GB:
        return Finding("disk", "ok", f"{free:.0f} GB free")
    return Finding(
        "disk",
        "warning",
        f"{free:.1f} GB free",
        f"free {RESULTS_GB} GB for results, or choose --directory",
    )


def writable(directory: Path) -> Finding:
    """Check that results can be written."""
    existing = next(p for p in [directory.resolve(), *directory.resolve().parents] if p.exists())
    if os.access(existing, os.W_OK):
        return Finding("results folder", "ok", str(existing))
    return Finding("results folder", "fault", f"{existing}: not writable", "choose --directory")


def gpu() -> Iterator[Finding]:
    """Ask the driver for GPUs, and torch whether it can use them."""
    if not shutil.which("nvidia-smi"):
        fix = "snakemake --profile runpod rents one; make demo needs none"
        yield Finding("GPU", "warning", "none here", fix)
        return
    query = "--query-gpu=name,memory.total,driver_version"
    done = _ask(["nvidia-smi", query, "--format=csv,noheader"])
    said = "; ".join(done.stdout.strip().splitlines())
    if done.returncode or not said:
        said = said or done.stderr.strip() or "the driver lists none"
        yield Finding("GPU", "fault", said, "mend the driver until nvidia-smi lists the card")
        return
    yield Finding("GPU", "ok", said)
    done = _ask([sys.executable, "-c", TORCH])
    if done.returncode:
        fix = "pip install -c envs/constraints.txt -e '.[extract]'"
        yield Finding("torch", "fault", "not installed", fix)
        return
    version, cuda, usable = done.stdout.split()
    if usable == "True":
        yield Finding("torch", "ok", f"{version}, CUDA {cuda}")
    elif cuda == "None":
        fix = "install the build for CUDA of the same version: https://pytorch.org/get-started"
        yield Finding("torch", "fault", f"{version} is built for the CPU alone", fix)
    else:
        fix = f"update the driver: it must support CUDA {cuda}"
        yield Finding("torch", "fault", f"{version} for CUDA {cuda} finds no GPU", fix)


def hub() -> Finding:
    """Reach the model hub, with the token if there is one."""
    where = os.environ.get("HF_ENDPOINT", HUB)
    token = os.environ.get("HF_TOKEN")
    try:
        address = where + ("/api/whoami-v2" if token else "/")
        request = urllib.request.Request(address, headers={"User-Agent": "moe-outliers"})
        if token:  # not sent on to a host that a redirection names
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=PATIENCE_S):
            said = "reached, the token is accepted" if token else "reached, without a token"
            return Finding("model hub", "ok", f"{where}: {said}")
    except urllib.error.HTTPError as error:
        if token and error.code in (401, 403):
            fix = f"set HF_TOKEN to a token of {where}/settings/tokens, or unset it"
            return Finding("model hub", "fault", f"{where}: the token is refused", fix)
        return Finding("model hub", "warning", f"{where}: HTTP {error.code}", "try again later")
    except (OSError, ValueError, HTTPException) as error:
        fix = "check the network; set HF_ENDPOINT for a mirror, such as https://hf-mirror.com"
        return Finding("model hub", "warning", f"{where}: {error}", fix)


def runpod(directory: Path) -> Iterator[Finding]:
    """Ask the executor for RunPod: key, balance, offers, pods that may be alive."""
    if not importlib.util.find_spec(EXECUTOR):
        fix = "make install"
        yield Finding("RunPod", "warning", "the executor is not installed", fix)
        return
    done = _ask([sys.executable, "-m", EXECUTOR, "doctor", "--directory", str(directory)])
    findings = re.findall(
        r"^(ok|FAULT) +([^:\n]+): (.*)(?:\n {6}(.*))?$", done.stdout, re.MULTILINE
    )
    for sign, what, said, fix in findings:
        yield Finding(f"RunPod, {what}", "ok" if sign == "ok" else "warning", said, fix)
    if not findings:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        yield Finding("RunPod", "warning", said, f"python -m {EXECUTOR} doctor says more")


def ssh() -> Finding:
    """Check that there is a client to log in to a pod; transfers do not need it."""
    if path := shutil.which("ssh"):
        return Finding("SSH", "ok", path)
    fix = "install openssh-client: runs do without it, logging in to a pod does not"
    return Finding("SSH", "warning", "no client", fix)


def _ask(command: list[str]) -> "subprocess.CompletedProcess[str]":
    """Run a program with a time limit; failing to start or to end is exit status 1."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=6 * PATIENCE_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
