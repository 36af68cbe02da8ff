"""Snakemake's own test cases for executors, on emulated pods; RunPod's own forms of answers."""

import os
import secrets
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from emulator.rest import form
from rig import TIME_SCALE
from snakemake.common.tests import TestWorkflowsLocalStorageBase

from snakemake_executor_plugin_runpod import ExecutorSettings
from snakemake_executor_plugin_runpod.api.errors import PermanentError
from snakemake_executor_plugin_runpod.api.model import AGENT, Spec
from snakemake_executor_plugin_runpod.api.rest import RestApi


@pytest.mark.slow
class TestConformance(TestWorkflowsLocalStorageBase):
    """Runs them."""

    __test__ = True

    @pytest.fixture(autouse=True)
    def _account(self, emulator, monkeypatch):
        account = emulator.account(f"key-{secrets.token_hex(8)}")
        for name, value in account.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("SNAKEMAKE_RUNPOD_TIME_SCALE", TIME_SCALE)
        before = Path.cwd()
        yield
        os.chdir(before)
        assert account.pods
        assert not account.alive

    def get_executor(self):
        return "runpod"

    def get_executor_settings(self):
        return ExecutorSettings(delay=0, no_rehearsal=True)


def test_emulator_and_client_speak_as_runpod_describes_it(emulator, monkeypatch):
    """Every answer has the described form; a request that has not is refused with its faults."""
    account = emulator.account(f"key-{secrets.token_hex(8)}")
    monkeypatch.setenv("RUNPOD_API_BASE_URL", account.url)
    api = RestApi(account.key)
    spec = Spec(
        name="a", image="i:1", gpu="NVIDIA L4", gpus=1, cloud="secure", disk_gb=20, memory_gb=8,
        data_center="EU-RO-1", cuda="12.8", min_download=None, start="", env={"A": "b"},
    )  # fmt: skip
    pod = api.create(spec)
    headers = {"Authorization": f"Bearer {account.key}", "User-Agent": AGENT}
    with httpx.Client(base_url=f"{account.url}/v2", headers=headers) as client:
        for path, name in (
            ("/pods", "ListPodsResponse"),
            (f"/pods/{pod}", "Pod"),
            ("/pods/none", "ErrorResponse"),
            ("/catalog/gpus", "ListGpuTypesResponse"),
        ):
            form(name).validate(client.get(path).json())
        wrong = client.post("/pods", json={"name": "a", "image": "i:1", "gpus": 1})
        form("ErrorResponse").validate(wrong.json())
        assert wrong.status_code == 422
    with pytest.raises(PermanentError, match=r"HTTP 422.*less than the minimum of 1"):
        api.create(replace(spec, gpus=0))
    api.terminate(pod)
    assert not account.alive
