"""One owner a folder; who only looks is waited for."""

import os
import threading

from moe_outliers.workflow import lock as owner


def test_who_has_signed_is_named_and_its_word_outlives_it(tmp_path):
    said = []
    own, before = owner.claim(tmp_path / "owner", said.append)
    assert before == ""
    owner.sign(own)
    other, who = owner.claim(tmp_path / "owner", said.append)
    assert other is None
    assert who.startswith(f"process {os.getpid()} on ")
    own.close()
    own, before = owner.claim(tmp_path / "owner", said.append)
    assert before == who  # it has worked here since
    own.close()
    own, before = owner.claim(tmp_path / "owner", said.append)
    assert before == ""
    assert not said


def test_who_only_looks_is_waited_for_and_no_dead_owner_is_named(tmp_path):
    said = []
    dead, _ = owner.claim(tmp_path / "owner", said.append)
    owner.sign(dead)
    dead.close()
    looking, _ = owner.claim(tmp_path / "owner", said.append)
    threading.Timer(owner.QUIET_S + 1, looking.close).start()
    own, who = owner.claim(tmp_path / "owner", said.append)
    assert own
    assert who == ""
    assert len(said) == 1
