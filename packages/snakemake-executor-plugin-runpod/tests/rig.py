"""A project of three rules, run by the literal `snakemake --profile runpod` on emulated pods."""

import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from canaries import CANARIES, spilt
from emulator.client import Account, Emulator

PROJECT = Path(__file__).with_name("project")
PYTHON = Path(sys.prefix, "bin/python")
TIME_SCALE = "0.02"
CANARY = CANARIES["HF_TOKEN"]
"""The token of every run: it and the key of the account may be found nowhere."""


@dataclass
class Said:
    """What a run printed, and its exit status."""

    code: int
    text: str

    @property
    def jobs(self) -> dict[str, int]:
        """How many jobs of each rule the run has."""
        table = self.text.partition("Job stats:")[2].partition("\n\n")[0]
        return {name: int(n) for name, n in re.findall(r"^(\w+) +(\d+)$", table, re.M)}


class Project:
    """A copy of the project in a folder of its own, with an account of its own.

    Attributes:
        folder: of the Snakefile; results go there too.
        python: of the environment that Snakemake runs in.
    """

    def __init__(self, folder: Path, emulator: Emulator, **account: Any) -> None:
        self.folder = folder
        self.account: Account = emulator.account(f"key-{secrets.token_hex(8)}", **account)
        self.variables: dict[str, str] = {}
        self.python = PYTHON
        self.said: Said | None = None
        shutil.copytree(PROJECT, folder, symlinks=True)
        self.commit()

    def move(self, folder: Path) -> None:
        """Move it elsewhere."""
        shutil.move(self.folder, folder)
        self.folder = folder

    def overlay(self, **settings: Any) -> tuple[str, str]:
        """Write settings that lie over the project's; return the words that name them to a run."""
        path = self.folder / "overlay.json"
        path.write_text(json.dumps(settings))
        return ("--configfile", str(path))

    def slow(self, seconds: float) -> tuple[str, str]:
        """Let the work on each part take so many seconds; see `overlay`."""
        return self.overlay(count={"seconds": seconds})

    def commit(self) -> None:
        """Let git know every file that is there now."""
        for words in (["init", "-q"], ["add", "-A"]):
            subprocess.run(["git", *words], cwd=self.folder, check=True, capture_output=True)

    def rehearse(self) -> None:
        """Let the plugin try the staged files out; most tests save the time."""
        profile = self.folder / "profile.yaml"
        lines = profile.read_text().splitlines(keepends=True)
        profile.write_text("".join(line for line in lines if "no-rehearsal" not in line))

    def environment(self) -> dict[str, str]:
        """Return the variables of a run: those of a person, and where the emulator is."""
        names = ("PATH", "HOME", "LANG", "TMPDIR", "XDG_CACHE_HOME")
        kept = {name: os.environ[name] for name in names if name in os.environ}
        scale = {"SNAKEMAKE_RUNPOD_TIME_SCALE": TIME_SCALE, "PYTHONPATH": str(self.folder / "src")}
        token = {"HF_TOKEN": CANARY}
        return kept | scale | token | self.account.environment() | self.variables

    def start(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        """Start a run in a session of its own."""
        return subprocess.Popen(
            [str(self.python), "-m", "snakemake", "--profile", "runpod", *arguments],
            cwd=self.folder,
            env=self.environment() | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def __call__(self, *arguments: str, timeout: float = 120, **environment: str) -> Said:
        """Run to the end."""
        process = self.start(*arguments, **environment)
        return self.finish(process, timeout)

    def finish(self, process: "subprocess.Popen[str]", timeout: float = 120) -> Said:
        """Wait for the end of a run."""
        try:
            text, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            text, _ = process.communicate()
            raise AssertionError(f"no end after {timeout} s:\n{text[-5000:]}") from None
        assert CANARY not in text
        assert self.account.key not in text
        return Said(process.returncode, text)

    def spilt(self, *more: str) -> list[str]:
        """Name the files here that hold a secret."""
        return spilt(self.folder, "", CANARY, self.account.key, *more)

    def digests(self) -> dict[str, str]:
        """Hash the results."""
        paths = [self.folder / "report.json", *sorted((self.folder / "counts").rglob("*.json"))]
        return {
            str(path.relative_to(self.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in paths
            if path.exists()
        }

    def leftovers(self) -> list[str]:
        """Return temporary files that were left behind."""
        return [str(p) for p in self.folder.rglob("*.part") if ".git" not in p.parts]

    def ledger(self) -> list[dict[str, Any]]:
        """Return the entries of the ledger."""
        path = self.folder / ".snakemake/runpod/ledger.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]

    def ledger_so_far(self) -> list[dict[str, Any]]:
        """Return the entries of a ledger that may not be there yet, or be written to."""
        try:
            return self.ledger()
        except (FileNotFoundError, ValueError):
            return []

    def ends_like(self, other: "Project", said: Said, pods: int | None = None) -> None:
        """Check that a run came to the same results, that nothing is left, and every fault fired.

        Args:
            other: what was not disturbed.
            said: what the last run printed.
            pods: how many pods there must have been.
        """
        assert said.code == 0, said.text[-6000:]
        assert self.digests() == other.digests(), said.text[-6000:]
        assert not self.leftovers()
        found = self.account.change()
        assert not found["alive"], said.text[-6000:]
        assert all(fault["fired"] for fault in found["faults"]), found["faults"]
        assert pods in (None, len(found["pods"])), said.text[-6000:]
        assert found["bill"] < 1

    def log(self, text: str = "alpha") -> str:
        """Return the log of a counting job."""
        return (self.folder / f"logs/{text}.log").read_text()


def wait_until(what: Any, patience: float = 30) -> Any:
    """Wait until a function returns something true, and return that."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come true in {patience} s")
