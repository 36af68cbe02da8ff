"""The HTTP server: both APIs, the faults of their wire, and what tests control it by."""

import json
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from emulator import graphql, rest
from emulator.faults import Fault
from emulator.state import Account, Pod, RefusedError, Store

SPEED = bytes(1_000_000)

AGENTS = ("snakemake-executor-plugin-runpod", "RunPod-Python-SDK/", "RunPod-CLI/")
"""Who may pass the edge in front of the service: this package, and RunPod's own programs.

The real one, Cloudflare, refuses Python's default agent with 403 and `error code: 1010`: pull
request 14 of lumpenspace/raft ("without it every pod creation fails with Cloudflare's 403/1010").
This one refuses whatever does not name itself, so that no client can forget to. The agents of
RunPod's programs are those of runpod/user_agent.py in its Python package, and of api/query.go in
runpod/runpodctl.
"""


class Server(ThreadingHTTPServer):
    """Serves one store on loopback."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, store: Store, port: int = 0) -> None:
        self.store = store
        super().__init__(("127.0.0.1", port), Handler)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer."""
        self._answer()

    do_POST = do_DELETE = do_PATCH = do_GET  # noqa: N815

    def _answer(self) -> None:  # noqa: PLR0911
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        body = json.loads(raw) if raw else None
        if path.startswith("/_emulator/"):
            return self._control(path.split("/")[2], body)
        if not (self.headers.get("User-Agent") or "").startswith(AGENTS):
            return self._refused_by_edge()
        if path == "/speed":
            return self._send(200, SPEED, "application/octet-stream")
        if path.startswith("/v1/"):
            return self._json(410, {"title": "Gone", "status": 410, "detail": "use /v2"})
        account, own = self._who()
        graph = path == "/graphql"
        if account and account.edge and self.headers["User-Agent"].startswith(account.edge):
            return self._refused_by_edge()
        if account is None:
            return self._refuse(graph, 401, "Unauthorized")
        asked = body if graph and isinstance(body, dict) else {}
        document = graphql.Document(asked.get("query", ""), asked.get("variables") or {})
        try:
            call = graphql.operation(document) if graph else rest.operation(self.command, path)
        except graphql.DocumentError as error:
            return self._json(400, {"errors": [{"message": str(error)}], "data": None})
        with self.server.store.lock:
            account.calls[call] += own is None
            account.moments += [time.time()] if own is None else []
            fault = account.strike(call, own is not None)
        if account.outage and own is None:
            return self._json(503, {"title": "Service Unavailable", "status": 503, "detail": ""})
        if not graph and own is None and (wait := self._over_limit(account)):
            window, seconds = wait
            problem = {"title": "Too Many Requests", "status": 429}
            problem["detail"] = f"rate limit exceeded for the {window} window"
            return self._json(429, problem, headers={"Retry-After": f"{seconds:.3f}"})
        if graph and account.retired:
            return self._json(410, {"message": "This API has been retired."})
        return self._call(account, own, call, path, document, body, fault)

    def _over_limit(self, account: Account) -> tuple[str, float] | None:
        """Return the window whose quota is used up, and the seconds until it ends.

        REST v2 counts the calls of a user in windows (its published description, "The response
        identifies the window that was exceeded and how long to wait").
        """
        now = time.time()
        for name, most in account.limits.items():
            length = float(name)
            begin = now // length * length
            if sum(moment >= begin for moment in account.moments) > most:
                return name, begin + length - now
        return None

    def _refused_by_edge(self) -> None:
        self._send(403, b"error code: 1010", "text/plain; charset=UTF-8")

    def _who(self) -> tuple[Account | None, Pod | None]:
        asked = parse_qs(urlsplit(self.path).query).get("api_key", [""])[0]  # as runpodctl sends it
        key = (self.headers.get("Authorization") or asked).removeprefix("Bearer ")
        if key.startswith("pod-"):
            found = self.server.store.owner(key)
            return found or (None, None)
        account = self.server.store.accounts.get(key)
        return (account if account and account.valid else None), None

    def _call(  # noqa: PLR0911, PLR0917
        self,
        account: Account,
        own: Pod | None,
        call: str,
        path: str,
        document: graphql.Document,
        body: Any,
        fault: Fault | None,
    ) -> None:
        graph = path == "/graphql"
        kind = fault.kind if fault else ""
        if fault and kind == "slow":
            time.sleep(fault.value)
        if fault and kind in ("status", "html", "body"):
            return self._fail(fault, graph)
        if kind == "cut":
            return self._cut()
        if fault and kind == "error":
            return self._refuse(graph, 400, str(fault.value))
        store, ignore = self.server.store, kind == "ignored"
        try:
            if graph:
                data = graphql.execute(store, account, document, own, ignore)
                status, answer = 200, {"data": data}
            else:
                status, answer = rest.execute(store, account, call, path, body, own, ignore)
        except RefusedError as error:
            return self._refuse(graph, 400, str(error))
        except rest.ProblemError as error:
            return self._refuse(graph, error.status, str(error), error.errors)
        if kind == "lost":
            return self._cut()
        if fault and kind == "done-status":
            return self._fail(fault, graph)
        if kind == "null":
            answer = {"data": None} if graph else None
        if kind == "half":
            text = json.dumps(answer)
            return self._send(status, text[: len(text) // 2].encode())
        return self._send(204, b"") if status == 204 else self._json(status, answer)

    def _fail(self, fault: Fault, graph: bool) -> None:
        wait = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
        if fault.kind == "body":
            return self._send(200, str(fault.value).encode("utf-8", "surrogateescape"))
        if fault.kind == "html":
            page = b"<html><title>Bad gateway</title></html>"
            return self._send(int(fault.value), page, "text/html", wait)
        problem = {"title": "Error", "status": fault.value, "detail": "emulated"}
        body: Any = {"message": "emulated"} if graph else problem
        return self._send(int(fault.value), json.dumps(body).encode(), headers=wait)

    def _refuse(
        self, graph: bool, status: int, message: str, violations: Sequence[str] = ()
    ) -> None:
        if not graph:
            problem = {"title": "Error", "status": status, "detail": message}
            problem |= {"errors": list(violations)} if violations else {}
            return self._json(status, problem, "application/problem+json")
        errors = {"errors": [{"message": message}], "data": None}
        return self._json(401 if status == 401 else 200, errors)

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _json(
        self,
        status: int,
        value: Any,
        kind: str = "application/json",
        headers: dict[str, str] | None = None,
    ) -> None:
        self._send(status, json.dumps(value).encode(), kind, headers)

    def _send(
        self,
        status: int,
        body: bytes,
        kind: str = "application/json",
        headers: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _control(self, key: str, body: Any) -> None:
        """Set up an account, or say what happened to it."""
        store = self.server.store
        account = store.account(key)
        if isinstance(body, dict):
            with store.lock:
                account.faults += [Fault(**fault) for fault in body.pop("faults", [])]
                end = body.pop("terminate", [])
                for name, value in body.items():
                    setattr(account, name, value)
            for id in end:  # noqa: A001
                store.terminate(account, id)
        with store.lock:
            answer = {
                "alive": [_describe(store, pod) for pod in account.alive()],
                "pods": [_describe(store, pod) for pod in account.pods.values()],
                "bill": store.bill(account),
                "faults": [asdict(fault) for fault in account.faults],
                "calls": dict(account.calls),
                "moments": account.moments,
                "peak": account.peak,
                "blind": account.blind,
            }
        self._json(200, answer)


def _describe(store: Store, pod: Pod) -> dict[str, Any]:
    return {
        "id": pod.id,
        "name": pod.spec["name"],
        "gpu": pod.spec["gpu"],
        "rate": pod.rate,
        "port": pod.port,
        "machine": pod.machine,
        "env": pod.spec["env"],
        "spec": {name: pod.spec[name] for name in ("disk", "memory", "cloud", "gpus", "cuda")},
        "seconds": (pod.ended or store.clock()) - pod.created,
        "cost": pod.cost(store.clock()),
    }
