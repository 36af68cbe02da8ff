"""What every script shares."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.waits

SCRIPT = r"""
import os, sys, time
from moe_outliers.workflow.script import end_with_controller

end_with_controller()
os.write(1, b"watching\n")  # whole or not at all, whenever it ends
time.sleep(float(sys.argv[1]))
print("done", flush=True)
"""


def _watched(controller, seconds):
    """Run a script for so long below a controller; return its status and all that it printed."""
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(seconds)],
        env=os.environ | {"MOE_OUTLIERS_CONTROLLER": str(controller)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=50,
        check=False,
    )
    return ended.returncode, ended.stdout


def test_a_script_whose_controller_is_gone_before_it_looks_ends_at_once():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    code, said = _watched(gone.pid, 60)
    assert code == 1
    assert said in ("", "watching\n")  # by itself, not by a fault of its own: that would be told


def test_a_script_whose_controller_is_there_runs_to_its_end():
    assert _watched(os.getpid(), 1) == (0, "watching\ndone\n")


FULL = """
import types
from pathlib import Path
from moe_outliers.workflow import script

here = types.SimpleNamespace(log=["a.log"], output=[])
script.run(lambda _: Path("/dev/full").write_text("x"), here)
"""


def test_a_full_disk_is_said_in_one_message_with_the_fix(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[0].startswith("error: OSError: [Errno 28] No space left")
    assert "a disk is full: free some and run the same command again" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in (tmp_path / "a.log").read_text()


HOSTILE = r"""
import logging, types
from moe_outliers.workflow import script

def main(_):
    logging.info("a tensor \x1b[2J")
    raise ValueError("a name \x1b]0;owned\x07 \x9b2J\rof a repository")

script.run(main, types.SimpleNamespace(log=["a.log"], output=[]))
"""


def test_a_hostile_name_reaches_no_terminal(tmp_path):
    """Nor by the log, which Snakemake shows when a job has failed."""
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE], cwd=tmp_path, capture_output=True, check=False
    )
    for text in (done.stderr.decode(), (tmp_path / "a.log").read_text()):
        assert "of a repository" in text
        assert all(c.isprintable() or c == "\n" for c in text)
