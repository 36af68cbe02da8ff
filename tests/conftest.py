"""What several test files share."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives a tiny checkpoint by name; nobody writes to it."""
    root, made = tmp_path_factory.mktemp("checkpoints"), {}

    def get(name: str) -> Path:
        if name not in made:
            import tiny

            made[name] = tiny.make(name, root / name)
        return made[name]

    return get
