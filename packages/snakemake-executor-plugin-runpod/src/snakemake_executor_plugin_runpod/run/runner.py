"""Brings jobs to their end on rented pods, whatever happens to the pods."""

import asyncio
import time
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_runpod.api.errors import ApiError
from snakemake_executor_plugin_runpod.context import Context
from snakemake_executor_plugin_runpod.failures import (
    BadHostError,
    JobError,
    PodLostError,
    ShortageError,
)
from snakemake_executor_plugin_runpod.job.rehearsal import rehearse
from snakemake_executor_plugin_runpod.lease import Lease
from snakemake_executor_plugin_runpod.needs import Needs
from snakemake_executor_plugin_runpod.remote.link import LostError, RemoteError
from snakemake_executor_plugin_runpod.renting.money import Budget, BudgetError
from snakemake_executor_plugin_runpod.renting.pods import Pods
from snakemake_executor_plugin_runpod.run.attempt import Attempt
from snakemake_executor_plugin_runpod.task import STEPS, Recipe, Task

LARGER = 2
"""How often a job gets a larger pod."""

OTHERS = 3
"""How often a machine that is no good is left for another."""

SALVAGE_S = 45
"""How long a job that must end now may still send what it has finished."""


class Engine:
    """Runs jobs, each on a pod of its own.

    Attributes:
        halted: why no job may go on; None while they may.
    """

    def __init__(self, context: Context, pods: Pods, budget: Budget) -> None:
        self._context, self._pods, self._budget = context, pods, budget
        self._ledger = context.ledger
        # On a machine that is there jobs take turns; pods wait for others to be gone: Fleet.room.
        node, most = context.settings.node, context.settings.max_pods or 1
        self._slots: AbstractAsyncContextManager[Any] = (
            asyncio.Semaphore(most) if node else nullcontext()
        )
        self._tried: dict[str, asyncio.Task[None]] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        self.halted: str | None = None
        self._ticked = time.time()
        self._detached = False

    def submit(self, task: Task) -> "asyncio.Task[None]":
        """Begin a job; the task that is returned ends with it, or raises JobError."""
        job = asyncio.ensure_future(self._run(task))
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        job.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, if late
        return job

    async def guard(self) -> None:
        """Watch over budget and pods until it is cancelled."""
        clock = asyncio.ensure_future(self._tick_on())
        try:
            while True:
                self._tick()
                try:
                    self._budget.check()
                except BudgetError as error:
                    await self.halt(str(error))
                    return
                try:
                    await self._pods.watch()
                except ApiError:
                    pass  # the next look may do better
                except Exception as error:  # and after anything else too
                    self._context.say(f"the pods could not be looked at: {error}")
                await asyncio.sleep(min(self._context.poll_s, self._context.limits.list_every))
        finally:
            clock.cancel()

    async def _tick_on(self) -> None:
        while True:
            self._tick()
            with suppress(OSError):
                self._ledger.beat()
            await asyncio.sleep(1)

    def _tick(self) -> None:
        """Write down which pods must have ended themselves, if this machine has slept so long.

        They are not billed any more, so they may not count against the budget.
        """
        before, self._ticked = self._ticked, time.time()
        grace = (self._context.settings.grace or 0) * 60
        if self._ticked - before < grace or self._context.settings.node:
            return
        self._context.say(
            f"this machine slept since {time.ctime(before)}: pods that could ended themselves"
        )
        self._ledger.bound(before)

    async def halt(self, reason: str, *, detach: bool = False) -> None:
        """End all jobs and their pods.

        Args:
            reason: is told of every job.
            detach: leave the pods at work; the next run takes them over.
        """
        self.halted, self._detached = reason, detach
        jobs = set(self._jobs)
        for job in jobs:
            job.cancel()
        if jobs:
            await asyncio.wait(jobs)

    async def wait(self) -> None:
        """Wait until all jobs have ended, which may take as long as what they salvage."""
        if self._jobs:
            await asyncio.wait(set(self._jobs), timeout=SALVAGE_S)

    async def _run(self, task: Task) -> None:
        try:
            async with self._slots:
                await self._bring_to_end(task)
        except ApiError as error:
            raise JobError(f"RunPod: {error}") from None
        except BudgetError as error:
            raise JobError(str(error)) from None
        except asyncio.CancelledError:
            if self.halted is None:
                raise
            raise JobError(self.halted) from None

    async def _bring_to_end(self, task: Task) -> None:
        try:
            items = await asyncio.to_thread(task.items, self._context.digests)
        except (ValueError, OSError) as error:  # an input that cannot be sent
            raise JobError(str(error)) from None
        recipe = task.recipe(items)
        if task.anew:
            self._ledger.supersede(task.key)
        if done := await asyncio.to_thread(self._is_done, task, recipe.fingerprint):
            self._say(task, f"its products came from pod {done.id} before: nothing to do")
            await self._pods.release(task)
            return None
        await self._rehearse(task)
        patience = {
            PodLostError: self._context.settings.restarts or 0,
            BadHostError: OTHERS,
            ShortageError: LARGER,
        }
        while True:
            try:
                return await self._once(task, recipe)
            except (PodLostError, BadHostError, ShortageError) as error:
                more = f"\n{error.more}" if isinstance(error, ShortageError) and error.more else ""
                if patience[type(error)] == 0:
                    raise JobError(f"{error}; it was tried often enough{more}") from None
                patience[type(error)] -= 1
                if isinstance(error, ShortageError):
                    task = self._enlarge(task, error)
                self._say(task, f"{error}: trying another pod{more}")

    async def _once(self, task: Task, recipe: Recipe) -> None:
        """Run a job on one pod, and see to it that the pod ends."""
        lease = await self._pods.get(task, recipe)
        attempt, failed = None, False
        try:
            link = await self._pods.link(lease)
            attempt = Attempt(
                task,
                lease,
                link,
                self._context,
                gone=lambda: self._pods.gone(lease, link),
                clear=lambda: self._pods.clear(task, lease, link),
            )
            await attempt.run()
        except JobError:
            failed = True
            raise
        except asyncio.CancelledError:
            await self._salvage(attempt)
            raise
        except BadHostError:
            self._pods.avoid(lease)
            raise
        except LostError as error:
            raise PodLostError(str(error)) from None
        except RemoteError as error:
            raise BadHostError(str(error)) from None
        finally:
            if attempt:
                await attempt.close()
            await self._pods.give_back(lease, failed=failed, detach=self._detached)

    async def _salvage(self, attempt: Attempt | None) -> None:
        """Fetch what is finished of a job that must end now."""
        if attempt is None or self._detached:
            return
        with suppress(Exception):
            async with asyncio.timeout(SALVAGE_S):
                await attempt.salvage()

    def _enlarge(self, task: Task, error: ShortageError) -> Task:
        before = task.needs
        need: Needs = before.larger(error.what, error.had)
        step = f"more {error.what}"
        if error.had is not None:
            step += f" after {error.had:.0f} GB"
        steps = ", ".join(filter(None, [task.variables.get(STEPS), step]))
        return replace(task, needs=need, variables=task.variables | {STEPS: steps})

    def _is_done(self, task: Task, fingerprint: str) -> Lease | None:
        """Find an attempt whose products are all here, unchanged, and that Snakemake waits for."""
        digests = self._context.digests
        for lease in reversed(self._ledger.leases.values()):
            same = lease.key == task.key and lease.fingerprint == fingerprint
            if not (same and lease.products) or lease.superseded:
                continue
            files = {Path(name): sha256 for name, sha256 in lease.products.items()}
            if all(path.is_file() and digests(path) == sha for path, sha in files.items()):
                return lease if all(Path(name).exists() for name in task.outputs) else None
        return None

    async def _rehearse(self, task: Task) -> None:
        """Try out one job of each rule; the others wait for the outcome."""
        if self._context.settings.no_rehearsal:
            return
        if task.rule not in self._tried:
            folder = self._ledger.folder / "rehearsal" / task.key
            self._tried[task.rule] = asyncio.ensure_future(
                asyncio.to_thread(rehearse, task, folder)
            )
        await asyncio.shield(self._tried[task.rule])

    def _say(self, task: Task, text: str) -> None:
        self._context.say(f"{task.title}: {text}")
