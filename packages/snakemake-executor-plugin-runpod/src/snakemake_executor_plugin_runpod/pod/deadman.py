"""Ends the pod that it runs in when its controller is silent for too long, or it is too old.

Nothing at RunPod does this: a pod whose controller is gone is billed for ever. This program starts
with the container, needs nothing but Python, and tries until it succeeds.

usage: python3 deadman.py GRACE_S LIFETIME_S
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

HOME = Path(os.environ.get("SNAKEMAKE_RUNPOD_HOME") or Path.home() / ".snakemake-runpod")
HEARTBEAT = HOME / "heartbeat"
STATE = HOME / "deadman.json"
BASE = "https://api.runpod.io"
NOBODY = "nosuchpod"

AGENT = "snakemake-executor-plugin-runpod"
"""How every request names its sender: RunPod's edge refuses Python's own name (403, error 1010)."""


def variables() -> dict[str, str]:
    """Return the container's variables: those of process 1, which a login by SSH does not get."""
    try:
        raw = Path("/proc/1/environ").read_bytes().decode(errors="replace")
    except OSError:
        raw = ""
    first = dict(entry.split("=", 1) for entry in raw.split("\0") if "=" in entry)
    return {**first, **os.environ}


def ask(method: str, address: str, key: str, body: Any = None) -> tuple[int, str]:
    """Send one request; return status and text. Raises OSError if there was no answer."""
    data = None if body is None else json.dumps(body).encode()
    headers = {
        "Authorization": "Bearer " + key,
        "Content-Type": "application/json",
        "User-Agent": AGENT,
    }
    request = urllib.request.Request(address, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read(10000).decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read(10000).decode(errors="replace")


def run(*words: str) -> tuple[int, str]:
    """Run a command with the container's variables; return exit status and what it printed."""
    done = subprocess.run(
        words,
        env=variables(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=20,
        check=False,
    )
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


def ways(pod: str) -> Iterator[tuple[str, Callable[[], tuple[int, str]]]]:
    """Yield every way to end a pod: its name, and a function that returns a status and text."""
    known = variables()
    base = known.get("RUNPOD_API_BASE_URL", BASE)
    key = known.get("RUNPOD_API_KEY", "")
    query = f'mutation {{ podTerminate(input: {{podId: "{pod}"}}) }}'
    yield "rest-v2", lambda: ask("DELETE", base + "/v2/pods/" + pod, key)
    yield "graphql", lambda: ask("POST", base + "/graphql", key, {"query": query})
    yield "runpodctl", lambda: run("runpodctl", "remove", "pod", pod)


def knows_no_pod(way: str, status: int, text: str) -> bool:
    """Tell whether an answer says that there is no such pod, as only who may end pods is told.

    A 404 alone does not: an address that is not served any more gives one to everybody, so that who
    sends a wrong key must hear something else.
    """
    if way == "runpodctl":
        return "pod not found" in text.lower()
    with suppress(ValueError, TypeError, AttributeError, KeyError):
        answer = json.loads(text)
        if way == "graphql":
            said = [str(error["message"]).lower() for error in answer["errors"]]
            return status == 200 and any("pod not found" in message for message in said)
        base = variables().get("RUNPOD_API_BASE_URL", BASE)
        wrong = ask("DELETE", base + "/v2/pods/" + NOBODY, "no-key")
        return status == 404 and isinstance(answer, dict) and wrong[0] in (401, 403)
    return False


def probe() -> dict[str, str]:
    """Ask in every way to end a pod that does not exist: who may end pods is told so."""
    found = {}
    for name, end in ways(NOBODY):
        try:
            status, text = end()
        except FileNotFoundError:
            found[name] = "refused: not installed"
        except Exception as error:  # a broken answer too is none
            found[name] = f"no answer: {error}"
        else:
            said = " ".join(text.split())[:100]
            good = knows_no_pod(name, status, text)
            found[name] = "authorised" if good else f"refused: {status} {said}".strip()
    return found


def end(pod: str) -> None:
    """Try every way once; success shows by this process ending with its pod."""
    for _, terminate in ways(pod):
        with suppress(Exception):  # nothing may stop the tries
            terminate()


def save(state: dict[str, Any]) -> None:
    """Write the state where a login by SSH finds it."""
    part = STATE.with_suffix(".part")
    with suppress(OSError):
        part.write_text(json.dumps(state))
        part.replace(STATE)


def born() -> float:
    """Return when the container first started: one that restarts gets no second life."""
    file, now = HOME / "born", time.time()
    with suppress(OSError, ValueError):
        return float(file.read_text())
    with suppress(OSError):
        file.write_text(repr(now))
    return now


def watch(grace: float, lifetime: float) -> None:
    """Wait until the controller has been silent for `grace` seconds, or the pod is too old."""
    began = born()
    with suppress(OSError):  # a full disk must not end the watch
        HEARTBEAT.touch()
    tick = min(5.0, grace / 20)
    state: dict[str, Any] = {
        "pid": os.getpid(),
        "grace_s": grace,
        "lifetime_s": lifetime,
        "probe": probe(),
    }
    save(state)
    beat, heard = 0, time.monotonic()
    while time.monotonic() - heard < grace and time.time() - began < lifetime:
        time.sleep(tick)
        if "authorised" not in state["probe"].values():
            state["probe"] = probe()
            save(state)
        with suppress(OSError):
            latest = HEARTBEAT.stat().st_mtime_ns
            if latest != beat:
                beat, heard = latest, time.monotonic()


def main() -> None:
    """Watch, then end the pod; one such process a container is enough."""
    HOME.mkdir(parents=True, exist_ok=True)
    lock = (HOME / "deadman.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    grace, lifetime = float(sys.argv[1]), float(sys.argv[2])
    watch(grace, lifetime)
    pause = min(5.0, grace / 10)
    while True:
        end(variables().get("RUNPOD_POD_ID", ""))
        time.sleep(pause)
        pause = min(pause * 2, 60.0)


if __name__ == "__main__":
    main()
