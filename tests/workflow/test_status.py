"""`moe-outliers status` and `explain` on a finished sweep, and on one that was damaged."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

from support.snake import ROOT

PROGRAM = Path(sys.executable).with_name("moe-outliers")


def command(demo, *words):
    where = ["--directory", str(demo.folder), "--configfile", str(demo.overlay)]
    return [str(PROGRAM), "status", *words, *where]


def status(demo, *words):
    done = subprocess.run(
        command(demo, *words), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_everything_of_a_finished_sweep_is_done(demo):
    found = json.loads(status(demo, "--json")[1])
    assert len(found["models"]) == 7
    for row in found["models"].values():
        assert (row["batches_valid"], row["batches_total"], row["batches_invalid"]) == (16, 16, 0)
        assert [row[step] for step in ("tokens", "metrics", "bootstrap")] == ["done"] * 3
        assert row["verify"] == "valid"
    assert found["sweep"] == dict.fromkeys(["texts", "tables", "figures", "report"], "done")
    assert found["pods"] is None


def test_what_is_damaged_or_missing_is_told_apart(demo, tmp_path):
    copy = demo.copy(tmp_path / "copy")
    statistics, _ = copy.pair("mini-glm", 3)
    statistics.write_bytes(statistics.read_bytes()[:-1])
    for file in copy.pair("mini-glm", 4):
        file.unlink()
    (copy.folder / "results/metrics/mini-mixtral.parquet").write_bytes(b"")
    (copy.folder / "results/report.html").unlink()
    found = json.loads(status(copy, "--json")[1])
    row = found["models"]["mini-glm"]
    assert (row["batches_valid"], row["batches_invalid"], row["batches_total"]) == (14, 1, 16)
    assert found["models"]["mini-mixtral"]["metrics"] == "damaged"
    assert found["sweep"]["report"] == "missing"
    table = status(copy)[1]
    assert "14/16 (1 damaged)" in table
    assert max(map(len, table.splitlines())) <= 200
    assert re.search(r"^ mini-glm: forward passes: 16, each of 8 blocks; ", table, re.M), table


def test_a_watched_status_needs_a_terminal_and_ends_with_ctrl_c(demo):
    code, said, complaint = status(demo, "--watch")
    assert (code, said) == (1, "")
    assert complaint.startswith("error: --watch needs a terminal")
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command(demo, "--watch"),
        cwd=ROOT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "80"},
    ) as process:
        os.close(theirs)
        seen = b""
        while b"report" not in seen:
            seen += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
    os.close(ours)
    for model in ("mini-qwen3-next", "mini-gpt-oss-b"):  # whole, in a window of 80 columns
        assert model.encode() in seen


def explain(demo, path):
    where = ["--directory", str(demo.folder), "--configfile", str(demo.overlay)]
    done = subprocess.run(
        [PROGRAM, "explain", str(path), *where],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return dict(line.split(": ", 1) for line in done.stdout.splitlines())


def test_what_is_finished_is_explained_by_its_receipt_or_its_digest(demo):
    said = explain(demo, "results/extract/mini-glm/03.json")
    assert said["valid"] == "yes: whole, of this model and these settings"
    assert said["settings"] == "the same as now"
    assert "torch" in said["made by"]
    assert said["next run"] == "not built: nothing to be done"
    path = "results/verify/mini-olmoe.json"
    for named in (path, demo.folder / path):
        said = explain(demo, named)
        assert said["valid"] == f"yes, by results/.digests/{path.removeprefix('results/')}.json"
        assert said["next run"] == "not built: nothing to be done"


def test_what_is_damaged_missing_or_unknown_is_explained(demo, tmp_path):
    copy = demo.copy(tmp_path / "copy")
    (copy.folder / "results/plots/forest.svg").unlink()
    said = explain(copy, "results/plots/forest.svg")
    assert said["results/plots/forest.svg"] == "missing"
    assert said["next run"].startswith("built: Missing output files: results/plots/forest.svg")
    statistics, _ = copy.pair("mini-glm", 3)
    statistics.write_bytes(statistics.read_bytes()[:-1])
    said = explain(copy, "results/extract/mini-glm/03.nc")
    assert said["valid"].startswith("no: ")
    assert said["next run"].startswith("built: marked as damaged")
    said = explain(copy, "results/report.html")
    assert said["next run"].startswith("built: Input files updated by another job")
    said = explain(copy, "results/nonsense.txt")
    assert said["next run"].startswith("Snakemake stops: No rule to produce results/nonsense.txt")
