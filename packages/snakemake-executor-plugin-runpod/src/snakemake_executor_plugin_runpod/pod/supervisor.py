"""Runs one job on a pod: makes its Python environment, starts it, waits, and says how it ended.

usage: python3 supervisor.py FOLDER, the job's folder with spec.json and secrets.json
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from deadman import variables
from folder import CONSOLE_HEAD, CONSOLE_TAIL, HOME, Json, console, read_json, write_json
from machine import is_full

PYTHONS = ("python3.12", "python3.13", "python3.11", "python3")
NOT_FOR_JOBS = ("RUNPOD_API_KEY", "PUBLIC_KEY", "HF_TOKEN")
TIMED_OUT = 124
LOOK_S = 5.0

PUNCH_HOLE = 3
"""Of fallocate(2): free a range, and keep the size of the file."""


class UnusableError(Exception):
    """The environment could not be made."""


class UnfitError(UnusableError):
    """It cannot be made on any host: the image or the requirements are not fit for the job."""


def environment(spec: Json) -> Path:
    """Return the Python environment of the job, and make it first if it is not there."""
    ready = variables().get("SNAKEMAKE_RUNPOD_ENVIRONMENT")
    if ready:
        return Path(ready)
    requirements = spec["requirements"]
    folder: Path = HOME / "environments" / hashlib.sha256(requirements.encode()).hexdigest()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            build(folder, requirements)
            (folder / "complete").touch()
    return folder


def build(folder: Path, requirements: str) -> None:
    """Make a virtual environment and install the requirements."""
    check = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))"
    for python in PYTHONS:
        if shutil.which(python) and run(python, "-c", check) == 0:
            break
    else:
        raise UnfitError("the image has no Python 3.11 or later with venv")
    listed = folder.with_suffix(".txt")
    listed.write_text(requirements)
    pip = str(folder / "bin/python"), "-m", "pip", "--disable-pip-version-check"
    if run(python, "-m", "venv", str(folder)):
        raise UnusableError("python -m venv failed")
    if run(*pip, "install", "--no-input", "--progress-bar", "off", "-r", str(listed)):
        raise UnusableError("pip could not install the requirements")


def run(*words: str) -> int:
    """Run a command whose output goes to the console."""
    return subprocess.run(words, stdin=subprocess.DEVNULL, check=False).returncode


def received() -> int:
    """Return the bytes that came in by network since the machine started."""
    total = 0
    for line in Path("/proc/net/dev").read_text().splitlines()[2:]:
        name, _, numbers = line.partition(":")
        if name.strip() != "lo":
            total += int(numbers.split()[0])
    return total


def check_version(python: Path, wanted: str) -> None:
    """Check that the job gets the controller's version of Snakemake: its arguments depend on it."""
    code = "from importlib.metadata import version; print(version('snakemake'))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    found = done.stdout.strip()
    if found != wanted:
        raise UnfitError(
            "the environment has Snakemake {}, not {}".format(found or "nowhere", wanted)
        )


def variables_of(spec: Json, folder: Path, python: Path) -> dict[str, str]:
    """Return the variables of the job's process; secrets are read and their file removed."""
    kept = {name: value for name, value in variables().items() if name not in NOT_FOR_JOBS}
    paths = [str(folder / "root" / path) for path in spec["pythonpath"]]
    kept["PYTHONPATH"] = os.pathsep.join(paths + [p for p in [kept.get("PYTHONPATH")] if p])
    kept["PATH"] = os.pathsep.join([str(python.parent), kept.get("PATH", os.defpath)])
    kept["VIRTUAL_ENV"] = str(python.parent.parent)
    kept.update(spec["variables"])
    secrets = read_json(folder / "secrets.json")
    (folder / "secrets.json").unlink()
    token = secrets.pop("HF_TOKEN_FILE", None)
    if token:
        path = folder / "hf_token"
        path.touch(mode=0o600)
        path.write_text(token)
        kept["HF_TOKEN_PATH"] = str(path)
    kept.update(secrets)
    return kept


def supervise(folder: Path) -> Json:
    """Run the job to its end; return its exit status and how long each part took."""
    spec = read_json(folder / "spec.json")
    state: Json = {"phase": "environment", "since": time.time(), "seconds": {}, "pid": None}
    write_json(folder / "status.json", state)
    begun, bytes_before = time.monotonic(), received()
    try:
        python = environment(spec) / "bin/python"
        check_version(python, spec["snakemake"])
    except (UnusableError, OSError) as error:
        own = isinstance(error, UnfitError)
        return dict(state, phase="failed", own=own, error=f"no Python environment: {error}")
    state["seconds"]["environment"] = time.monotonic() - begun
    state["environment_bytes"] = received() - bytes_before
    state.update(phase="running", since=time.time())
    begun = time.monotonic()
    known = variables_of(spec, folder, python)
    directory = folder / "root" / spec["directory"]
    directory.mkdir(parents=True, exist_ok=True)
    # Debian's bash takes a process below sshd for a login: its .bashrc may choose another Python.
    words = ["bash", "--norc", "-c", spec["command"]]
    process = subprocess.Popen(words, cwd=str(directory), env=known, start_new_session=True)
    write_json(folder / "status.json", dict(state, pid=process.pid))
    code = wait(process, folder, spec["limit_s"])
    if code is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        code = TIMED_OUT
        state["error"] = "it ran longer than its limit of %.0f minutes" % (spec["limit_s"] / 60)
    state["seconds"]["run"] = time.monotonic() - begun
    state["code"] = code if code >= 0 else 128 - code
    (folder / "hf_token").unlink(missing_ok=True)
    return dict(state, phase="done", since=time.time())


def wait(process: subprocess.Popen[bytes], folder: Path, limit_s: float) -> int | None:
    """Wait for a job, and look after its disk; return its exit status, None if it takes too long.

    What is written down when the disk is full is evidence: who fails then may tidy up before it
    ends. Of a long console the middle is given back to the file system.
    """
    end = time.monotonic() + limit_s
    while True:
        try:
            return process.wait(timeout=max(0.01, min(LOOK_S, end - time.monotonic())))
        except subprocess.TimeoutExpired:
            if time.monotonic() >= end:
                return None
        if is_full(folder):
            with suppress(OSError):
                (folder / "full").touch()
        with suppress(OSError, AttributeError):  # not every C library has it
            hollow(console(folder))


def hollow(path: Path) -> None:
    """Give the middle of a long file back to the file system; it reads as zeros then."""
    middle = path.stat().st_size - CONSOLE_HEAD - CONSOLE_TAIL
    if middle > CONSOLE_TAIL:
        with path.open("r+b") as file:
            offset, size = ctypes.c_int64(CONSOLE_HEAD), ctypes.c_int64(middle)
            ctypes.CDLL(None).fallocate64(file.fileno(), PUNCH_HOLE, offset, size)


def main() -> None:
    """Supervise the job of the folder that is named."""
    folder = Path(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # what a job knows stays out of core dumps
    try:
        state = supervise(folder)
    except Exception as error:  # whatever it is, the controller must hear of it
        state = {"phase": "failed", "error": f"{type(error).__name__}: {error}"}
    write_json(folder / "status.json", state)


if __name__ == "__main__":
    main()
