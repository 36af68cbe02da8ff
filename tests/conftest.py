"""What several tests share: small checkpoints, and one undisturbed run over them."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from pathlib import Path

import pytest
from slice import VERDICTS, Slice, build


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> Slice:
    """The slice, run once to its end; tests copy it and never change it."""
    made = build(tmp_path_factory.mktemp("slice"))
    said = made(*VERDICTS)
    assert said.code == 0, said.text
    return made


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Callable[[str], Path]:
    """Give a tiny checkpoint by its name in tests/tiny.py; nobody writes to it."""
    root, made = tmp_path_factory.mktemp("checkpoints"), {}

    def get(name: str) -> Path:
        if name not in made:
            import tiny

            made[name] = tiny.make(name, root / name)
        return made[name]

    return get
