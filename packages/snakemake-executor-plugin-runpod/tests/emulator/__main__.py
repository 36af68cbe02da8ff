"""Runs the emulator until its standard input is closed.

usage: python -m emulator --folder FOLDER [--boot-s S]
       python -m emulator -- COMMAND…   runs COMMAND against it, then prints the bill

EMULATED_DAY=without-graphql makes it a day on which the old API answers 410, and pods end
themselves by REST v2.
"""

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from emulator.host import Host
from emulator.server import Server
from emulator.state import Store

PDEATHSIG = 1
KEY = "emulated-key"


def main() -> int:
    """Serve, or serve a command; return its exit status."""
    parser = argparse.ArgumentParser(prog="emulator")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--boot-s", type=float, default=0.2)
    parser.add_argument("command", nargs="*")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ctypes.CDLL(None).prctl(PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    with tempfile.TemporaryDirectory(prefix="pods-") as temporary:
        folder = given.folder or Path(temporary)
        store = Store(time.time)
        server = Server(store)
        host = Host(store, folder, server.url, boot_s=given.boot_s)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            if given.command:
                return serve(given.command, store, server.url)
            print(json.dumps({"url": server.url}), flush=True)
            sys.stdin.read()
        finally:
            host.close()
    return 0


def serve(command: list[str], store: Store, url: str) -> int:
    """Run a command against the emulator; fail if it leaves pods."""
    account = store.account(KEY)
    if os.environ.get("EMULATED_DAY") == "without-graphql":
        account.retired = account.rest_for_pods = True
    env = os.environ | {"RUNPOD_API_BASE_URL": url, "RUNPOD_API_KEY": KEY}
    process = subprocess.Popen(command, env=env)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command gets it too
    code = process.wait()
    pods, alive = len(account.pods), len(account.alive())
    print(f"emulated RunPod: {pods} pods, {alive} alive, bill ${store.bill(account):.4f}")
    return code or (1 if alive else 0)


if __name__ == "__main__":
    sys.exit(main())
