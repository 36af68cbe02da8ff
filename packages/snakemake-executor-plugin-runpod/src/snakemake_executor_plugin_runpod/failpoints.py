"""Places where a test may kill the controller, or make it fail; nothing happens unless it asks.

The environment variable SNAKEMAKE_RUNPOD_FAILPOINT names one: `after_create` kills this process
with SIGKILL when it comes there, `after_create:2` at the second time, `after_create!` raises an
error instead.
"""

import os
import signal
from collections import Counter
from enum import StrEnum

VARIABLE = "SNAKEMAKE_RUNPOD_FAILPOINT"


class Failpoint(StrEnum):
    """Every place, in the order in which one job comes past them."""

    BEFORE_INTENT = "before_intent"
    AFTER_INTENT = "after_intent"
    AFTER_CREATE = "after_create"
    AFTER_BIND = "after_bind"
    AFTER_CONNECT = "after_connect"
    AFTER_STAGE = "after_stage"
    AFTER_START = "after_start"
    POLLING = "polling"
    COPYING = "copying"
    BEFORE_RENAME = "before_rename"
    AFTER_RENAME = "after_rename"
    BEFORE_TERMINATE = "before_terminate"
    AFTER_TERMINATE = "after_terminate"


_reached: Counter[Failpoint] = Counter()


def reach(point: Failpoint) -> None:
    """Come past a failpoint."""
    asked = os.environ.get(VARIABLE)
    if not asked:
        return
    name, _, count = asked.rstrip("!").partition(":")
    if name != point:
        return
    _reached[point] += 1
    if _reached[point] == int(count or 1):
        if asked.endswith("!"):
            raise RuntimeError(f"failpoint {point}")
        os.kill(os.getpid(), signal.SIGKILL)
