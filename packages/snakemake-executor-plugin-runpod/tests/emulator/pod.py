"""The process of one pod: an SSH server with its own home, variables and tree of processes.

It ends, with everything that was started in it, when the emulator ends: by a pipe, and by the
kernel's signal for a parent's death.
"""

import asyncio
import ctypes
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncssh
import psutil

LATER = ("denied", "moves", "new-key")
"""Faults that change the SSH server after a while."""

PDEATHSIG, SUBREAPER = 1, 36
PIECE = 1 << 16


def run(config: dict[str, Any], pipe: Any) -> None:
    """Be the pod until it is killed."""
    libc = ctypes.CDLL(None)
    libc.prctl(PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    libc.prctl(SUBREAPER, 1, 0, 0, 0)
    os.setsid()
    signal.signal(signal.SIGTERM, lambda *_: end())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(Pod(config, pipe.send).serve())


def end() -> None:
    """Kill everything that was started here, then this process."""
    kill_below(os.getpid())
    os._exit(0)


def kill_below(pid: int) -> None:
    """Kill all descendants of a process; those whose parents die come to it and die too."""
    with suppress(psutil.Error):
        parent = psutil.Process(pid)
        while children := [
            p for p in parent.children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE
        ]:
            for child in children:
                with suppress(psutil.Error):
                    child.kill()
            time.sleep(0.005)


def new_key() -> Any:
    """Make a key of a host or a user."""
    return asyncssh.generate_private_key("ssh-ed25519")


class Pod:
    """One pod, from the start of its container."""

    def __init__(self, config: dict[str, Any], tell: Callable[[Any], None]) -> None:
        self.home = Path(config["home"])
        self.env: dict[str, str] = config["env"]
        self.config, self.tell = config, tell
        self.connections: set[Any] = set()
        self.faults: list[dict[str, Any]] = config["faults"]

    async def serve(self) -> None:
        """Start the container's command and the SSH server."""
        self.home.mkdir(parents=True, exist_ok=True)
        key, self.user = new_key(), self.env["PUBLIC_KEY"]
        later = next((fault for fault in self.faults if fault["kind"] in LATER), None)
        denied = later is not None and later["kind"] == "denied"
        stranger = new_key().export_public_key().decode()
        await self.listen(0, key, stranger if denied else self.user)
        if later is not None:
            self.later = asyncio.ensure_future(self.change(later, key))
        if self.config["start"]:
            await self.spawn(self.config["start"], asyncio.subprocess.DEVNULL)
        await self.watch()

    async def listen(self, port: int, key: Any, user: str) -> None:
        """Start the SSH server with a host key, for the owner of a public key."""
        self.server = await asyncssh.listen(
            "127.0.0.1",
            port,
            server_host_keys=[key],
            authorized_client_keys=asyncssh.import_authorized_keys(user),
            process_factory=self.handle,
            allow_scp=True,
            sftp_factory=lambda chan: asyncssh.SFTPServer(chan, chroot=str(self.home).encode()),
            encoding=None,
            keepalive_interval=0,
            line_editor=False,
        )
        self.tell(("port", self.server.get_port()))

    async def change(self, fault: dict[str, Any], key: Any) -> None:
        """Let sshd start again after a while: elsewhere, with another key, or knowing the user."""
        await asyncio.sleep(fault["value"])
        self.strike(fault)
        port = 0 if fault["kind"] == "moves" else self.server.get_port()
        self.server.close()
        for connection in self.connections:
            connection.abort()
        await self.server.wait_closed()
        await self.listen(port, new_key() if fault["kind"] == "new-key" else key, self.user)

    async def spawn(self, command: str, pipes: int) -> asyncio.subprocess.Process:
        """Start a command in the pod."""
        return await asyncio.create_subprocess_exec(
            "bash",
            "-c",
            command,
            stdin=pipes,
            stdout=pipes,
            stderr=pipes,
            cwd=self.home,
            env=self.env,
            start_new_session=True,
        )

    async def watch(self) -> None:
        """Wait for what happens to the pod by itself, and bury what died in it."""
        begun = time.monotonic()
        while True:
            await asyncio.sleep(0.05)
            for fault in self.faults:
                if fault["kind"] in ("die", "freeze", "wipe") and not fault["fired"]:
                    after, pattern = fault["after"], fault["file"]
                    due = after is not None and time.monotonic() - begun > after
                    if due or (pattern and any(self.home.glob(pattern))):
                        self.strike(fault)

    def strike(self, fault: dict[str, Any]) -> None:
        """Let a fault happen."""
        fault["fired"] += 1
        self.tell(("fired", fault["kind"]))
        if fault["kind"] == "die":
            self.tell(("died", None))
        if fault["kind"] == "wipe":
            shutil.rmtree(self.home / ".snakemake-runpod/jobs", ignore_errors=True)
        if fault["kind"] == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)

    def fault_of(self, command: str) -> dict[str, Any] | None:
        """Return the fault that a command sets off."""
        import re

        for fault in self.faults:
            if fault["at"] and fault["fired"] < fault["times"] and re.search(fault["at"], command):
                if fault["skip"] > 0:
                    fault["skip"] -= 1
                    continue
                return fault
        return None

    async def handle(self, session: Any) -> None:
        """Run one command of a login."""
        command = session.command or "exec bash -l"
        self.connections.add(session.channel.get_connection())
        if noise := next((fault for fault in self.faults if fault["kind"] == "noise"), None):
            self.strike(noise)
            session.stdout.write(b'\x1b[1mWelcome\x1b[0m \xff\xfe\r\n{"nonce": 1}\n' * 3)
        fault = self.fault_of(command)
        process = await self.spawn(command, asyncio.subprocess.PIPE)
        into = asyncio.ensure_future(self.feed(session, process, fault))
        errors = asyncio.ensure_future(self.drain(process.stderr, session.stderr, None))
        try:
            await self.drain(process.stdout, session.stdout, fault)
            code = await process.wait()
            await errors
            with suppress(BrokenPipeError, ConnectionError, asyncssh.Error):
                session.exit(code if code >= 0 else 128 - code)
        except (BrokenPipeError, ConnectionError, asyncssh.Error):
            pass
        finally:
            into.cancel()
            errors.cancel()
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    async def feed(self, session: Any, process: Any, fault: dict[str, Any] | None) -> None:
        """Give a command what the client sends."""
        size = 0
        try:
            while chunk := await session.stdin.read(PIECE):
                size += len(chunk)
                if fault and fault["kind"] in ("die", "drop") and size > fault["bytes"] > 0:
                    return self.break_off(session, fault)
                process.stdin.write(chunk)
                await process.stdin.drain()
        except (BrokenPipeError, ConnectionError, asyncssh.Error):
            return None
        with suppress(BrokenPipeError, ConnectionError):
            process.stdin.close()
        return None

    def break_off(self, session: Any, fault: dict[str, Any]) -> None:
        """Cut the connection, or let the pod die."""
        self.strike(fault)
        if fault["kind"] == "drop":
            session.channel.get_connection().abort()

    async def drain(self, source: Any, target: Any, fault: dict[str, Any] | None) -> None:
        """Give the client what a command prints, damaged as a fault demands."""
        size, kind = 0, fault["kind"] if fault else ""
        while chunk := await source.read(PIECE):
            before, size = size, size + len(chunk)
            if fault and kind and size > fault["bytes"]:
                place = max(0, fault["bytes"] - before)
                if kind in ("die", "drop"):
                    target.write(chunk[:place])
                    self.break_off(target, fault)
                    return
                self.strike(fault)
                kind = ""
                if fault["kind"] == "truncate":
                    target.write(chunk[:place])
                    return
                if fault["kind"] == "flip":
                    chunk = chunk[:place] + bytes([chunk[place] ^ 1]) + chunk[place + 1 :]
                if fault["kind"] == "stall":
                    await asyncio.sleep(fault["value"] or 60)
            target.write(chunk)
            await target.drain()


DRIVER = "615.71.09"
"""A driver later than 610, whose table says `KMD Version` and `CUDA UMD Version` (issue 27487 of
sgl-project/sglang), and its XML both, the old name with a note that it will go (pull request 122 of
PrismML-Eng/Bonsai-demo)."""

NVIDIA_SMI = """#!/bin/sh
case "$*" in "-q -x") cat <<'END'
<?xml version="1.0" ?>
<nvidia_smi_log>
<kmd_version>{driver}</kmd_version>
<cuda_version>[Deprecated; will be removed in CUDA 14.0.]</cuda_version>
<cuda_umd_version>{cuda}</cuda_umd_version>
</nvidia_smi_log>
END
exit;; esac
[ -n '{rows}' ] || {{ echo 'No devices were found'; exit 6; }}
case "$1" in
--query*) echo '{rows}';;
*) echo '| NVIDIA-SMI {driver}  KMD Version: {driver}  CUDA UMD Version: {cuda} |';;
esac
"""

DF = """#!/bin/sh
echo Filesystem blocks Used Available Capacity Mounted
echo overlay {blocks} 0 {blocks} 0% /
"""

RUNPODCTL = '''#!/usr/bin/env python3
"""What `runpodctl remove pod ID` sends, and how it ends: api/query.go at commit 29e2eceb, and
cmd/pod/removePod.go; its later versions send the key as a bearer."""
import json, os, sys, urllib.request
text = "mutation terminatePod($podId: String!) {{ podTerminate(input: {{podId: $podId}}) }}"
body = json.dumps({{"query": text, "variables": {{"podId": sys.argv[3]}}}}).encode()
address = os.environ["RUNPOD_API_BASE_URL"] + "/graphql?api_key=" + os.environ["RUNPOD_API_KEY"]
names = {{"Content-Type": "application/json", "User-Agent": "RunPod-CLI/1.14.15 (linux; amd64)"}}
with urllib.request.urlopen(urllib.request.Request(address, body, names), timeout=10) as answer:
    errors = json.load(answer).get("errors")
if errors:
    sys.exit("Error: " + errors[0]["message"])
print('pod "%s" removed' % sys.argv[3])
'''


def tools(folder: Path, gpus: list[list[Any]], cuda: str | None, disk_gb: float | None) -> None:
    """Write what a pod has of its own: nvidia-smi, df, runpodctl, python3, and no CUDA library.

    Args:
        folder: for its programs; libraries go into `lib` beside it.
        gpus: name and MiB of each, the second N/A where the driver does not tell.
        cuda: newest version that the driver supports; None where it does not tell.
        disk_gb: that are free; None where df fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = "\n".join(f"{name}, {mib}, {DRIVER}" for name, mib in gpus)
    programs = {
        "nvidia-smi": NVIDIA_SMI.format(rows=rows, cuda=cuda or "N/A", driver=DRIVER),
        "df": "#!/bin/sh\nexit 1\n",
        "runpodctl": RUNPODCTL.format(),
    }
    if disk_gb is not None:
        programs["df"] = DF.format(blocks=int(disk_gb * 1e9 / 1024))
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "python3").symlink_to(os.path.realpath(sys.executable))
    libraries = folder.with_name("lib")
    libraries.mkdir(exist_ok=True)
    (libraries / "libcuda.so.1").write_text("the host's, if it has one, is not this pod's")
