"""What pods cost, what they may cost, and how long a job takes: estimates, never RunPod's bill."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from snakemake_executor_plugin_runpod.ledger import Ledger
from snakemake_executor_plugin_runpod.needs import Needs

BOOT_MIN = (1.5, 4.0, 15.0)
"""From creation to a login: with the image on the host, usually, and when it must be pulled."""

ENVIRONMENT_MIN = (1.0, 3.0, 8.0)
"""To install a job's Python environment."""

DOWNLOAD_GB_PER_MIN = (24.0, 7.5, 2.4)
"""400, 125 and 40 MB/s."""

WORK_MIN = (1.0, 3.0, 10.0)
"""What a job does beside its download, which mostly hides its computation."""

WARN_AT = 0.8

DAY_S = 86400


RUNTIME_SHARE = (1 / 4, 1 / 2, 1.0)
"""What a job takes of the time that its rule allows it."""


@dataclass(frozen=True)
class Estimate:
    """Minutes that a pod of a job lives: low, expected and high."""

    low: float
    expected: float
    high: float

    def cost(self, price: float) -> tuple[float, float, float]:
        """Return the dollars at a price an hour: low, expected and high."""
        return self.low * price / 60, self.expected * price / 60, self.high * price / 60


def estimate(need: Needs) -> Estimate:
    """Estimate how long the pod of a job lives.

    A job that says what it downloads works as long as that takes, and a little more, by the rules
    of thumb at the top of this module. Of any other its resource `runtime` is all that is known: it
    may take all of that, and half of it is expected. Neither takes longer than its `runtime`.
    """
    minutes = []
    for boot, environment, speed, work, share in zip(
        BOOT_MIN, ENVIRONMENT_MIN, DOWNLOAD_GB_PER_MIN, WORK_MIN, RUNTIME_SHARE, strict=True
    ):
        download = need.download_gb / speed
        if need.runtime_min is None:
            own = download + work
        elif need.download_gb:
            own = min(download + work, need.runtime_min)
        else:
            own = share * need.runtime_min
        minutes.append(boot + environment + own)
    return Estimate(*minutes)


class BudgetError(Exception):
    """The budget of this run does not allow it."""


class Budget:
    """Watches what a run spends.

    Attributes:
        limit: dollars of this run.
        daily: dollars of all runs of its folder within 24 hours.
    """

    def __init__(
        self, limit: float, ledger: Ledger, say: Callable[[str], None], daily: float = math.inf
    ) -> None:
        self.limit, self.daily, self._ledger, self._say = limit, daily, ledger, say
        self._planned: dict[str, float] = {}
        self._warned: set[str] = set()

    def spent(self) -> float:
        """Return the dollars that this run has cost so far."""
        return self._ledger.spent(self._ledger.run)

    def spent_today(self) -> float:
        """Return the dollars that all runs of this folder have cost in the last 24 hours."""
        return self._ledger.spent(since=time.time() - DAY_S)

    def plan(self, name: str, dollars: float) -> None:
        """Set aside what a pod is expected to cost.

        Raises:
            BudgetError: if that, what was spent and what is set aside is over the limit.
        """
        now = time.time()
        leases = self._ledger.leases
        reserved = sum(
            max(0.0, planned - leases[other].cost(now))
            for other, planned in self._planned.items()
            if other in leases and leases[other].open
        )
        for what, limit, spent, option in self._limits():
            if spent + reserved + dollars > limit:
                raise BudgetError(
                    f"the budget of ${limit:.2f}{what} does not allow another pod: spent "
                    f"${spent:.2f}, expected of running pods ${reserved:.2f}, of this one "
                    f"${dollars:.2f}: raise {option}"
                )
        self._planned[name] = dollars

    def check(self) -> None:
        """Warn at 80 %.

        Raises:
            BudgetError: if the budget is spent.
        """
        for what, limit, spent, option in self._limits():
            if spent >= limit:
                raise BudgetError(
                    f"the budget of ${limit:.2f}{what} is spent: all pods are ended, what they "
                    f"had finished is here; to go on raise {option}"
                )
            if spent >= WARN_AT * limit and what not in self._warned:
                self._warned.add(what)
                self._say(f"${spent:.2f} of the budget of ${limit:.2f}{what} are spent")

    def _limits(self) -> list[tuple[str, float, float, str]]:
        """Return each limit: its kind, dollars, what is spent of it, the option that raises it."""
        return [
            ("", self.limit, self.spent(), "--runpod-budget"),
            (" for a day", self.daily, self.spent_today(), "--runpod-daily-budget"),
        ]
