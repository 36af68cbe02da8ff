"""What the tests of the executor share: one emulator, and projects to run on it."""

import os

os.environ.setdefault("GIT_CONFIG_NOSYSTEM", "1")

import pytest
from emulator.client import Emulator
from executor_rig import Project


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
