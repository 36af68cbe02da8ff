"""One owner a folder; who only looks is waited for."""

import os
import threading

from moe_outliers.workflow import lock


def test_who_has_signed_is_named_and_its_word_outlives_it(tmp_path):
    said = []
    own, before = lock.claim(tmp_path / "owner", said.append)
    assert before == ""
    lock.sign(own)
    other, who = lock.claim(tmp_path / "owner", said.append)
    assert other is None
    assert who.startswith(f"process {os.getpid()} on ")
    own.close()
    own, before = lock.claim(tmp_path / "owner", said.append)
    assert before == who  # it has worked here since
    own.close()
    own, before = lock.claim(tmp_path / "owner", said.append)
    assert before == ""
    assert not said


def test_who_only_looks_is_waited_for_and_no_dead_owner_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "QUIET_S", 2 * lock.LOOK_S)
    said = []
    dead, _ = lock.claim(tmp_path / "owner", said.append)
    lock.sign(dead)
    dead.close()
    looking, _ = lock.claim(tmp_path / "owner", said.append)
    threading.Timer(lock.QUIET_S + 0.5, looking.close).start()
    own, who = lock.claim(tmp_path / "owner", said.append)
    assert own
    assert who == ""
    assert len(said) == 1
