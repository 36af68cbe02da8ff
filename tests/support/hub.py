"""A model hub on loopback for the unmodified clients of Hugging Face: models, data sets, faults.

A repository is a folder of files at one commit. A fault is injected into the next answers whose
request matches, and each records that it happened.
"""

import hashlib
import json
import math
import re
import threading
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

COMMIT = "c" * 40


@dataclass
class Fault:
    """What is done to the next answers.

    Attributes:
        kind: a status such as `503`, or `drop` (close halfway through the body), `stall` (send
            half, then nothing), `drip` (a byte at a time), `flip` (change one byte), `norange`
            (ignore Range), `page` (a page of HTML, as a login in between gives), `commit`, `etag`,
            `size` (say another one than the hub's list).
        pattern: a regular expression that the path must match.
        method: GET, HEAD or any.
        times: how often; it counts down.
        headers: what a status is answered with beside.
    """

    kind: str
    pattern: str
    method: str = "GET"
    times: int = 1
    fired: int = 0
    headers: dict[str, str] = field(default_factory=lambda: {"Retry-After": "0"})


@dataclass
class Hub:
    """Serves repositories until it is closed; use it as a context manager.

    Attributes:
        models: folder of each model repository, by name.
        datasets: folder of each data set, by name.
        faults: what is injected; a fault whose `fired` stays 0 did not happen.
        requests: method and path of every request, in order; `moments`: when each came.
        tokens: the Authorization header of every request, in order.
        bytes_sent: bytes of file contents sent, by path.
        store: another hub, on another host, that large files are fetched from by redirection.
        range_bound: an address in the store holds for the range that it was asked for with.
    """

    models: dict[str, Path] = field(default_factory=dict)
    datasets: dict[str, Path] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    bytes_sent: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    commit: str = COMMIT
    token: str | None = None
    store: "Hub | None" = None
    range_bound: bool = False

    def __enter__(self) -> "Hub":
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # a client that hangs up is no news
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def environment(self, cache: Path) -> dict[str, str]:
        """Return the variables that send a client here, with a cache of its own."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
        }

    def fault_for(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if (
                fault.times > 0
                and fault.method in (method, "any")
                and re.search(fault.pattern, path)
            ):
                fault.times -= 1
                fault.fired += 1
                return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer is two small writes: with it each would take 40 ms

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(body)

    def _answer(self, body: bytes = b"") -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        self.hub.tokens.append(self.headers.get("Authorization"))
        self.hub.moments.append(time.monotonic())
        found = self.hub.fault_for(self.command, path)
        fault = found.kind if found else None
        if found and found.kind.isdigit():
            names = {"401": "GatedRepo", "404": "RepoNotFound"}
            extra = {"X-Error-Code": names[found.kind]} if found.kind in names else {}
            self._send(int(found.kind), b"{}", extra | found.headers)
        elif fault == "page":
            self._send(200, b"<html>Please log in</html>", {"Content-Type": "text/html"})
        elif self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._send(401, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
        elif path in ("/", "/api/whoami-v2"):
            self._json({"name": "a person"})
        elif match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(.*))?", path):
            self._api(match[1], match[2], match[3] or "", body)
        elif match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repos = self.hub.datasets if match[1] else self.hub.models
            self._file(repos.get(match[2]), match[3], match[4], fault)
        else:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def _api(self, kind: str, repo: str, rest: str, body: bytes) -> None:
        folder = (self.hub.datasets if kind == "datasets" else self.hub.models).get(repo)
        what, _, tail = rest.partition("/")
        revision, _, below = tail.partition("/")
        if folder is None:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if revision not in ("", "main", self.hub.commit):
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        found = [p for p in sorted(folder.rglob("*")) if p.is_file()]
        if what == "tree":
            if not (folder / below).is_dir():
                return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            deep = "recursive=true" in self.path.lower()
            listed = sorted((folder / below).rglob("*") if deep else (folder / below).iterdir())
            return self._json([_entry(p, folder) for p in listed])
        if what == "paths-info":
            wanted = (
                json.loads(body)["paths"]
                if body[:1] == b"{"
                else re.findall(rb"paths=([^&]+)", body)
            )
            names = {unquote(w.decode() if isinstance(w, bytes) else w) for w in wanted}
            return self._json(
                [_entry(p, folder) for p in found if str(p.relative_to(folder)) in names]
            )
        counted: dict[str, int] = defaultdict(int)
        for path in (p for p in found if p.suffix == ".safetensors"):
            with suppress(ValueError):  # a damaged file is not counted
                data = path.read_bytes()
                length = int.from_bytes(data[:8], "little")
                header = json.loads(data[8 : 8 + length])
                for entry in (v for k, v in header.items() if k != "__metadata__"):
                    counted[entry["dtype"]] += math.prod(entry["shape"])
        described = {"safetensors": {"parameters": counted, "total": sum(counted.values())}}
        siblings = [{"rfilename": p.relative_to(folder).as_posix()} | _lfs(p) for p in found]
        return self._json(
            {"id": repo, "sha": self.hub.commit, "siblings": siblings, "private": False, "tags": []}
            | (described if counted else {})
        )

    def _file(self, folder: Path | None, revision: str, name: str, fault: str | None) -> None:
        if folder is None:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", self.hub.commit):
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        path = folder / name
        if not path.is_file():
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if self.hub.store is not None and path.suffix == ".safetensors":
            bound = quote(self.headers.get("Range", "")) if self.hub.range_bound else ""
            address = f"{self.hub.store.url}{self.path}?signature={bound}"
            linked = {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(data))}
            return self._send(302, b"", linked | {"Location": address})
        if fault == "flip":
            data = (
                data[: len(data) // 2]
                + bytes([data[len(data) // 2] ^ 1])
                + data[len(data) // 2 + 1 :]
            )
        headers = {"Accept-Ranges": "bytes"}
        if "?signature=" in self.path:  # a store: it names its chunks' hash, and no commit
            bound = unquote(self.path.rpartition("=")[2])
            if bound and bound != self.headers.get("Range"):
                return self._send(403, b"invalid range", {})
            headers["ETag"] = f'"{hashlib.sha256(digest.encode()).hexdigest()}"'
        else:
            headers |= {
                "ETag": f'"{digest}"',
                "X-Linked-ETag": f'"{"e" * 64 if fault == "etag" else digest}"',
                "X-Linked-Size": str(len(data) + (fault == "size")),
                "X-Repo-Commit": "d" * 40 if fault == "commit" else self.hub.commit,
            }
        status, asked = 200, self.headers.get("Range")
        if asked and fault != "norange" and self.command == "GET":
            first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", asked).groups()  # type: ignore[union-attr]
            stop = min(int(last) + 1, len(data)) if last else len(data)
            headers["Content-Range"] = f"bytes {first}-{stop - 1}/{len(data)}"
            data, status = data[int(first) : stop], 206
        if self.command == "GET":
            self.hub.bytes_sent[name] += len(data)
        return self._send(status, data, headers, fault)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], fault: str | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault in ("drop", "stall"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if fault == "stall":
                time.sleep(30)
            self.close_connection = True
            self.connection.close()
            return
        if fault == "drip":
            for byte in body[:200]:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.05)
            return
        self.wfile.write(body)


def _lfs(path: Path) -> dict[str, object]:
    data = path.read_bytes()
    lfs = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    large = path.suffix in {".safetensors", ".parquet", ".bin"}
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return {"size": len(data), "blobId": blob} | ({"lfs": lfs} if large else {})


def _entry(path: Path, folder: Path) -> dict[str, object]:
    if path.is_dir():
        name = path.relative_to(folder).as_posix()
        return {"type": "directory", "path": name, "size": 0, "oid": "d" * 40}
    info = _lfs(path)
    entry = {"type": "file", "path": path.relative_to(folder).as_posix(), "size": info["size"]}
    lfs = info.get("lfs")
    if isinstance(lfs, dict):
        entry["lfs"] = {"oid": lfs["sha256"], "size": lfs["size"], "pointerSize": 130}
    return entry | {"oid": "b" * 40}
