"""The book of pods: what it counts, whose pods it speaks of, and books of earlier versions."""

import json
import os
import shutil
import time

import pytest

from snakemake_executor_plugin_runpod.ledger import FOLDER, Ledger

FACTS = {"key": "k", "title": "t", "fingerprint": "f", "gpu": "g", "gpus": 1, "outputs": []}


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "here" / FOLDER)


def again(ledger):
    return Ledger(ledger.folder)


def write(ledger, *entries):
    """Write entries as some process did at some time."""
    ledger.folder.mkdir(parents=True, exist_ok=True)
    with (ledger.folder / "ledger.jsonl").open("a") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in entries)


def test_a_book_of_an_earlier_version_is_read(ledger):
    """It knew neither disk, account nor folder; that a pod had ended it said as today."""
    name, other = f"{ledger.prefix}k-1", f"{ledger.prefix}k-2"
    old = {"event": "intent", "run": "r", "rate": 3.6, **FACTS}
    write(
        ledger,
        *({**old, "name": n, "time": 1000} for n in (name, other)),
        *({"event": "created", "name": n, "time": 1001, "id": n[-1]} for n in (name, other)),
        {"event": "terminating", "name": name, "time": 1500},
        {"event": "gone", "name": name, "time": 2000},
    )
    book = again(ledger)
    assert [lease.id for lease in book.open_leases()] == ["2"]
    assert book.leases[name].cost(5000) == pytest.approx(1.0)
    assert book.leases[other].cost(5000) == pytest.approx(4.0)


def test_a_clock_runs_until_the_pod_is_gone_and_on_when_it_is_seen_again(ledger):
    """Its disk is billed beside its GPU."""
    lease = ledger.intend("a", rate=0.5, disk_gb=730, **FACTS)
    assert lease.hourly == pytest.approx(0.6)
    ledger.write("created", "a", id="1")
    asked = lease.asked
    ledger.write("terminating", "a")
    assert lease.cost(asked + 3600) == pytest.approx(0.6, rel=1e-3)
    ledger.write("gone", "a", ended=asked + 60)
    assert lease.cost(asked + 3600) == pytest.approx(0.01, rel=1e-3)
    assert not ledger.open_leases()
    ledger.write("created", "a", id="1")
    assert again(ledger).open_leases()
    assert again(ledger).leases["a"].cost(asked + 3600) == pytest.approx(0.6, rel=1e-3)
    assert lease.cost(asked + 3600, since=asked + 1800) == pytest.approx(0.3, rel=1e-3)


def test_a_pod_whose_controller_is_gone_is_counted_until_it_must_have_ended_itself(ledger):
    assert ledger.claim() is None
    ledger.intend("a", rate=3600, grace_s=20, **FACTS)
    ledger.intend("b", rate=3600, **FACTS)
    for name in "ab":
        ledger.write("created", name, id=name)
    heard = ledger.leases["a"].asked + 30
    os.utime(ledger.folder / "lock", (heard, heard))
    ledger._lock.close()
    book = again(ledger)
    assert book.claim() is None
    costs = [book.leases[name].cost(heard + 1000) for name in "ab"]
    assert costs == pytest.approx([50, 1030], abs=1)


def test_a_folder_that_is_copied_speaks_of_its_own_pods_and_one_that_moves_too(ledger, tmp_path):
    ledger.intend("a", rate=1, **FACTS)
    here = tmp_path / "here"
    shutil.copytree(here, tmp_path / "copy")
    assert not Ledger(tmp_path / "copy" / FOLDER).open_leases()
    assert Ledger(here / FOLDER).open_leases()
    here.rename(tmp_path / "moved")
    assert Ledger(tmp_path / "moved" / FOLDER).open_leases()
    assert Ledger(tmp_path / "copy" / FOLDER).open_leases()  # the original may be elsewhere now
    assert (tmp_path / "moved" / FOLDER / ".gitignore").read_text() == "*\n"


def test_a_pod_of_another_key_is_foreign_unless_the_account_is_the_same(ledger):
    ledger.know("one", "user")
    ledger.intend("a", rate=1, **FACTS)
    for key, user, foreign in (
        ("one", None, False),
        ("two", "user", False),
        ("two", "another", True),
        ("two", None, True),
    ):
        book = again(ledger)
        assert book.open_leases()  # without a key it is not known whose is asked about
        book.know(key, user)
        assert bool(book.foreign_leases()) == foreign
        assert bool(book.open_leases()) != foreign
    text = (ledger.folder / "ledger.jsonl").read_text()
    assert '"one"' not in text
    assert '"user"' not in text


def test_what_was_spent_within_a_day_is_told_from_what_was_before(ledger):
    now = time.time()
    old = {"event": "intent", "run": "r", "rate": 1.0, "home": ledger.home, **FACTS}
    write(
        ledger,
        {**old, "name": "a", "time": now - 30 * 3600},
        {"event": "created", "name": "a", "time": now - 30 * 3600, "id": "1"},
        {"event": "gone", "name": "a", "time": now - 20 * 3600},
    )
    book = again(ledger)
    assert book.spent() == pytest.approx(10, rel=1e-3)
    assert book.spent(since=now - 86400) == pytest.approx(4, rel=1e-3)
