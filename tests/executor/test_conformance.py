"""Snakemake's own test cases for executors, on emulated pods."""

import os
import secrets
from pathlib import Path

import pytest
from executor_rig import TIME_SCALE
from snakemake.common.tests import TestWorkflowsLocalStorageBase

from snakemake_executor_plugin_runpod import ExecutorSettings


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
