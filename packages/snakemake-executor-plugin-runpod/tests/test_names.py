"""Every client of the package names itself, and is refused where it does not."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rig import wait_until

import snakemake_executor_plugin_runpod
from snakemake_executor_plugin_runpod.api.errors import PermanentError
from snakemake_executor_plugin_runpod.api.model import AGENT
from snakemake_executor_plugin_runpod.renting import preflight

slow = pytest.mark.slow
PACKAGE = Path(snakemake_executor_plugin_runpod.__file__).parent
PYTHONS_OWN = "Python-urllib/3.11"


@pytest.fixture
def account(emulator, monkeypatch):
    found = emulator.account("key-of-names")
    for name, value in found.environment().items():
        monkeypatch.setenv(name, value)
    return found


def on_a_pod(code, *words):
    """Run code beside the programs of a pod; return what it prints, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=PACKAGE / "pod",
        capture_output=True,
        check=True,
        text=True,
    )
    return json.loads(done.stdout)


def test_rest_is_refused_without_its_name(account):
    from snakemake_executor_plugin_runpod.api.rest import RestApi

    api = RestApi(account.key)
    assert api.pods() == []
    del api._client.headers["User-Agent"]
    with pytest.raises(PermanentError, match="HTTP 403: error code: 1010"):
        api.pods()


def test_the_sdk_is_refused_without_its_name(account):
    """In a process of its own, since the address of its API is read when it is imported."""
    code = """
import sys
from snakemake_executor_plugin_runpod.api.errors import PermanentError
from snakemake_executor_plugin_runpod.api.sdk import SdkApi
api = SdkApi(sys.argv[1])
assert api.pods() == []
import runpod.api.graphql
runpod.api.graphql.USER_AGENT = "python-requests/2.32"
try:
    api.pods()
except PermanentError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, account.key], capture_output=True, check=True, text=True
    )
    assert "HTTP 403: error code: 1010" in done.stdout


@pytest.mark.parametrize("agent", [None, "", PYTHONS_OWN, "curl/8.5.0"])
def test_the_switch_of_a_pod_is_refused_without_its_name(account, agent):
    code = """
import json, sys
import deadman
if len(sys.argv) > 3:
    deadman.AGENT = sys.argv[3]
print(json.dumps(deadman.ask("GET", sys.argv[1] + "/v2/pods", sys.argv[2])))
"""
    found = on_a_pod(code, account.url, account.key, *([] if agent is None else [agent]))
    assert found == ([200, '{"pods": []}'] if agent is None else [403, "error code: 1010"])


@pytest.mark.parametrize("agent", [None, PYTHONS_OWN])
def test_the_speed_test_is_refused_without_its_name_and_then_says_so(account, agent):
    code = """
import json, sys
import machine
if len(sys.argv) > 2:
    machine.AGENT = sys.argv[2]
print(json.dumps(machine.speed({"url": sys.argv[1] + "/speed", "seconds": 1})))
"""
    found = on_a_pod(code, account.url, *([] if agent is None else [agent]))
    assert ("bytes" in found) == (agent is None)
    assert ("HTTP Error 403" in found.get("failed", "")) == (agent is not None)


def test_what_is_asked_of_the_hub_names_its_sender(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    preflight.check_hub(["a/b@main"], pytest.fail)
    assert [headers["User-Agent"] for headers in hub.heard] == [AGENT]


def test_no_client_was_added_that_the_tests_above_do_not_know():
    """Whoever talks HTTP names one of these; `api/sdk.py` does it by RunPod's own package."""
    clients = ("urllib.request", "urllib import", "http.client", "http import", "httpx", "aiohttp")
    clients += ("urllib3", "requests")
    named = re.compile("|".join(rf"\b{re.escape(client)}\b" for client in clients))
    harmless, found = "from http.client import HTTPException", set()
    for path in PACKAGE.rglob("*.py"):
        lines = map(str.strip, ast.unparse(ast.parse(path.read_text())).splitlines())
        imports = [x for x in lines if re.match("(import|from) ", x) and x != harmless]
        if named.search("\n".join(imports)):
            found.add(path.relative_to(PACKAGE).as_posix())
    assert found == {"api/rest.py", "pod/deadman.py", "pod/machine.py", "renting/preflight.py"}


def test_a_pod_names_itself_as_its_controller_does():
    assert on_a_pod("import deadman; print(f'\"{deadman.AGENT}\"')") == AGENT


ROUTES = [
    '{"detail": "Not Found"}',
    '{"title": "Not Found", "status": 404, "detail": "No route matches"}',
    '"see detail"',
    '["detail"]',
    "<h1>pod not found</h1>",
]


@pytest.mark.parametrize("text", ROUTES)
def test_what_a_router_tells_everybody_proves_no_power(text):
    """An address that is not served any more answers 404 to every key."""
    code = """
import json, sys
import deadman
deadman.ask = lambda *_: (404, sys.argv[1])
print(json.dumps([deadman.knows_no_pod(way, 404, sys.argv[1]) for way in ("rest-v2", "graphql")]))
"""
    assert on_a_pod(code, text) == [False, False]


@pytest.mark.parametrize("text", ["API key not found", "runpodctl: command not found", ""])
def test_an_error_of_the_command_line_tool_proves_no_power(text):
    code = "import json, sys, deadman; print(json.dumps(deadman.knows_no_pod(*sys.argv[1:])))"
    assert on_a_pod(code, "runpodctl", "1", text) is False
    assert on_a_pod(code, "runpodctl", "1", "Error: pod not found to terminate") is True


@slow
def test_a_pod_can_end_itself_by_any_one_way(project):
    """The edge refuses the switch's own calls; RunPod's command line tool still gets through."""
    project.account.change(edge=AGENT)
    run = project.start(
        *project.slow(60),
        "--runpod-api",
        "sdk",
        "--runpod-grace",
        "0.05",
        "--runpod-max-hours",
        "1",
    )
    wait_until(lambda: any(e.get("phase") == "running" for e in project.ledger_so_far()))
    run.kill()
    run.communicate()
    assert project.account.alive
    wait_until(lambda: not project.account.alive)


@slow
def test_a_pod_that_no_way_can_end_is_refused_with_what_each_said(project):
    project.account.change(
        edge=AGENT,
        faults=[{"on": "terminate", "kind": "status", "value": 500, "own": True, "times": 99}],
    )
    said = project("--runpod-api", "sdk")
    assert said.code == 1
    assert "it could not end itself" in said.text
    for way in ("'rest-v2': 'refused: 403 error code: 1010'", "'runpodctl': 'refused: 1 "):
        assert way in said.text
    assert not project.account.alive
