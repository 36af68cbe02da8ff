"""What a dry run would cost: a table at its end, for any workflow.

A Snakefile asks for it in one line:

    from snakemake_executor_plugin_runpod import costs; costs.show(workflow)

It says nothing in a real run, and nothing where another executor is chosen. It needs no key and no
network: without a key it takes the prices that came with this package. Every run ends with the pods
of earlier ones that may be alive: one that has nothing to do does not look after them.
"""

import atexit
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError

from snakemake_executor_plugin_runpod import settings as chosen
from snakemake_executor_plugin_runpod.api.errors import ApiError
from snakemake_executor_plugin_runpod.api.model import Offer
from snakemake_executor_plugin_runpod.api.open import find_key, open_api
from snakemake_executor_plugin_runpod.commands.text import farewell, table
from snakemake_executor_plugin_runpod.job.from_snakemake import submitted, title
from snakemake_executor_plugin_runpod.ledger import FOLDER, Ledger
from snakemake_executor_plugin_runpod.needs import Needs, needs
from snakemake_executor_plugin_runpod.renting.money import Estimate, estimate
from snakemake_executor_plugin_runpod.renting.offers import Candidate, candidates, price_list
from snakemake_executor_plugin_runpod.settings import ExecutorSettings

HEAD = (
    "job",
    "GPU, the first choice first",
    "$/h with disk",
    "disk GB",
    "minutes",
    "low $",
    "$",
    "high $",
)
NAMED = 3
"""Kinds of GPU that a row names."""


@dataclass(frozen=True)
class Row:
    """What one job would cost on its first choice of pod.

    Attributes:
        fault: why there is no pod for it; then there are no pods.
    """

    title: str
    need: Needs
    pods: Sequence[Candidate] = ()
    fault: str = ""

    @property
    def time(self) -> Estimate:
        """How long its pod lives."""
        return estimate(self.need)

    @property
    def dollars(self) -> tuple[float, float, float]:
        """Low, expected and high."""
        return self.time.cost(self.hourly) if self.pods else (0.0, 0.0, 0.0)

    @property
    def hourly(self) -> float:
        """Dollars an hour of its first choice, with its disk."""
        return (self.pods[0].price or 0) + self.need.disk_usd_per_h

    def cells(self) -> tuple[str, ...]:
        """Return what the table says."""
        if not self.pods:
            return (self.title, self.fault, *["-"] * (len(HEAD) - 2))
        kinds = list(dict.fromkeys(pod.gpu.removeprefix("NVIDIA ") for pod in self.pods))
        more = f" and {len(kinds) - NAMED} more" if len(kinds) > NAMED else ""
        return (
            self.title,
            ", ".join(kinds[:NAMED]) + more,
            f"{self.hourly:.2f}",
            f"{self.need.disk_gb}",
            f"{self.time.expected:.0f}",
            *(f"{value:.2f}" for value in self.dollars),
        )


def show(workflow: Any) -> None:
    """Let a dry run with this executor end with what the jobs would cost."""
    if getattr(workflow, "is_main_process", True):
        atexit.register(_show, workflow)
        atexit.register(_name_left, workflow)


def rows(
    named: Iterable[tuple[str, Needs]], settings: ExecutorSettings, offers: Sequence[Offer]
) -> list[Row]:
    """Estimate jobs.

    Args:
        named: for each job its title and what it needs.
        settings: of the user.
        offers: every kind of GPU and its prices.
    """
    found = []
    for name, need in named:
        try:
            found.append(Row(name, need, candidates(need, settings, offers)))
        except ValueError as error:
            found.append(Row(name, need, fault=str(error)))
    return found


def lines(found: Sequence[Row], settings: ExecutorSettings, source: str) -> list[str]:
    """Lay out the table.

    Args:
        found: of all jobs.
        settings: of the user.
        source: where the prices are from, for people.
    """
    low, expected, high = (sum(part) for part in zip(*(row.dollars for row in found), strict=True))
    budget = settings.budget or 0
    total = ("total", "", "", "", "", f"{low:.2f}", f"{expected:.2f}", f"{high:.2f}")
    said = [
        f"What the {len(found)} remote jobs would cost at RunPod, by {source}:",
        *table([HEAD, *(row.cells() for row in found), total], numbers=len(HEAD) - 2),
        f"  The budget of a run is ${budget:.2f}: when it is spent, all pods are ended.",
    ]
    if guessed := sum(row.need.is_guess for row in found):
        said.append(f"  {guessed} of them say nothing of their time: give them a `runtime`.")
    if low > budget:
        said.append("  Even the low estimate is over the budget: raise --runpod-budget.")
    elif expected > budget:
        said.append("  That is not enough: raise --runpod-budget, or select fewer jobs.")
    elif high > budget:
        said.append("  If everything is slow that is not enough; what is finished then is here.")
    return said


def prices(settings: ExecutorSettings) -> tuple[list[Offer], str]:
    """Return the offers, and where they are from: RunPod now if there is a key, else the list."""
    month, listed = price_list()
    known = f"the price list of {month}"
    if not find_key():
        return listed, f"{known} (set RUNPOD_API_KEY for the prices of now)"
    try:
        return open_api(settings.api or "auto").offers(), "its prices of now"
    except ApiError as error:
        return listed, f"{known}, since RunPod did not tell: {error}"


def _show(workflow: Any) -> None:
    """Say it when the process ends: only then is it known which jobs would have run."""
    with suppress(AttributeError, BrokenPipeError):  # ended before there was a graph of jobs
        dag = workflow.dag
        jobs = submitted(job for job in dag.jobs if dag.finished(job) and _remote(job))
        behind = sorted({j.rule.name for j in dag.jobs if j.is_checkpoint and dag.finished(j)})
        if not (workflow.dryrun and chosen.latest and jobs):
            return
        settings = chosen.latest[0]
        try:
            settings.check()
            named = sorted((title(job), needs(dict(job.resources.items()))) for job in jobs)
        except (ValueError, WorkflowError) as error:
            print(f"runpod: {error}", file=sys.stderr)
            return
        if settings.node:
            print(f"The {len(named)} remote jobs would run on {settings.node}.", file=sys.stderr)
            return
        offers, source = prices(settings)
        said = lines(rows(named, settings, offers), settings, source)
        if behind:
            names = ", ".join(behind)
            said.append(f"  Not counted: jobs that are known only after the checkpoint {names}.")
        print("\n".join(said), file=sys.stderr)
        sys.stderr.flush()


def _name_left(workflow: Any) -> None:
    """Name the pods that may be alive, unless a run is looking after them."""
    with suppress(AttributeError, OSError):
        ledger = Ledger(Path(workflow.persistence.path) / FOLDER.name)
        if (lines := farewell(ledger)) and not ledger.claim():
            print("\n".join(lines), file=sys.stderr)


def _remote(job: Any) -> bool:
    """Tell whether a job would go to a pod: to the executor of a dry run every job is local."""
    rule, local = job.rule, job.dag.workflow._localrules
    return rule.group is not None or not (rule.name in local or rule.norun)
