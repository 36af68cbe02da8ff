"""What every script shares."""

import os
import subprocess
import sys

SCRIPT = "import time; from moe_outliers import job; job.end_with_controller(); time.sleep(60)"


def test_a_script_whose_controller_is_gone_before_it_looks_ends_at_once():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    environment = os.environ | {"MOE_OUTLIERS_CONTROLLER": str(gone.pid)}
    ended = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, timeout=50, check=False)
    assert ended.returncode == 1
