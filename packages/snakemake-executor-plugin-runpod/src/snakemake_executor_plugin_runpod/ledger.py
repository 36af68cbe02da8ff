"""The book of every pod that was asked for, written before it is asked for.

One JSON object a line, synchronised to disk line by line, in the folder `.snakemake/runpod` of the
working directory. Whatever happens to this process, the next one reads from it which pods may be
alive, what they were for, and what they have cost.
"""

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import shlex
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

FOLDER = Path(".snakemake/runpod")
RECIPES = "recipes"

PREFIX = "snakemake"
"""With it begins the name of every pod."""

EVENTS = {
    "intent": ("key", "title", "fingerprint", "run", "gpu", "gpus", "rate", "outputs"),
    "created": (),
    "phase": (),
    "fetched": ("products",),
    "superseded": (),
    "silent": ("dies",),
    "terminating": (),
    "gone": (),
    "refused": (),
    "kept": (),
}
"""What an entry may tell, and the facts that it must come with."""

Json = dict[str, Any]


@dataclass
class Lease:
    """One attempt to have one pod for one job, as the ledger tells it.

    Attributes:
        name: of the pod, unique to this attempt.
        key: of the job; `title` is its name for people.
        fingerprint: of what the job computes; a pod is taken over for an equal one only.
        run: of the controller that asked for it.
        rate: dollars an hour, once it is known; before that what was quoted.
        id: of the pod; None while it is not known whether there is one.
        host_key: of its sshd, from the first login on.
        ended: when the service accepted to end it; None while it may be billed.
        dies: when it must have ended itself, having heard nothing; None while it hears from here.
        gone: it is proven that there is no such pod any more, or that there never was.
        products: digests of the outputs that were fetched whole, by path; None before that.
        superseded: what it made is not used again: Snakemake knows of it, or wants it anew.
    """

    name: str
    key: str
    title: str
    fingerprint: str
    run: str
    gpu: str
    gpus: int
    rate: float
    asked: float
    outputs: list[str]
    id: str | None = None
    created: float | None = None
    host_key: str | None = None
    machine: str | None = None
    phase: str = "asked for"
    ended: float | None = None
    dies: float | None = None
    gone: bool = False
    refused: bool = False
    kept: bool = False
    products: dict[str, str] | None = None
    superseded: bool = False

    @property
    def job(self) -> str:
        """The job's name on its machine: another one if it computes something else."""
        return f"{self.key}-{self.fingerprint[:12]}"

    @property
    def open(self) -> bool:
        """Whether a pod of this name may be alive."""
        return not (self.gone or self.refused)

    def cost(self, now: float) -> float:
        """Return the dollars that it has cost until now; an estimate, not RunPod's bill."""
        if self.created is None:
            return 0.0
        end = min(self.ended or now, self.dies or now)
        return self.rate * max(0.0, end - self.created) / 3600


class Ledger:
    """Reads and writes the book.

    Attributes:
        leases: every attempt by the name of its pod, in order.
        run: names this controller.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder
        self.run = secrets.token_hex(4)
        self.leases: dict[str, Lease] = {}
        self._path = folder / "ledger.jsonl"
        self._file: TextIO | None = None
        self._lock: TextIO | None = None
        for entry in self._entries():
            self._apply(entry)

    @property
    def prefix(self) -> str:
        """With what the names of the pods of this working directory begin."""
        where = f"{socket.gethostname()}:{os.path.realpath(self.folder.parent.parent)}"
        return f"{PREFIX}-{hashlib.sha256(where.encode()).hexdigest()[:8]}-"

    def command(self, words: str) -> str:
        """Return a command line of this package for the folder of this ledger, to be copied."""
        folder = shlex.quote(os.path.realpath(self.folder.parent.parent))
        return f"python -m snakemake_executor_plugin_runpod {words} --directory {folder}"

    def claim(self) -> str | None:
        """Become the one writer.

        Returns:
            None, or who it is already: process, host and since when.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = (self.folder / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            return lock.read().strip() or "a process that is just starting"
        lock.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        lock.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
        lock.flush()
        self._lock = lock  # held until this process ends, however it ends
        wanted = {self._recipe(lease.fingerprint) for lease in self.open_leases()}
        for path in set((self.folder / RECIPES).glob("*")) - wanted:
            path.unlink(missing_ok=True)
        return None

    def write(self, event: str, name: str, **facts: Any) -> Lease:
        """Add an entry; it is on disk when this returns.

        Raises:
            OSError: if the disk does not take it. What has happened is known here all the same;
                an intent is not, and must not be acted on.
        """
        entry = {"event": event, "name": name, "time": round(time.time(), 3), **facts}
        if not _is_sound(entry):
            raise ValueError(f"{entry} is no entry of the ledger")
        if event != "intent":
            self._apply(entry)
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a", encoding="utf-8")
            if self._path.stat().st_size:
                self._file.write("\n")  # behind a line that a crash may have cut
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        if event == "intent":
            self._apply(entry)
        return self.leases[name]

    def intend(self, name: str, **facts: Any) -> Lease:
        """Write down that a pod is about to be asked for."""
        return self.write("intent", name, run=self.run, **facts)

    def supersede(self, key: str) -> None:
        """Write down that what earlier attempts at a job have made is not used again."""
        for lease in self.leases.values():
            if lease.key == key and lease.products is not None and not lease.superseded:
                self.write("superseded", lease.name)

    def seal(self, text: str) -> str:
        """Return a digest of a secret that only who can read this folder could make."""
        path = self.folder / "seal"
        if not path.exists() or not path.stat().st_size:
            self.folder.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            path.write_bytes(secrets.token_bytes(32))
        return hmac.new(path.read_bytes(), text.encode(), "sha256").hexdigest()

    def keep_recipe(self, fingerprint: str, recipe: Json) -> None:
        """Keep what a fingerprint was made of, for as long as a pod may be at work on it."""
        path = self._recipe(fingerprint)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(recipe))
        part.replace(path)

    def recipe(self, fingerprint: str) -> Json | None:
        """Return what a fingerprint was made of; None if it is not known any more."""
        try:
            found = json.loads(self._recipe(fingerprint).read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _recipe(self, fingerprint: str) -> Path:
        return self.folder / RECIPES / f"{fingerprint[:32]}.json"

    def open_leases(self, key: str | None = None) -> list[Lease]:
        """Return the attempts that may have a living pod, of all jobs or of one."""
        return [
            lease
            for lease in self.leases.values()
            if lease.open and (key is None or lease.key == key)
        ]

    def spent(self, run: str | None = None) -> float:
        """Return the dollars that the pods of a run have cost so far; of all runs without one."""
        now = time.time()
        chosen = (x for x in self.leases.values() if run is None or x.run == run)
        return sum(lease.cost(now) for lease in chosen)

    def _entries(self) -> Iterable[Json]:
        try:
            text = self._path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return
        for line in filter(str.strip, text.split("\n")):
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # cut by a crash: nothing had been done yet that it announces
            if _is_sound(entry):
                yield entry

    def _apply(self, entry: Json) -> None:
        event, name, when = entry["event"], entry["name"], entry["time"]
        if event == "intent":
            facts = {fact: entry[fact] for fact in EVENTS["intent"]}
            self.leases[name] = Lease(name, asked=when, **facts)
        lease = self.leases.get(name)
        if lease is None:
            return
        if event == "created":
            lease.created = lease.created or lease.asked
            if not lease.open:  # it turned up after all
                lease.gone, lease.refused, lease.ended = False, False, None
            _update(lease, entry, "id", "rate", "machine", "run", "fingerprint")
        elif event == "phase":
            _update(lease, entry, "phase", "host_key", "rate", "machine", "fingerprint")
        elif event == "fetched":
            lease.products = entry["products"]
        elif event == "silent":
            lease.dies = entry["dies"]
        elif event == "terminating":
            lease.ended = lease.ended or when
        elif event in ("gone", "refused"):
            setattr(lease, event, True)
            lease.ended = lease.ended or when
        elif event in ("kept", "superseded"):
            setattr(lease, event, True)


def _is_sound(entry: Any) -> bool:
    """Tell whether an entry is one that `Ledger._apply` understands."""
    return (
        isinstance(entry, dict)
        and entry.get("event") in EVENTS
        and isinstance(entry.get("name"), str)
        and isinstance(entry.get("time"), int | float)
        and isinstance(entry.get("rate", 0.0), int | float | None)
        and entry.keys() >= set(EVENTS[entry["event"]])
    )


def _update(lease: Lease, entry: Json, *names: str) -> None:
    for name in names:
        if entry.get(name) is not None:
            setattr(lease, name, entry[name])
