"""One job on one pod of the real service, for about five cents: what it answers is recorded.

What no emulator can know, it shows: whether the edge lets the clients pass, a pod can end itself,
the image starts, the bill is what the ledger says. It goes through a proxy on this machine, which
writes down each question and answer without the key; a rule of the emulator that differs from them
is wrong.
"""

import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

RULE = """
rule smoke:
    output: "smoke.txt"
    resources: vram_gb=8, disk_gb=10, min_memory_gb=4, runtime=10
    shell: "nvidia-smi --query-gpu=name --format=csv,noheader > {output}"
"""

LIMITS = ("--runpod-budget", "0.25", "--runpod-max-price", "0.60", "--runpod-max-hours", "1")
LIMITS += ("--runpod-max-pods", "1", "--runpod-capacity-wait", "5", "--runpod-grace", "10")

SECRET = ("authorization", "cookie", "set-cookie")


class Recorder:
    """Passes requests on to a service, and writes down what goes both ways.

    Attributes:
        url: where it listens.
        calls: each request and its answer.
    """

    def __init__(self, upstream: str) -> None:
        self.calls = calls = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(size) if size else None
                kept = {n: v for n, v in self.headers.items() if n.lower() not in ("host",)}
                asked = urllib.request.Request(
                    upstream + self.path, body, kept, method=self.command
                )
                try:
                    with urllib.request.urlopen(asked, timeout=60) as answer:
                        status, headers, text = answer.status, answer.headers, answer.read()
                except urllib.error.HTTPError as error:
                    status, headers, text = error.code, error.headers, error.read()
                calls.append(
                    {
                        "request": [self.command, self.path, _shown(kept), _text(body)],
                        "answer": [status, _shown(dict(headers.items())), _text(text)],
                    }
                )
                self.send_response(status)
                for name in ("Content-Type", "Retry-After"):
                    if headers.get(name):
                        self.send_header(name, headers[name])
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_POST = do_DELETE = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def smoke(upstream: str, key: str, folder: Path, **environment: str) -> dict[str, Any]:
    """Run the one job, and return what is known afterwards.

    Args:
        upstream: address of the service.
        key: of its API.
        folder: for the workflow.
        environment: more variables of the run.

    Returns:
        The run's exit status and text, the names of pods that are listed afterwards, the dollars of
        the ledger, those of the bill (None while the service has none), and the recorded calls.
    """
    from snakemake_executor_plugin_runpod.ledger import Ledger

    (folder / "Snakefile").write_text(RULE)
    recorder = Recorder(upstream)
    kept = {n: os.environ[n] for n in ("PATH", "HOME", "LANG", "TMPDIR") if n in os.environ}
    known = {"RUNPOD_API_KEY": key, "RUNPOD_API_BASE_URL": recorder.url}
    words = ["--executor", "runpod", "--jobs", "1", "--nolock", "--keep-incomplete"]
    words += ["--runpod-api", "rest-v2", "--runpod-no-rehearsal", *LIMITS, "smoke.txt"]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", *words],
            cwd=folder,
            env=kept | known | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        time.sleep(float(environment.get("SMOKE_BILL_S", "1")))
        ledger = Ledger(folder / ".snakemake/runpod")
        ids = [lease.id for lease in ledger.leases.values() if lease.id]
        listed = _get(recorder.url, "/v2/pods", key)["pods"]
        bills = [_get(recorder.url, f"/v2/billing/pods?podId={pod}", key) for pod in ids[:1]]
        records = [each for bill in bills for each in bill["records"] if each["podId"] in ids]
    finally:
        recorder.close()
    return {
        "code": done.returncode,
        "text": done.stdout + done.stderr,
        "left": [pod["name"] for pod in listed if pod["id"] in ids],
        "spent": ledger.spent(),
        "bill": sum(each["totalAmount"] for each in records) or None,
        "calls": recorder.calls,
    }


def _get(url: str, path: str, key: str) -> Any:
    from snakemake_executor_plugin_runpod.api.model import AGENT

    names = {"Authorization": f"Bearer {key}", "User-Agent": AGENT}
    with urllib.request.urlopen(urllib.request.Request(url + path, headers=names)) as answer:
        return json.load(answer)


def _shown(headers: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in SECRET}


def _text(raw: bytes | None) -> Any:
    try:
        return json.loads(raw or b"null")
    except ValueError:
        return (raw or b"").decode(errors="replace")
