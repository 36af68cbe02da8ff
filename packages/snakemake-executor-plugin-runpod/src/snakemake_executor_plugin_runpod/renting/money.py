"""What pods cost, what they may cost, and how long a job takes: estimates, never RunPod's bill."""

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


@dataclass(frozen=True)
class Estimate:
    """Minutes that a pod of a job lives: low, expected and high."""

    low: float
    expected: float
    high: float

    def cost(self, price: float) -> tuple[float, float, float]:
        """Return the dollars at a price an hour."""
        return self.low * price / 60, self.expected * price / 60, self.high * price / 60


def estimate(need: Needs) -> Estimate:
    """Estimate how long the pod of a job lives.

    The job's own limit, its resource `runtime`, caps its work; everything else is a rule of thumb
    whose parts stand at the top of this module.
    """
    minutes = []
    for boot, environment, speed, work in zip(
        BOOT_MIN, ENVIRONMENT_MIN, DOWNLOAD_GB_PER_MIN, WORK_MIN, strict=True
    ):
        own = environment + need.download_gb / speed + work
        minutes.append(boot + min(own, need.runtime_min or own))
    return Estimate(*minutes)


class BudgetError(Exception):
    """The budget of this run does not allow it."""


class Budget:
    """Watches what a run spends.

    Attributes:
        limit: dollars.
    """

    def __init__(self, limit: float, ledger: Ledger, say: Callable[[str], None]) -> None:
        self.limit, self._ledger, self._say = limit, ledger, say
        self._planned: dict[str, float] = {}
        self._warned = False

    def spent(self) -> float:
        """Return the dollars that this run has cost so far."""
        return self._ledger.spent(self._ledger.run)

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
            if other in leases and leases[other].ended is None
        )
        total = self.spent() + reserved + dollars
        if total > self.limit:
            raise BudgetError(
                f"the budget of ${self.limit:.2f} does not allow another pod: spent "
                f"${self.spent():.2f}, expected of running pods ${reserved:.2f}, of this one "
                f"${dollars:.2f}: raise --runpod-budget"
            )
        self._planned[name] = dollars

    def check(self) -> None:
        """Warn at 80 %.

        Raises:
            BudgetError: if the budget is spent.
        """
        spent = self.spent()
        if spent >= self.limit:
            raise BudgetError(
                f"the budget of ${self.limit:.2f} is spent: all pods are ended, what they had "
                "finished is here; to go on raise --runpod-budget"
            )
        if spent >= WARN_AT * self.limit and not self._warned:
            self._warned = True
            self._say(f"${spent:.2f} of the budget of ${self.limit:.2f} are spent")
