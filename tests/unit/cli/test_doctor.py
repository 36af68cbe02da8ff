"""What `moe-outliers doctor` finds, and the fix that it names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.hub import Fault, Hub
from support.snake import ROOT

from moe_outliers.cli import doctor

pytestmark = pytest.mark.waits

BIN = Path(sys.executable).parent
NOBODY = "http://127.0.0.1:9"


def run(home, *words, **environment):
    """Run it as a person would who has set these variables, and no others."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    done = subprocess.run(
        [BIN / "moe-outliers", "doctor", *map(str, words)],
        cwd=ROOT,
        env=kept | {"HOME": str(home), "HF_ENDPOINT": NOBODY} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout


def driver(folder, *lines):
    """Make an nvidia-smi; return a PATH on which it comes first."""
    folder.mkdir()
    program = folder / "nvidia-smi"
    program.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    program.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def after(said, line):
    """Return the line below the one that begins so: the fix."""
    lines = said.splitlines()
    return lines[next(i for i, text in enumerate(lines) if text.startswith(line)) + 1].strip()


def test_every_line_that_is_not_ok_has_a_fix_below_it(tmp_path):
    code, said = run(tmp_path, "--directory", tmp_path)
    assert code == 0
    lines = said.splitlines()
    signs = ("ok      ", "warning ", "FAULT   ")
    assert all(line.startswith((*signs, " " * 8)) for line in lines)
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        assert line.startswith(("warning ", "FAULT   ")) == below.startswith(" " * 8), line
    assert "console.runpod.io/user/settings" in after(
        said, "warning RunPod, API key: there is none"
    )
    assert "HF_ENDPOINT" in after(said, f"warning model hub: {NOBODY}")


def test_the_hubs_answer_to_the_token_is_told(tmp_path):
    with Hub(token="hf_right") as hub:
        code, said = run(tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN="hf_right")
        assert code == 0
        assert ("GET", "/api/whoami-v2") in hub.requests
        assert f"ok      model hub: {hub.url}: reached, the token is accepted" in said
        code, said = run(tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN="hf_wrong")
        assert code == 1
        assert "HF_TOKEN" in after(said, f"FAULT   model hub: {hub.url}: the token is refused")
        assert "hf_wrong" not in said
    with Hub(faults=[Fault("503", "^/$")]) as hub:
        code, said = run(tmp_path, HF_ENDPOINT=hub.url)
        assert code == 0
        assert after(said, f"warning model hub: {hub.url}: HTTP 503") == "try again later"


def test_a_driver_that_fails_is_a_fault(tmp_path):
    path = driver(tmp_path / "bin", "echo 'Failed to initialize NVML: Driver mismatch'", "exit 18")
    code, said = run(tmp_path, PATH=path)
    assert code == 1
    assert "mend the driver" in after(said, "FAULT   GPU: Failed to initialize NVML")


def test_a_torch_that_cannot_use_the_card_is_a_fault(tmp_path):
    import torch

    path = driver(tmp_path / "bin", "echo 'NVIDIA L4, 23034 MiB, 570.86'")
    code, said = run(tmp_path, PATH=path, CUDA_VISIBLE_DEVICES="")
    assert "ok      GPU: NVIDIA L4, 23034 MiB, 570.86" in said
    assert code == 1
    fix = "CUDA" if torch.version.cuda is None else "driver"
    assert fix in after(said, f"FAULT   torch: {torch.__version__}")


def test_a_package_that_is_not_as_pinned_is_named(tmp_path):
    pins = tmp_path / "constraints.txt"
    pins.write_text("numpy==1.0\n")
    found = doctor.packages(pins)
    assert (found.state, found.fix) == ("warning", "make install")
    assert "numpy" in found.found


def test_too_little_disk_is_a_warning_with_a_number(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "RESULTS_GB", 1e9)
    found = doctor.disk(tmp_path)
    assert found.state == "warning"
    assert "--directory" in found.fix
