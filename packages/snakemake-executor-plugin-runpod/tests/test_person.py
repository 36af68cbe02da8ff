"""What `moe-outliers` tells of rented machines, beside what it tells of the models."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from rig import PYTHON

from snakemake_executor_plugin_runpod.ledger import Ledger

ROOT = Path(__file__).parents[2]


def ask(project, *words, **environment):
    done = subprocess.run(
        [PYTHON.with_name("moe-outliers"), *words, "--directory", str(project.folder)],
        cwd=ROOT,
        env=project.environment() | {"HF_ENDPOINT": "http://127.0.0.1:9"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_status_has_a_row_a_job_and_the_dollars_of_all_its_pods(undisturbed):
    code, said = ask(undisturbed, "status", "--json")
    assert code == 0, said
    jobs = json.loads(said)["pods"]
    assert [(job["job"], job["phase"], job["alive"]) for job in jobs] == [
        ("count alpha", "fetched", False)
    ]
    assert jobs[0]["said"] == ""  # nothing works any more
    bill = undisturbed.account.change()["bill"]
    assert jobs[0]["dollars"] == pytest.approx(bill, rel=0.05, abs=2e-4)
    code, said = ask(undisturbed, "status")
    assert re.search(r"^ count alpha +\S+ +NVIDIA .+ fetched +3/3 ", said, re.M), said
    assert re.search(r"pods that may be alive: 0, spent so far: \$0\.\d{4} \(an estimate\)", said)


def test_status_says_why_the_ledger_cannot_be_read(project):
    folder = project.folder / ".snakemake/runpod"
    folder.mkdir(parents=True)
    (folder / "ledger.jsonl").symlink_to("/proc/self/mem")  # it is there, and cannot be read
    code, said = ask(project, "status")
    assert code == 0, said
    assert re.search(r"^ pods: error: \[Errno", said.splitlines()[-1])
    (folder / "ledger.jsonl").unlink()


@pytest.mark.parametrize("entry", ['{"event": "created", "name": "unheard-of"}', "[1]", "\0", "{"])
def test_a_damaged_entry_of_the_ledger_is_passed_over(tmp_path, entry):
    (tmp_path / "ledger.jsonl").write_text(f"{entry}\n")
    ledger = Ledger(tmp_path)
    assert not ledger.leases
    facts = {"key": "k", "title": "t", "fingerprint": "f", "gpu": "g", "gpus": 1, "rate": 0.5}
    ledger.intend("a", outputs=[], **facts)
    assert [lease.name for lease in Ledger(tmp_path).open_leases()] == ["a"]


def test_doctor_knows_the_key_and_the_balance(project):
    code, said = ask(project, "doctor")
    assert code == 0, said
    assert "ok      RunPod, API key: accepted" in said
    assert "ok      RunPod, balance: $100.00" in said
    project.account.change(balance=0.0)
    code, said = ask(project, "doctor")
    assert code == 0, said
    assert re.search(r"^warning RunPod, balance: \$0\.00\n +add credit at https://", said, re.M)
    code, said = ask(project, "doctor", RUNPOD_API_KEY="wrong")
    assert re.search(r"^warning RunPod, API key: .+\n +make a key at https://", said, re.M), said
