"""The pods of the account as the API shows them: one listing for all jobs, and pods ended for good.

Every call of the API goes through here: it is retried as the kind of its error allows, and when the
service asks to wait, all calls wait.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import tenacity

from snakemake_executor_plugin_runpod.api.errors import (
    ApiError,
    GoneError,
    TransientError,
    UnauthorisedError,
)
from snakemake_executor_plugin_runpod.api.model import PodApi, PodView, Spec
from snakemake_executor_plugin_runpod.api.retry import ATTEMPTS, pause
from snakemake_executor_plugin_runpod.failpoints import Failpoint, reach
from snakemake_executor_plugin_runpod.failures import JobError
from snakemake_executor_plugin_runpod.lease import Lease
from snakemake_executor_plugin_runpod.ledger import Ledger
from snakemake_executor_plugin_runpod.limits import Limits

T = TypeVar("T")

WORTH_SAYING_S = 10

CONSOLE = "https://console.runpod.io/pods"


class Fleet:
    """What is known of all pods.

    Attributes:
        wanted: names of pods that a job is using or waiting for. Any other living pod of this
            ledger is ended as soon as it is seen.
        closing: from then on a pod that is seen is written down, and not ended by itself.
    """

    def __init__(
        self, api: PodApi, ledger: Ledger, limits: Limits, say: Callable[[str], None]
    ) -> None:
        self.api, self.ledger, self.limits, self.say = api, ledger, limits, say
        self.wanted: set[str] = set()
        self.closing = False
        self.listings = 0
        self._views: dict[str, PodView] = {}
        self._began = -1e9
        self._looking = asyncio.Lock()
        self._seen: dict[str, float] = {}
        self._quiet_until = 0.0
        self._endings: dict[str, asyncio.Future[bool]] = {}
        self._given_up: dict[str, float] = {}

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call the API; errors that may pass are tried again, others raised.

        Raises:
            ApiError: of any kind but a transient one at once, that one at the end of patience.
        """
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(TransientError),
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=pause,
            sleep=asyncio.sleep,
            reraise=True,
        )
        return await retrying(self._once, function, *arguments)

    async def create(self, spec: Spec) -> str:
        """Create a pod: one call, never repeated, and not given up when this task is cancelled."""
        await self._quiet()  # outside: who is cancelled in a pause must not create a pod after it
        call = asyncio.ensure_future(self._now(self.api.create, spec))
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            await asyncio.wait({call})
            if not call.exception():
                self.ledger.write("created", spec.name, id=call.result())
            raise

    async def look(self, within: float = 0.0) -> dict[str, PodView]:
        """Return all living pods by id.

        Args:
            within: a listing that began so many seconds ago is new enough.

        Raises:
            ApiError: if they cannot be listed.
        """
        since = time.monotonic() - within
        async with self._looking:
            if self._began < since:
                await self._list()
        return self._views

    async def named(self, name: str, patience: float) -> list[PodView]:
        """Look for pods of a name until there is one, or for so many seconds."""
        end, wait = time.monotonic() + patience, self.limits.list_every / 4
        while True:
            views = await self.look(within=0)
            if hits := [view for view in views.values() if view.name == name]:
                return sorted(hits, key=lambda view: view.created)
            if time.monotonic() >= end:
                return []
            await asyncio.sleep(wait)
            wait = min(2 * wait, self.limits.list_every)

    async def find(self, id: str) -> PodView | None:  # noqa: A002 - the API's own word
        """Return a living pod; one that is too new to be listed is asked for by its id."""
        view = (await self.look(within=self.limits.list_every)).get(id)
        view = view or await self.call(self.api.pod, id)
        return view if view and not view.terminated else None

    async def is_gone(self, id: str) -> bool:  # noqa: A002
        """Tell whether there is no such pod: two listings in a row and its id do not find it."""
        for look in range(2):
            if look:
                await asyncio.sleep(self.limits.twice)
            if id in await self.look(within=0):
                return False
        view = await self.call(self.api.pod, id)
        return view is None or view.terminated

    async def end(self, lease: Lease) -> bool:
        """End a pod for good, and wait until it is proven.

        Returns:
            Whether it is proven; if not, its id and what to do have been said.
        """
        return await asyncio.shield(self.end_soon(lease))

    def end_soon(self, lease: Lease) -> "asyncio.Future[bool]":
        """Begin to end a pod, see `end`; one that was given up not before some minutes later."""
        self.wanted.discard(lease.name)
        ending = self._endings.get(lease.name)
        if ending is None or (ending.done() and not self._is_given_up(lease)):
            ending = asyncio.ensure_future(self._end(lease))
            self._endings[lease.name] = ending
        return ending

    async def end_extra(self, id: str) -> None:  # noqa: A002
        """End a pod that has the name of another one."""
        for _ in range(ATTEMPTS):
            with suppress(GoneError):
                await self.call(self.api.terminate, id)
            if await self.is_gone(id):
                return
        self.say(f"POD {id} MAY STILL BE ALIVE AND BILLED. End it at {CONSOLE}")

    async def settle(self) -> None:
        """Wait for all endings that are under way; begin none meanwhile.

        Their listings show each other's pods: if that began new ones, they might never end.
        """
        before, self.closing = self.closing, True
        while alive := self._under_way():
            await asyncio.wait(alive)
        self.closing = before

    async def settle_late(self) -> None:
        """Wait until no pod can turn up any more whose creation had no clear answer."""
        end = time.monotonic() + self.limits.late
        while unclear := [x for x in self.ledger.open_leases() if x.id is None and x.rate]:
            age = time.time() - max(lease.asked for lease in unclear)
            wait = min(self.limits.late - age, end - time.monotonic())
            if wait > 0:
                names = ", ".join(lease.name for lease in unclear)
                self.say(f"waiting for {wait:.0f} s at most: it may still turn up: {names}")
                await asyncio.sleep(min(wait + self.limits.twice / 10, self.limits.list_idle))
            ended = await asyncio.gather(*(self.end(lease) for lease in unclear))
            if wait <= 0 or not all(ended):
                return

    async def room(self, most: int) -> None:
        """Wait until fewer pods than that may be alive.

        Pods that an earlier run left and that no job has taken over make room at last.

        Raises:
            JobError: if they will not end.
        """
        idle, said = time.monotonic(), False
        while len(alive := [x for x in self.ledger.open_leases() if x.rate]) >= most:
            if not said:
                said = True
                self.say(f"{len(alive)} pods may be alive, the most that may be: waiting for one")
            mine = [x for x in alive if x.run == self.ledger.run and x.name in self.wanted]
            unclear = [x for x in alive if x.id is None]
            if mine or unclear or self._under_way():
                idle = time.monotonic()
            for lease in unclear:
                if time.time() - lease.asked > self.limits.late:
                    self.end_soon(lease)
            if time.monotonic() - idle > self.limits.list_idle:
                left = [x for x in alive if x.name in self.wanted]
                if not left:
                    names = ", ".join(lease.id or lease.name for lease in alive)
                    raise JobError(
                        f"no pod was rented: --runpod-max-pods {most}, and as many may be alive "
                        f"that will not end, or are kept: {names}. {self.ledger.command('reap')}"
                    )
                self.say(
                    f"pod {left[0].id} of {left[0].title} makes room: no job has taken it over"
                )
                self.end_soon(left[0])
            ended = asyncio.FIRST_COMPLETED
            await asyncio.wait({*self._under_way(), self._pause()}, return_when=ended)

    def _pause(self) -> "asyncio.Future[Any]":
        return asyncio.ensure_future(asyncio.sleep(min(1.0, self.limits.list_every)))

    def _under_way(self) -> list["asyncio.Future[Any]"]:
        return [ending for ending in self._endings.values() if not ending.done()]

    def _is_given_up(self, lease: Lease) -> bool:
        since = self._given_up.get(lease.name)
        return since is not None and time.monotonic() - since < self.limits.late

    async def _once(self, function: Callable[..., T], *arguments: Any) -> T:
        await self._quiet()
        return await self._now(function, *arguments)

    async def _quiet(self) -> None:
        """Wait for as long as the service asked for."""
        while (wait := self._quiet_until - time.monotonic()) > 0:
            await asyncio.sleep(wait)

    async def _now(self, function: Callable[..., T], *arguments: Any) -> T:
        try:
            return await asyncio.to_thread(function, *arguments)
        except ApiError as error:
            if wait := error.retry_after:
                before = max(self._quiet_until, time.monotonic())
                self._quiet_until = max(before, time.monotonic() + wait)
                if self._quiet_until - before > WORTH_SAYING_S:
                    self.say(f"RunPod asks to wait for {wait:.0f} s: until then nothing is asked")
            raise

    async def _list(self) -> None:
        began = time.monotonic()
        views = await self.call(self.api.pods)
        self.listings += 1
        self._began = began
        before = self._views
        self._views = {view.id: view for view in views if not view.terminated}
        for kept in self.ledger.open_leases():
            if kept.kept and kept.id and kept.id not in self._views | before:
                self.ledger.write("gone", kept.name)  # it has ended itself, as it was to
        self._seen.update(dict.fromkeys(self._views, time.time()))
        for view in self._views.values():
            if lease := self.ledger.leases.get(view.name):
                self._see(lease, view)

    def _see(self, lease: Lease, view: PodView) -> None:
        """Take in that a pod of this ledger is alive; end it if nobody wants it."""
        wanted, ledger = lease.name in self.wanted, self.ledger
        ending = self._endings.get(lease.name)
        busy = ending is not None and not ending.done()
        known = lease.id == view.id
        late = lease.dies is not None and lease.dies < time.time()
        back = known and (late or ledger.is_foreign(lease))
        if back or not (wanted or busy or (known and lease.open)):
            who = {"account": ledger.account, "keyed": ledger.keyed}
            ledger.write("created", lease.name, id=view.id, rate=view.rate, **who)
        if wanted or busy or lease.kept or self.closing or self._is_given_up(lease):
            return
        self.say(f"pod {view.id} ({view.name}) is left over: ending it")
        self.end_soon(lease)

    async def _end(self, lease: Lease) -> bool:
        if not lease.open:
            return True
        if self.ledger.is_foreign(lease):
            return self._give_up(lease, "it is of another account, or key, than this one")
        end = time.monotonic() + self.limits.terminate
        wait = self.limits.twice
        while True:
            try:
                if await self._end_once(lease):
                    return True
            except UnauthorisedError as error:
                return self._give_up(lease, str(error))
            except (ApiError, OSError) as error:  # the second: the ledger's disk is full
                self.say(f"pod {lease.id or lease.name} could not be ended yet: {error}")
            if not lease.open:
                return True
            if time.monotonic() >= end:
                return self._give_up(lease, f"not proven within {self.limits.terminate:.0f} s")
            await asyncio.sleep(wait)
            wait = min(2 * wait, 60)

    async def _end_once(self, lease: Lease) -> bool:
        """Ask once to end every pod of a name; return whether it is proven that none is left."""
        ids = {view.id for view in await self.named(lease.name, 0)} | {lease.id}
        if ids == {None}:
            if time.time() - lease.asked > self.limits.late:
                self.ledger.write("gone", lease.name)
            return True
        if lease.id is None:
            lease = self.ledger.write("created", lease.name, id=max(i for i in ids if i))
        reach(Failpoint.BEFORE_TERMINATE)
        known = True
        for id in filter(None, ids):  # noqa: A001
            try:
                await self._once(self.api.terminate, id)
            except GoneError:
                fresh = time.time() - lease.asked < self.limits.ambiguous
                known = known and (id in self._seen or not fresh)
        if known and lease.terminating is None:
            self.ledger.write("terminating", lease.name)
        gone = [await self.is_gone(each) for each in filter(None, ids)]
        if not (known and all(gone)):
            return False
        seen = (self._seen.get(id, 0.0) for id in ids if id)  # noqa: A001
        last = max(lease.terminating or 0.0, *seen)
        self.ledger.write("gone", lease.name, **({"ended": last} if last else {}))
        reach(Failpoint.AFTER_TERMINATE)
        return True

    def _give_up(self, lease: Lease, reason: str) -> bool:
        """Say that a pod may be alive; it is not asked to end again for a while."""
        self._given_up[lease.name] = time.monotonic()
        self.say(
            f"POD {lease.id or lease.name} MAY STILL BE ALIVE AND BILLED AT ${lease.hourly:.2f}/h "
            f"({reason}). End it at {CONSOLE}, or with: {self.ledger.command('reap')}"
        )
        return False
