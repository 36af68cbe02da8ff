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
    CONSOLE_HEAD,
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
from machine import cuda, disk_free_gb, gpus, is_full, memory_gb, oom_kills, speed

HERE = Path(__file__).resolve().parent
CHUNK = 1 << 20
LOG_PIECE = 1 << 17
LOG_BACKLOG, LOG_TAIL = 1 << 20, 1 << 18
"""Of a console that is so many bytes ahead of what was sent, so many of its end are sent."""


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
        part = path.with_name(".incoming.part")  # no name may grow longer than it is
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
    write_json(folder / "before.json", {"oom_kills": oom_kills()})
    process = detached([sys.executable, str(HERE / "supervisor.py"), str(folder)], console(folder))
    (folder / "pid").write_text(f"{process.pid} {born(process.pid)}")
    return {"started": True}


def poll(request: Json) -> Json:
    """Say how far the job is, and give the next piece of what it printed.

    Of what it printed faster than it is asked for, the middle is left out.
    """
    beat()
    folder = job(request)
    if not (folder / "started").exists():
        return {"phase": "new"}
    state: Json = {"phase": "starting"}
    state.update(read_json(folder / "status.json"))
    state["alive"] = is_alive(folder)
    if state["phase"] == "done" or not state["alive"]:
        state["evidence"] = evidence(folder)
    state["log"], state["offset"], state["more"] = printed(folder, request["offset"])
    return state


def evidence(folder: Path) -> Json:
    """Say what is proven of how the job ended.

    Returns:
        oom_kills: how many processes the kernel has killed since for lack of memory; None if it
        does not count them. full: whether the disk was seen to be full.
    """
    before, after = read_json(folder / "before.json").get("oom_kills"), oom_kills()
    killed = None if before is None or after is None else after - before
    return {"oom_kills": killed, "full": (folder / "full").exists() or is_full(folder)}


def printed(folder: Path, offset: int) -> tuple[str, int, bool]:
    """Return what was printed from an offset on, the next offset, and whether there is more."""
    try:
        with console(folder).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            piece, behind = b"", size - offset > LOG_BACKLOG
            if not (behind and offset >= CONSOLE_HEAD):  # else it may be off the disk
                file.seek(offset)
                piece = file.read(LOG_PIECE)
                offset += len(piece)
            if behind:
                left_out = size - LOG_TAIL - offset
                note = f"\n[... {left_out} bytes of the console are left out ...]\n"
                piece, offset = piece + note.encode(), size - LOG_TAIL
    except OSError:
        return "", offset, False
    return piece.decode(errors="replace"), offset, offset < size


def manifest(request: Json) -> Json:
    """List what there is of some products: files with size and sha256, links and folders.

    A link inside a folder that is a product is listed as it is, unless it leads out of the working
    directory: that, like a product that is such a link itself, is refused by name.
    """
    folder = job(request)
    known = read_json(folder / "digests.json")
    found: list[Json] = []
    refused: list[Json] = []
    for product in request["products"]:
        for path, below in parts_of(folder, product):
            entry: Json = {"product": product, "below": below}
            with suppress(FileNotFoundError):  # it is gone again, or is a link to nothing
                listed = describe(folder, path, entry, known)
                (refused if "out" in listed else found).append(listed)
    write_json(folder / "digests.json", known)
    return {"entries": found, "refused": refused, "now_ns": time.time_ns()}


def describe(folder: Path, path: Path, entry: Json, known: Json) -> Json:
    """Describe a file, link or folder of a product; with `out` if it is a link that leads out."""
    entry["mtime_ns"] = path.lstat().st_mtime_ns
    if entry["below"] and path.is_symlink():
        target = str(path.readlink())
        if leads_out(folder, path, target):
            return dict(entry, out=target)
        return dict(entry, kind="link", link=target)
    if not is_inside(folder, path):
        return dict(entry, out=str(path.resolve()))
    state = path.stat()
    entry["mode"] = stat.S_IMODE(state.st_mode)
    if stat.S_ISDIR(state.st_mode):
        return dict(entry, kind="folder")
    if not stat.S_ISREG(state.st_mode):
        raise FileNotFoundError(path)  # a pipe or socket is no file
    return dict(entry, kind="file", size=state.st_size, sha256=digest_of(path, state, known))


def digest_of(path: Path, state: os.stat_result, known: Json) -> str:
    """Return the sha256 of a file; one that is known is not read again."""
    key, mark = str(path), [state.st_size, state.st_mtime_ns]
    if known.get(key, {}).get("mark") != mark:
        with path.open("rb") as file, Path(os.devnull).open("wb") as nowhere:
            known[key] = {"mark": mark, "sha256": copy(file, nowhere, state.st_size)}
    return str(known[key]["sha256"])


def get(request: Json) -> None:
    """Send files: for each, exactly as many bytes as were asked for."""
    folder = job(request)
    for product, below, size in request["files"]:
        path, left = Path(work(folder), product, below), size
        if path.is_file() and is_inside(folder, path):
            with path.open("rb") as file:
                while left and (piece := file.read(min(CHUNK, left))):
                    sys.stdout.buffer.write(piece)
                    left -= len(piece)
                    beat()
        while left:  # it shrank: the digest will tell
            piece = bytes(min(CHUNK, left))
            sys.stdout.buffer.write(piece)
            left -= len(piece)
    beat()


def parts_of(folder: Path, product: str) -> Iterator[tuple[Path, str]]:
    """Yield a product and, if it is a folder, all that is in it, with the names below it.

    The tree is walked once; links in it are not followed.
    """
    path = work(folder) / product
    if not path.exists() and not path.is_symlink():
        return
    yield path, ""
    if not path.is_dir() or not is_inside(folder, path):
        return
    for place, folders, files in os.walk(path):
        for name in sorted([*folders, *files]):
            each = Path(place, name)
            yield each, each.relative_to(path).as_posix()


def is_inside(folder: Path, path: Path) -> bool:
    """Tell whether a path lies in the job's folder, wherever links lead."""
    root = (folder / "root").resolve()
    return root in path.resolve().parents


def leads_out(folder: Path, path: Path, target: str) -> bool:
    """Tell whether a link would lead out of the working directory, here or at home."""
    there = Path(os.path.normpath(path.parent / target))
    return Path(target).is_absolute() or work(folder) not in (there, *there.parents)


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
