"""What the controller asks of a pod: one command a login, a JSON request on standard input.

The answer begins with a line that repeats the request's nonce, so that whatever a login shell
prints before it does no harm. A job has a folder of its own below HOME/jobs, and runs detached: a
lost connection stops nothing, and whoever comes back finds its state in that folder.

usage: python3 agent.py COMMAND < request
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from deadman import variables
from folder import (
    HOME,
    Json,
    beat,
    born,
    console,
    inside,
    is_alive,
    job,
    read_json,
    work,
    write_json,
)
from machine import cuda, disk_free_gb, gpus, memory_gb, speed

HERE = Path(__file__).resolve().parent
CHUNK = 1 << 20
LOG_PIECE = 1 << 17


def hello(request: Json) -> Json:
    """Say what this machine is, and see to it that its dead-man's switch is on."""
    beat()
    known = variables()
    if request.get("switch"):
        grace, lifetime = request["switch"]
        start_switch(grace, lifetime)
    state = read_json(HOME / "deadman.json")
    return {
        "pod": known.get("RUNPOD_POD_ID"),
        "name": known.get("SNAKEMAKE_RUNPOD_POD"),
        "python": sys.version.split()[0],
        "environment": known.get("SNAKEMAKE_RUNPOD_ENVIRONMENT"),
        "switch": state,
        "gpus": gpus(),
        "cuda": cuda(),
        "disk_free_gb": disk_free_gb(HOME),
        "memory_gb": memory_gb(known),
    }


def start_switch(grace: float, lifetime: float) -> None:
    """Start the dead-man's switch, unless the container's start command did."""
    script = HOME / "deadman.py"
    if not script.exists():
        shutil.copy(HERE / "deadman.py", script)
    detached([sys.executable, str(script), str(grace), str(lifetime)], HOME / "deadman.log")


def detached(words: list[str], log: Path, **more: Any) -> subprocess.Popen[bytes]:
    """Start a process that outlives this login."""
    with log.open("ab") as file:
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            **more,
        )


def missing(request: Json) -> Json:
    """Say which of the files that a job needs are not here yet, or not whole."""
    root, have = job(request) / "root", verified(request)
    lacking = []
    for index, (name, kind, size, digest) in enumerate(request["files"]):
        path = inside(root, name)
        if kind == "link":
            whole = path.is_symlink() and str(path.readlink()) == digest
        else:
            state = path.lstat() if path.exists() else None
            whole = state is not None and have.get(name) == [digest, size, state.st_mtime_ns]
        if not whole:
            lacking.append(index)
    return {"missing": lacking}


def put(request: Json) -> Json:
    """Receive files: their bytes follow the request one after the other."""
    root, have, bad = job(request) / "root", verified(request), []
    for name, kind, size, digest in request["files"]:
        path = inside(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or kind == "link":
            path.unlink(missing_ok=True)
        if kind == "link":
            inside(root, str(Path(name).parent / digest))
            path.symlink_to(digest)
            continue
        part = path.with_name(path.name + ".part")
        with part.open("wb") as file:
            received = copy(sys.stdin.buffer, file, size)
        if received != digest:
            part.unlink()
            bad.append(name)
            continue
        part.chmod(0o755 if kind == "program" else 0o644)
        part.replace(path)
        have[name] = [digest, size, path.lstat().st_mtime_ns]
    write_json(job(request) / "verified.json", have)
    return {"bad": bad}


def copy(source: BinaryIO, target: BinaryIO, size: int) -> str:
    """Copy exactly so many bytes; return their sha256."""
    digest = hashlib.sha256()
    while size:
        piece = source.read(min(CHUNK, size))
        if not piece:
            raise EOFError("the connection ended within a file")
        digest.update(piece)
        target.write(piece)
        size -= len(piece)
        beat()  # a long transfer is no silence
    return digest.hexdigest()


def start(request: Json) -> Json:
    """Start the job, once: whoever asks again is told that it was started."""
    folder = job(request)
    try:
        (folder / "started").touch(exist_ok=False)
    except FileExistsError:
        return {"started": False}
    secrets = folder / "secrets.json"
    secrets.touch(mode=0o600)
    secrets.write_text(json.dumps(request.pop("secrets", {})))
    write_json(folder / "spec.json", request)
    process = detached([sys.executable, str(HERE / "supervisor.py"), str(folder)], console(folder))
    (folder / "pid").write_text(f"{process.pid} {born(process.pid)}")
    return {"started": True}


def poll(request: Json) -> Json:
    """Say how far the job is, and give the next piece of what it printed."""
    beat()
    folder = job(request)
    if not (folder / "started").exists():
        return {"phase": "new"}
    state: Json = {"phase": "starting"}
    state.update(read_json(folder / "status.json"))
    state["alive"] = is_alive(folder)
    try:
        with console(folder).open("rb") as file:
            file.seek(request["offset"])
            piece = file.read(LOG_PIECE)
    except OSError:
        piece = b""
    state["log"] = piece.decode(errors="replace")
    state["offset"] = request["offset"] + len(piece)
    return state


def manifest(request: Json) -> Json:
    """List the products that exist, by the names that were asked for, with size and sha256."""
    folder = job(request)
    known = read_json(folder / "digests.json")
    found: list[Json] = []
    for product in request["products"]:
        for path, below in files_of(folder, product):
            state = path.stat()
            key, mark = str(path), [state.st_size, state.st_mtime_ns]
            if known.get(key, {}).get("mark") != mark:
                with path.open("rb") as file, Path(os.devnull).open("wb") as nowhere:
                    digest = copy(file, nowhere, state.st_size)
                known[key] = {"mark": mark, "sha256": digest}
            entry = {"product": product, "below": below, "size": mark[0], "mtime_ns": mark[1]}
            found.append(dict(entry, sha256=known[key]["sha256"]))
    folders = [p for p in request["products"] if (work(folder) / p).is_dir()]
    write_json(folder / "digests.json", known)
    return {"files": found, "folders": folders, "now_ns": time.time_ns()}


def get(request: Json) -> None:
    """Send files: for each, exactly as many bytes as were asked for."""
    folder = job(request)
    for product, below, size in request["files"]:
        paths = {b: p for p, b in files_of(folder, product)}
        left = size
        if below in paths:
            with paths[below].open("rb") as file:
                while left and (piece := file.read(min(CHUNK, left))):
                    sys.stdout.buffer.write(piece)
                    left -= len(piece)
                    beat()
        while left:  # it shrank: the digest will tell
            piece = bytes(min(CHUNK, left))
            sys.stdout.buffer.write(piece)
            left -= len(piece)
    beat()


def files_of(folder: Path, product: str) -> Iterator[tuple[Path, str]]:
    """Yield the regular files of a product and, for a folder, their names below it."""
    root = (folder / "root").resolve()
    path = work(folder) / product
    if not path.exists():
        return
    inside(root, os.path.relpath(path.resolve(), root))
    if path.is_file():
        yield path, ""
        return
    for each in sorted(path.rglob("*")):
        inside(root, os.path.relpath(each.resolve(), root))
        if stat.S_ISREG(each.stat().st_mode):
            yield each, each.relative_to(path).as_posix()


def stop(request: Json) -> Json:
    """End a job and forget it: only a machine that is not ours alone needs this."""
    folder = job(request)
    if is_alive(folder):
        pids = [
            (folder / "pid").read_text().split()[0],
            read_json(folder / "status.json").get("pid"),
        ]
        for pid in filter(None, pids):
            with suppress(ProcessLookupError):
                os.killpg(int(pid), signal.SIGKILL)
    if request.get("keep"):
        folder.rename(folder.with_name(f"{folder.name}.failed-{int(time.time())}"))
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return {}


def verified(request: Json) -> Json:
    """Return what was received whole: digest, size and time by name."""
    return read_json(job(request) / "verified.json")


COMMANDS = {
    each.__name__: each for each in (hello, speed, missing, put, start, poll, manifest, get, stop)
}


def main() -> None:
    """Read a request, answer it."""
    request = json.loads(sys.stdin.buffer.readline())
    sys.stdout.buffer.write(("\n{}\n".format(request["nonce"])).encode())
    try:
        answer = COMMANDS[sys.argv[1]](request)
    except (OSError, ValueError, EOFError) as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    if answer is not None:
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
