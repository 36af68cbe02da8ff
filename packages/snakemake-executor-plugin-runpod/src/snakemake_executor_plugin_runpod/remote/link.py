"""The connection to one pod: SSH, with limits on every wait, and the pod's own key remembered."""

import asyncio
import hashlib
import json
import os
import secrets
from collections.abc import AsyncGenerator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_runpod.api.errors import printable
from snakemake_executor_plugin_runpod.api.model import Endpoint
from snakemake_executor_plugin_runpod.limits import Limits

KEY = "id_ed25519"
PROGRAMS = ("agent.py", "deadman.py", "folder.py", "machine.py", "supervisor.py")
NOISE = 65536
"""What a login shell may print before an answer, in bytes."""

ANSWER = 64_000_000
"""The longest answer to a request, in bytes."""

PIECE = 1 << 20


class LostError(Exception):
    """There is no connection now: it may come back, and a job on the pod goes on meanwhile."""


class RemoteError(Exception):
    """The pod answered that it could not do what was asked."""


class EndlessError(RemoteError):
    """The pod's answer is longer than any that makes sense."""


@dataclass(frozen=True)
class Identity:
    """How this controller logs in: a key pair of the project's, or the user's own for a node."""

    path: Path | None

    @staticmethod
    def of_project(folder: Path) -> "Identity":
        """Return the key pair of this working directory; make it first if there is none.

        It is kept, so that the next run can log in to pods that this one leaves behind.
        """
        import asyncssh

        path = folder / KEY
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            key = asyncssh.generate_private_key("ssh-ed25519", comment="snakemake-runpod")
            part = path.with_name(f"{KEY}.{os.getpid()}.part")
            handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(key.export_private_key())
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        return Identity(path)

    def public(self) -> str:
        """Return the public key as one line."""
        import asyncssh

        return asyncssh.read_private_key(str(self.path)).export_public_key().decode().strip()


class Link:
    """A connection to one pod, made when it is needed and made again when it was lost.

    Attributes:
        endpoint: where sshd listens; may be changed, it holds from the next connection on.
        host_key: of the sshd, as one line; None before the first connection: then whatever key
            comes is taken, and no other is accepted afterwards.
    """

    def __init__(
        self, endpoint: Endpoint, identity: Identity, limits: Limits, host_key: str | None = None
    ) -> None:
        self.endpoint, self.identity, self.host_key = endpoint, identity, host_key
        self._limits = limits
        self._connection: Any = None
        self._agent: str | None = None
        self._busy = asyncio.Lock()

    async def ask(
        self,
        command: str,
        request: dict[str, Any],
        body: Iterable[bytes] = (),
        patience: float | None = None,
    ) -> dict[str, Any]:
        """Have the pod's agent do something.

        Args:
            command: one of the agent's commands.
            request: its request; nothing of it appears in any argument list.
            body: bytes that follow the request.
            patience: seconds without a sign of life; for a body each piece starts anew.

        Raises:
            LostError: if the connection fails or is silent for too long.
            RemoteError: if the agent could not do it.
        """
        chunks, size = [], 0
        async for chunk in self.stream(command, request, body, patience):
            chunks.append(chunk)
            if (size := size + len(chunk)) > ANSWER:
                await self.close()
                raise EndlessError(f"an answer of more than {ANSWER} bytes")
        try:
            answer = json.loads(b"".join(chunks))
        except ValueError:
            raise LostError("an answer that is cut") from None
        if not isinstance(answer, dict):
            raise RemoteError("an answer of the wrong form")
        if "error" in answer and len(answer) == 1:
            raise RemoteError(printable(str(answer["error"]))[:500])
        return answer

    async def stream(
        self,
        command: str,
        request: dict[str, Any],
        body: Iterable[bytes] = (),
        patience: float | None = None,
    ) -> AsyncGenerator[bytes]:
        """Have the agent do something, and yield its answer as it comes; see `ask`."""
        import asyncssh

        wait, process = patience or self._limits.call, None
        try:
            async with self._busy:
                connection = await self._connect()
            words = f"python3 {self._agent} {command}"
            process = await asyncio.wait_for(connection.create_process(words, encoding=None), wait)
            async for chunk in _exchange(process, request, body, wait):
                yield chunk
            await asyncio.wait_for(process.wait_closed(), wait)
            if process.exit_status != 0:  # None: the connection broke
                text = printable((await process.stderr.read(2000)).decode(errors="replace"))
                if process.exit_status is None:
                    raise LostError("the connection broke")
                raise RemoteError(f"exit status {process.exit_status}: {text[-500:]}")
        except (asyncssh.Error, OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            await self.close()
            raise LostError(_reason(error)) from None
        finally:
            if process is not None:
                process.close()  # without waiting: nobody may be there to agree

    async def close(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
            with suppress(Exception):
                await asyncio.wait_for(connection.wait_closed(), 5)

    async def _connect(self) -> Any:
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        import asyncssh

        options: dict[str, Any] = {"known_hosts": None}
        if self.host_key:
            key = asyncssh.import_public_key(self.host_key)
            options["known_hosts"] = ([key], [], [])
        if self.identity.path is None:
            options = {}  # a node: the user's own keys and known hosts
        else:
            options |= {"client_keys": [str(self.identity.path)], "agent_path": None, "config": []}
            options |= {"preferred_auth": "publickey"}
        async with asyncio.timeout(self._limits.connect):
            connection = await asyncssh.connect(
                self.endpoint.host,
                self.endpoint.port,
                username=self.endpoint.user,
                keepalive_interval=15,
                keepalive_count_max=4,
                encryption_algs=["aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes256-ctr"],
                compression_algs=["none"],
                **options,
            )
        shown = connection.get_server_host_key()
        self.host_key = shown.export_public_key().decode().strip() if shown else None
        try:
            self._agent = self._agent or await self._install(connection)
        except BaseException:
            connection.abort()
            raise
        self._connection = connection
        return connection

    async def _install(self, connection: Any) -> str:
        """Put the agent on the pod, below a name that says which version of it this is."""
        files = resources.files("snakemake_executor_plugin_runpod.pod")
        texts = {name: (files / name).read_text(encoding="utf-8") for name in PROGRAMS}
        digest = hashlib.sha256("".join(texts.values()).encode()).hexdigest()[:12]
        folder = f"$HOME/.snakemake-runpod/agent-{digest}"
        script = f'set -e; test -e "{folder}/agent.py" && exit 0; mkdir -p "{folder}"\n'
        for name, text in texts.items():  # agent.py last: it says that all are there
            script += f"cat > \"{folder}/{name}.part\" <<'END OF {name}'\n{text}\nEND OF {name}\n"
        for name in sorted(PROGRAMS, reverse=True):
            script += f'mv "{folder}/{name}.part" "{folder}/{name}"\n'
        installing = connection.run("sh -s", input=script, errors="replace")  # a shell may talk
        done = await asyncio.wait_for(installing, self._limits.call)
        if done.exit_status is None:
            raise LostError("the connection broke")
        if done.exit_status != 0:
            raise RemoteError(f"could not write to the pod: {printable(str(done.stderr))[:300]}")
        return f'"{folder}/agent.py"'


async def _exchange(
    process: Any, request: dict[str, Any], body: Iterable[bytes], wait: float
) -> AsyncGenerator[bytes]:
    """Send a request and its body, then yield what comes behind the line with the nonce."""
    nonce = secrets.token_hex(16)
    process.stdin.write(json.dumps(request | {"nonce": nonce}).encode() + b"\n")
    for chunk in body:
        process.stdin.write(chunk)
        await asyncio.wait_for(process.stdin.drain(), wait)
    process.stdin.write_eof()
    noise = 0
    while (
        line := await asyncio.wait_for(process.stdout.readline(), wait)
    ).strip() != nonce.encode():
        noise += len(line)
        if not line or noise > NOISE:
            text = await asyncio.wait_for(process.stderr.read(2000), wait)
            if process.channel.get_exit_status() is None and not text:
                raise LostError("the connection broke")
            raise RemoteError(f"no answer: {printable(text.decode(errors='replace'))[-500:]}")
    while chunk := await asyncio.wait_for(process.stdout.read(PIECE), wait):
        yield chunk


def _reason(error: BaseException) -> str:
    """Say in a few words why there is no connection."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return printable(f"{type(error).__name__}: {error}")[:200]
