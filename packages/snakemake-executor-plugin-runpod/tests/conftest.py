"""What the tests share: one emulator, and projects to run on it."""

import os
import signal
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

os.environ.setdefault("GIT_CONFIG_NOSYSTEM", "1")

import disks
import pytest
from emulator.client import Emulator
from rig import Project

signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup and & leave them ignored,
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which the programs under test would inherit


class Hub:
    """A model hub that answers every question for a file with one status.

    Attributes:
        url: what HF_ENDPOINT must be.
        heard: the headers of each request.
    """

    def __init__(self, status: int) -> None:
        self.heard = heard = []

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                heard.append(dict(self.headers))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hub(request):
    """A hub that answers with the status of the test's parameter, 200 by default."""
    running = Hub(getattr(request, "param", 200))
    yield running
    running.close()


@pytest.fixture(scope="session")
def emulator(tmp_path_factory):
    """One emulator for all tests; each has an account of its own there."""
    running = Emulator(tmp_path_factory.mktemp("pods"))
    yield running
    running.close()


@pytest.fixture
def project(emulator, tmp_path):
    """A fresh copy of the project; at the end no pod of its account may be alive."""
    made = Project(tmp_path / "project", emulator)
    yield made
    alive = made.account.alive
    made.account.change(terminate=[pod["id"] for pod in alive])
    assert not alive, alive
    assert not made.spilt()


@pytest.fixture(scope="session")
def undisturbed(emulator, tmp_path_factory) -> Project:
    """The project, run once to its end; nobody changes it."""
    made = Project(tmp_path_factory.mktemp("undisturbed") / "project", emulator)
    made.rehearse()
    said = made("--runpod-api", "auto")
    assert said.code == 0, said.text
    made.said = said
    return made


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 MB of its own."""
    with disks.small(tmp_path / "disk") as place:
        yield place
