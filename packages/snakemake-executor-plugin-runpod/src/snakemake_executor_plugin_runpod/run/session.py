"""One run of Snakemake, from what is checked before the first job to what it cost."""

import asyncio
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from snakemake_executor_plugin_runpod.api.errors import ApiError
from snakemake_executor_plugin_runpod.api.model import Account, PodApi
from snakemake_executor_plugin_runpod.api.open import find_key, open_api
from snakemake_executor_plugin_runpod.api.retry import insist
from snakemake_executor_plugin_runpod.commands.text import farewell, spending
from snakemake_executor_plugin_runpod.context import Context
from snakemake_executor_plugin_runpod.job import from_snakemake as reading
from snakemake_executor_plugin_runpod.ledger import Ledger
from snakemake_executor_plugin_runpod.limits import limits
from snakemake_executor_plugin_runpod.needs import needs
from snakemake_executor_plugin_runpod.remote.link import Identity
from snakemake_executor_plugin_runpod.renting.fleet import Fleet
from snakemake_executor_plugin_runpod.renting.money import Budget
from snakemake_executor_plugin_runpod.renting.pods import Node, Pods, Rented
from snakemake_executor_plugin_runpod.renting.preflight import check_account, check_hub
from snakemake_executor_plugin_runpod.renting.provision import Provision
from snakemake_executor_plugin_runpod.run.runner import Engine
from snakemake_executor_plugin_runpod.settings import ExecutorSettings
from snakemake_executor_plugin_runpod.task import Task

POLLS = 5
"""How often a pod hears from here within its grace, at least."""


class Session:
    """Everything of one run.

    Attributes:
        engine: takes tasks; there once `start` has ended.
        succeeded: keys of the jobs whose success Snakemake was told of.
    """

    def __init__(self, workflow: Any, say: Callable[[str], None], poll_s: float) -> None:
        """Become the one controller of this folder.

        Raises:
            ValueError: if a setting is wrong, or another process is the controller.
        """
        self._workflow, self._say = workflow, say
        self.settings: ExecutorSettings = workflow.executor_settings or ExecutorSettings()
        self.settings.check()
        self.ledger = Ledger()
        often = (self.settings.grace or 0) * 60 / POLLS  # a pod that is asked less dies of silence
        self._context = Context(self.settings, self.ledger, limits(), say, min(poll_s, often))
        daily = self.settings.daily_budget or 0
        self._budget = Budget(self.settings.budget or 0, self.ledger, say, daily)
        self._key = find_key()
        os.environ.pop("RUNPOD_API_KEY", None)  # no job of this machine needs it
        self._api: PodApi | None = None
        self._account = Account()
        self._pods: Pods | None = None
        self._guard: asyncio.Task[None] | None = None
        self._detached = self._interrupted = False
        self.succeeded: set[str] = set()
        self.engine: Engine
        if holder := self.ledger.claim():
            raise ValueError(f"the pods of this folder are in use by {holder}: wait for it")

    async def start(self) -> None:
        """Check everything that can be checked before a job runs, and see to earlier pods.

        Raises:
            ValueError: saying what is wrong and how to mend it.
        """
        waiting = [job for job in self._workflow.dag.needrun_jobs() if not job.is_local]
        try:
            await self._prepare(waiting)
        except (ApiError, ValueError) as error:
            if waiting:
                raise ValueError(str(error)) from None
            self._say(f"{error}; earlier pods could not be looked at")

    async def ready(self, job: Any) -> None:
        """Prepare for a job that was not known at the start, as those behind a checkpoint.

        Raises:
            ValueError: as `start` does.
        """
        if self._guard is None:
            try:
                await self._prepare([job])
            except ApiError as error:
                raise ValueError(str(error)) from None

    async def _prepare(self, waiting: list[Any]) -> None:
        self._refuse(waiting)
        if self.settings.node:
            self._pods = Node(self._context, self.settings.node)
        elif waiting or self.ledger.open_leases():
            await asyncio.to_thread(self._rent_from_runpod, waiting)
        if self._pods is None:
            return
        self.engine = Engine(self._context, self._pods, self._budget)
        await self._pods.start({name for job in waiting for name in reading.outputs(job)})
        self._guard = asyncio.ensure_future(self.engine.guard())

    def task(self, job: Any, command: str, declared: Mapping[str, str]) -> Task:
        """Describe a job; see `from_snakemake.task`.

        Raises:
            ValueError: if it cannot run on a pod.
        """
        for each in reading.members(job):
            reading.refuse(each, self._workflow)
        return reading.task(
            job,
            self._workflow,
            self.settings,
            command=command,
            declared=declared,
            seal=self.ledger.seal,
        )

    async def halt(self, detach: bool) -> None:
        """End all jobs now; see `Engine.halt`."""
        self._detached, self._interrupted = detach, True
        if self._pods is not None:
            await self.engine.halt("the run was interrupted", detach=detach)

    async def close(self) -> None:
        """End whatever pods are left."""
        if self._guard is not None:
            self._guard.cancel()
        if self._pods is not None:
            await self.engine.wait()
            await self._pods.close(self._detached, patient=not self._interrupted)

    def left(self) -> str:
        """Say which pods may be alive although they were to end; nothing if none is."""
        if self._detached:
            return ""
        leases = [x for x in self.ledger.open_leases() if x.rate and not x.kept]
        return ", ".join(lease.id or lease.name for lease in leases)

    def end_without_loop(self) -> None:
        """Ask once more that every pod is ended: the last resort if the event loop has died."""
        for lease in self.ledger.open_leases():
            if self._api is not None and lease.id and not lease.kept:
                with suppress(ApiError):
                    self._api.terminate(lease.id)
                    self.ledger.write("terminating", lease.name)

    def report(self) -> None:
        """Say what the pods of this run have cost, and that Snakemake knows of its successes."""
        with suppress(OSError):
            for key in self.succeeded:
                self.ledger.supersede(key)
        if lines := spending(self.ledger):
            self._say("\n".join(lines))

    def farewell(self) -> None:
        """Name the pods that may still be alive when the process ends."""
        if self._detached:
            return
        if lines := farewell(self.ledger):  # a process that ends has no logger any more
            print("\n".join(lines), file=sys.stderr, flush=True)

    def _refuse(self, waiting: list[Any]) -> None:
        """Refuse what could lose results or cannot run on a pod.

        Raises:
            ValueError: with the way to mend it.
        """
        for job in waiting:
            reading.refuse(job, self._workflow)
        if waiting:
            plan = reading.plan_of(self._workflow, self.settings, [])
            reading.requirements(plan.repository, self.settings)

    def _rent_from_runpod(self, waiting: list[Any]) -> None:
        """Prepare to rent; in a thread, since it takes seconds and asks the network."""
        if self._api is None:
            self._api = open_api(self.settings.api or "auto", self._key)
            self._account = insist(self._api.account)
            self.ledger.know(self._key or "", self._account.user)
        api = self._api
        offers = []
        if waiting:
            needed = [needs(dict(job.resources.items())) for job in reading.submitted(waiting)]
            check_hub((need.hub for need in needed), self._say)
            spent = self._budget.spent_today()
            offers = check_account(api, self._account, self.settings, needed, spent)
        fleet = Fleet(api, self.ledger, self._context.limits, self._say)
        identity = Identity.of_project(self.ledger.folder)
        provision = Provision(
            fleet,
            self.settings,
            self._budget,
            key=identity.public(),
        )
        provision.offers = offers
        self._pods = Rented(self._context, fleet, provision, identity)
