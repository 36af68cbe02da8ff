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
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from snakemake_executor_plugin_runpod.lease import Lease, intended, is_sound

FOLDER = Path(".snakemake/runpod")
RECIPES = "recipes"

PREFIX = "snakemake"
"""With it begins the name of every pod."""

Json = dict[str, Any]


class Ledger:
    """Reads and writes the book.

    Attributes:
        leases: every attempt by the name of its pod, in order.
        run: names this controller.
        account: digest of the account whose pods are asked about; see `Lease`.
        keyed: digest of the API key in use; empty while there is none.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder
        self.run = secrets.token_hex(4)
        self.account = self.keyed = ""
        self.leases: dict[str, Lease] = {}
        self._path = folder / "ledger.jsonl"
        self._file: TextIO | None = None
        self._lock: TextIO | None = None
        for entry in self._entries():
            self._apply(entry)
        copied = [name for name, lease in self.leases.items() if not self._is_of_here(lease)]
        for name in copied:
            del self.leases[name]

    @property
    def home(self) -> str:
        """What this folder is known by: its ledger's inode, which moves with it, and its place."""
        try:
            inode = self.folder.stat().st_ino
        except OSError:
            inode = 0
        return f"{inode}@{self._place}"

    @property
    def _place(self) -> str:
        return f"{socket.gethostname()}:{os.path.realpath(self.folder.parent.parent)}"

    def _is_of_here(self, lease: Lease) -> bool:
        """Tell whether a pod is of this folder, and not of one that this is a copy of."""
        if not lease.home:  # of an earlier version: a machine that is not rented has no price
            return lease.name.startswith(self.prefix) or not lease.rate
        inode, _, place = lease.home.partition("@")
        if lease.home == self.home or inode == self.home.partition("@")[0] or place == self._place:
            return True
        host, _, folder = place.partition(":")
        if host != socket.gethostname():
            return False
        try:
            return str(Path(folder, FOLDER).stat().st_ino) != inode
        except OSError:
            return True  # it has moved here from there

    def know(self, key: str, account: str | None) -> None:
        """Learn whose pods are asked about, before any is asked for.

        Args:
            key: of the API.
            account: what the API calls the account; None where it does not tell.
        """
        self.keyed = self.seal(key)[:16]
        self.account = hashlib.sha256(account.encode()).hexdigest()[:16] if account else ""

    def is_foreign(self, lease: Lease) -> bool:
        """Tell whether a pod may be of another account than that of the key in use.

        Of such a pod it proves nothing that this key does not see it.
        """
        if not (self.keyed and lease.keyed) or lease.keyed == self.keyed:
            return False
        return not (self.account and lease.account == self.account)

    @property
    def prefix(self) -> str:
        """With what the names of the pods of this working directory begin."""
        return f"{PREFIX}-{hashlib.sha256(self._place.encode()).hexdigest()[:8]}-"

    def command(self, words: str) -> str:
        """Return a command line of this package for the folder of this ledger, to be copied."""
        folder = shlex.quote(os.path.realpath(self.folder.parent.parent))
        return f"python -m snakemake_executor_plugin_runpod {words} --directory {folder}"

    def claim(self) -> str | None:
        """Become the one writer.

        Returns:
            None, or who it is already: process, host and since when.
        """
        make(self.folder)
        lock = (self.folder / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            return lock.read().strip() or "a process that is just starting"
        heard = os.fstat(lock.fileno()).st_mtime
        lock.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        lock.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
        lock.flush()
        self._lock = lock  # held until this process ends, however it ends
        wanted = {self._recipe(lease.fingerprint) for lease in self.open_leases()}
        for path in set((self.folder / RECIPES).glob("*")) - wanted:
            path.unlink(missing_ok=True)
        self.bound(heard)
        return None

    def beat(self) -> None:
        """Tell the next controller that this one was there at this time."""
        if self._lock is not None:
            os.utime(self._lock.fileno())

    def bound(self, heard: float) -> None:
        """Write down when pods must have ended themselves that last heard from here at that time.

        They are not billed after it; one that is seen later is reckoned on from there.
        """
        for lease in self.open_leases():
            ends = lease.grace_s and lease.switched is not False
            if lease.created and lease.dies is None and ends:
                dies = max(heard, lease.created) + lease.grace_s
                with suppress(OSError):  # a full disk must not end the watch
                    self.write("silent", lease.name, dies=dies)

    def write(self, event: str, name: str, **facts: Any) -> Lease:
        """Add an entry; it is on disk when this returns.

        Raises:
            OSError: if the disk does not take it. What has happened is known here all the same;
                an intent is not, and must not be acted on.
        """
        entry = {"event": event, "name": name, "time": round(time.time(), 3), **facts}
        if not is_sound(entry):
            raise ValueError(f"{entry} is no entry of the ledger")
        if event != "intent":
            self._apply(entry)
        if self._file is None:
            make(self.folder)
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
        make(self.folder)  # it must be there to be known
        who = {"account": self.account, "keyed": self.keyed, "home": self.home}
        return self.write("intent", name, run=self.run, **who, **facts)

    def supersede(self, key: str) -> None:
        """Write down that what earlier attempts at a job have made is not used again."""
        for lease in self.leases.values():
            if lease.key == key and lease.products is not None and not lease.superseded:
                self.write("superseded", lease.name)

    def seal(self, text: str) -> str:
        """Return a digest of a secret that only who can read this folder could make."""
        path = self.folder / "seal"
        if not path.exists() or not path.stat().st_size:
            make(self.folder)
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
        """Return the attempts that may have a living pod, of all jobs or of one.

        Those of another account are left out: this key can neither see nor end them.
        """
        return [
            lease
            for lease in self.leases.values()
            if lease.open and (key is None or lease.key == key) and not self.is_foreign(lease)
        ]

    def foreign_leases(self) -> list[Lease]:
        """Return those that may have a living pod in another account."""
        return [x for x in self.leases.values() if x.open and self.is_foreign(x)]

    def spent(self, run: str | None = None, since: float = 0.0) -> float:
        """Return the dollars that pods have cost so far.

        Args:
            run: only those of one run.
            since: seconds since the epoch; what they cost before that is left out.
        """
        now = time.time()
        chosen = (x for x in self.leases.values() if run is None or x.run == run)
        return sum(lease.cost(now, since) for lease in chosen)

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
            if is_sound(entry):
                yield entry

    def _apply(self, entry: Json) -> None:
        event, name = entry["event"], entry["name"]
        if event == "intent":
            self.leases[name] = intended(entry)
        if lease := self.leases.get(name):
            lease.apply(entry)


def make(folder: Path) -> None:
    """Make the folder of a ledger; git ignores it, for it holds keys."""
    folder.mkdir(parents=True, exist_ok=True)
    ignore = folder / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n")
