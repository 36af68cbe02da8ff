"""What several tests share: small checkpoints, and one undisturbed run over them."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from slice import VERDICTS, Slice, build


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> Slice:
    """The slice, run once to its end; tests copy it and never change it."""
    made = build(tmp_path_factory.mktemp("slice"))
    said = made(*VERDICTS)
    assert said.code == 0, said.text
    return made
