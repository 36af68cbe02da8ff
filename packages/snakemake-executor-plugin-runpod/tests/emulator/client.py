"""Starts an emulator in a process of its own, and asks it what happened."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]


class Emulator:
    """A running emulator; it ends with this process, however that ends.

    Attributes:
        url: what RUNPOD_API_BASE_URL must be.
    """

    def __init__(self, folder: Path, *, boot_s: float = 0.2) -> None:
        words = [sys.executable, "-m", "emulator", "--folder", str(folder)]
        words += ["--boot-s", str(boot_s)]
        self._process = subprocess.Popen(
            words,
            cwd=TESTS,
            env=os.environ | {"PYTHONPATH": str(TESTS)},
            stdin=subprocess.PIPE,  # it ends when this is closed
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout
        self.url: str = json.loads(self._process.stdout.readline())["url"]

    def close(self) -> None:
        """End it and all its pods."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=30)

    def account(self, key: str, **changes: Any) -> "Account":
        """Return an account of its own for a test, by its API key."""
        account = Account(self.url, key)
        account.change(**changes)
        return account


class Account:
    """One account of an emulator: what a test sets, and what happened."""

    def __init__(self, url: str, key: str) -> None:
        self.url, self.key = url, key

    def change(self, **changes: Any) -> dict[str, Any]:
        """Add faults (`faults=[dict, …]`), end pods (`terminate=[id]`), or set an attribute."""
        data = json.dumps(changes).encode()
        address = f"{self.url}/_emulator/{self.key}"
        with urllib.request.urlopen(urllib.request.Request(address, data), timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def __getattr__(self, name: str) -> Any:
        """Return what happened: alive, pods, bill, faults, calls, moments, peak."""
        if name.startswith("_"):
            raise AttributeError(name)
        return self.change()[name]

    def rent(self, body: dict[str, Any]) -> str:
        """Create a pod by REST, as another program of the account's owner would; return its id."""
        headers = {
            "Authorization": f"Bearer {self.key}",
            "Content-Type": "application/json",
            "User-Agent": "RunPod-Python-SDK/1.12.1",
        }
        request = urllib.request.Request(
            f"{self.url}/v2/pods", json.dumps(body).encode(), headers, method="POST"
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: str = json.load(answer)["id"]
        return found

    def environment(self) -> dict[str, str]:
        """Return the variables that send a controller here."""
        return {"RUNPOD_API_BASE_URL": self.url, "RUNPOD_API_KEY": self.key}
