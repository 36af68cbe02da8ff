"""The smoke test, on the emulator always, and on the real service where somebody wants it.

    RUNPOD_SMOKE=1 RUNPOD_API_KEY=… pytest tests/real

costs about five cents, and is skipped without both. What the service answered is then in
`tests/real/recorded.json`, for the emulator to be held against.
"""

import json
import os
from pathlib import Path

import pytest
from smoke import smoke

REAL = "https://api.runpod.io"


def holds(found, key):
    """Check what must be true on any service."""
    assert found["code"] == 0, found["text"][-6000:]
    assert not found["left"]
    assert found["calls"]
    assert key not in json.dumps(found)
    asked = [" ".join(call["request"][:2]) for call in found["calls"]]
    assert sum(line == "POST /v2/pods" for line in asked) >= 1
    assert any(line.startswith("DELETE /v2/pods/") for line in asked)


@pytest.mark.slow
def test_one_job_and_its_bill_on_the_emulator(emulator, tmp_path):
    """So that the smoke test itself is known to work."""
    key = f"key-{tmp_path.name}-smoke"
    emulator.account(key)
    found = smoke(emulator.url, key, tmp_path, SNAKEMAKE_RUNPOD_TIME_SCALE="0.02")
    holds(found, key)
    assert found["spent"] == pytest.approx(found["bill"], rel=0.05, abs=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.skipif(
    not (os.environ.get("RUNPOD_SMOKE") and os.environ.get("RUNPOD_API_KEY")),
    reason="spends about five cents: set RUNPOD_SMOKE=1 and RUNPOD_API_KEY",
)
def test_one_job_and_its_bill_on_the_real_service(tmp_path):
    key = os.environ["RUNPOD_API_KEY"]
    found = smoke(REAL, key, tmp_path, SMOKE_BILL_S="60")
    record = Path(__file__).with_name("recorded.json")
    record.write_text(json.dumps(found["calls"], indent=1).replace(key, "KEY") + "\n")
    holds(found, key)
    if found["bill"] is not None:  # it may come an hour later
        assert found["spent"] == pytest.approx(found["bill"], rel=0.25)
