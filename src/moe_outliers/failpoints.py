"""Points where a test may kill the program or make it fail; without that they do nothing.

The environment variable MOE_OUTLIERS_FAILPOINT names one: `before_receipt` kills this process with
SIGKILL when it gets there, `before_receipt:3` the third time, and `before_receipt!` raises an error
instead.
"""

import os
import signal
from collections import Counter
from enum import StrEnum

VARIABLE = "MOE_OUTLIERS_FAILPOINT"


class Failpoint(StrEnum):
    """Every point, in the order in which a run passes them."""

    HEALED = "healed"
    OWNED = "owned"
    SHARD_GROWN = "shard_grown"
    SHARD_VERIFIED = "shard_verified"
    BEFORE_SLOTS = "before_slots"
    BEFORE_FORWARD = "before_forward"
    BEFORE_RENAME = "before_rename"
    BEFORE_STATISTICS = "before_statistics"
    BEFORE_RECEIPT = "before_receipt"
    AFTER_RECEIPT = "after_receipt"
    BEFORE_DIGEST = "before_digest"


_reached: Counter[Failpoint] = Counter()


def reach(point: Failpoint, error: type[Exception] = RuntimeError) -> None:
    """Pass a failpoint; `error` is what `!` raises here."""
    asked = os.environ.get(VARIABLE)
    if not asked:
        return
    name, _, count = asked.rstrip("!").partition(":")
    if name != point:
        return
    _reached[point] += 1
    if _reached[point] == int(count or 1):
        if asked.endswith("!"):
            raise error(f"failpoint {point}")
        os.kill(os.getpid(), signal.SIGKILL)
