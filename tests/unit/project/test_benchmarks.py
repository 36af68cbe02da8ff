import json
import subprocess
import sys

import pytest
from support.snake import ROOT


@pytest.mark.slow
def test_the_benchmark_of_the_engine_runs_in_small(tmp_path):
    command = [sys.executable, "benchmarks/engine.py", "--device", "cpu", "--miniature"]
    command += ["--models", "gpt-oss-20b", "glm-4.5-air", "--sequences", "2", "--tokens", "64"]
    command += ["--folder", str(tmp_path), "--out", str(tmp_path / "out.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [found["model"] for found in results] == ["gpt-oss-20b", "glm-4.5-air"]
    for found in results:
        assert found["equals_resident"] is True
        assert found["streamed_repeats"] is True
        assert found["old_hooks_hits_rate"] > 0 == found["old_hooks_no_hits_rate"]
        assert {"over_floor", "old_hooks_hits_over_streamed"} <= found.keys()
        assert {"sequence_s", "statistics_torch_share"} <= found.keys()
        assert found["files_share_of_activations"] > 0
    assert results[0]["attention_full_1_passes"] is True
    assert "| over_floor |" in done.stdout
    assert not list(tmp_path.glob("moe-outliers-*/*"))
