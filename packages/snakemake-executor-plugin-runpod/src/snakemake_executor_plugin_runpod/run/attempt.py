"""One job on one pod: log in, look at the machine, stage, start, watch, fetch."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_runpod.api.errors import printable
from snakemake_executor_plugin_runpod.context import Context
from snakemake_executor_plugin_runpod.failpoints import Failpoint, reach
from snakemake_executor_plugin_runpod.failures import (
    FULL,
    BadHostError,
    JobError,
    PodLostError,
    ShortageError,
    available,
    is_of_requirements,
    shortage,
    tail,
)
from snakemake_executor_plugin_runpod.lease import Lease
from snakemake_executor_plugin_runpod.remote.console import Console, neutralise, read
from snakemake_executor_plugin_runpod.remote.inspection import fault, is_switched, unknown
from snakemake_executor_plugin_runpod.remote.link import EndlessError, Link, LostError, RemoteError
from snakemake_executor_plugin_runpod.remote.transfer import Fetch, read_manifest, upload
from snakemake_executor_plugin_runpod.task import Task

SPEED_S = 5
SETTLED_NS = 1_000_000_000
"""A file that was written less than this ago may still be written to."""

ENDED = ("done", "failed")


class Attempt:
    """Drives one job on one pod to its end."""

    def __init__(
        self,
        task: Task,
        lease: Lease,
        link: Link,
        context: Context,
        *,
        gone: Callable[[], Awaitable[bool]],
        clear: Callable[[], Awaitable[None]],
    ) -> None:
        """Prepare an attempt.

        Args:
            task: the job.
            lease: the pod; without an id it is a machine that is not rented.
            link: to the pod.
            context: of the run.
            gone: awaited to learn whether there is no such pod any more; it also brings the
                link's endpoint up to date.
            clear: awaited to end what an earlier run began on the machine and nobody wants.
        """
        self.task, self.lease, self.link = task, lease, link
        self._settings, self._limits = context.settings, context.limits
        self._ledger, self._poll_s = context.ledger, context.poll_s
        self._gone, self._clear = gone, clear
        self._tell, self._digests = context.say, context.digests
        self._facts: dict[str, Any] = {}
        self._offset = 0
        self._finishing: asyncio.Task[None] | None = None
        path = context.ledger.folder / "logs" / f"{lease.name}.log"
        self._console = Console(path, self._say, context.poll_s)

    @property
    def job(self) -> str:
        """The job's name on the pod."""
        return self.lease.job

    def _say(self, text: str) -> None:
        self._tell(f"{self.task.title}: {text}")

    async def run(self) -> None:
        """Do all of it; what was done by an earlier controller is not done again.

        Raises:
            PodLostError, BadHostError, ShortageError: another pod may do better.
            JobError: no other pod will.
        """
        await self._log_in()
        await self._steady(self._clear)
        state = await self._ask("poll", offset=0)
        if state["phase"] == "new":
            await self._inspect()
            await self._start()
        else:
            self._say("its job was started before: going on with it")
        state = await self._watch()
        self._finishing = asyncio.ensure_future(self._finish(state))
        self._finishing.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(self._finishing)  # what has come so far is not thrown away

    async def _log_in(self) -> None:
        """Wait for a login, and make sure that it is the pod that was rented."""
        end = time.monotonic() + self._limits.banner
        while True:
            try:
                await self._greet()
                break
            except LostError as error:
                if await self._gone():
                    raise PodLostError("it was gone before the first login") from None
                if time.monotonic() > end:
                    at = self.link.endpoint
                    hint = f"ssh -p {at.port} {at.user}@{at.host} must work without questions"
                    more = "" if self.lease.id else f": {hint}"
                    raise BadHostError(f"no login by SSH: {error}{more}") from None
                await asyncio.sleep(min(1.0, self._limits.list_every / 2))
            except RemoteError as error:
                raise BadHostError(str(error)) from None
        if self.lease.host_key != self.link.host_key:
            self._phase("reached", host_key=self.link.host_key)
        reach(Failpoint.AFTER_CONNECT)

    async def _greet(self) -> None:
        """Ask the machine what it is; this also sees to its dead-man's switch."""
        rented = self.lease.id is not None
        switch = [(self._settings.grace or 0) * 60, self.task.lifetime_s]
        self._facts = await self.link.ask("hello", {"switch": switch if rented else None})
        name = self._facts.get("name")
        if rented and (self._facts.get("pod"), name) != (self.lease.id, self.lease.name):
            raise BadHostError(
                f"what answers at {self.link.endpoint.host}:{self.link.endpoint.port} calls itself "
                f"{printable(str(name))[:60]}: nothing was sent to it"
            )

    async def _inspect(self) -> None:
        """Check the machine before anything is sent to it.

        Raises:
            BadHostError: saying what is wrong with it.
        """
        if self.lease.id is None:
            return
        end = time.monotonic() + self._limits.switch
        while is_switched(self._facts) is None and time.monotonic() < end:
            await asyncio.sleep(min(1.0, self._limits.switch / 20))
            await self._steady(self._greet)
        switched = bool(is_switched(self._facts))
        self._phase(self.lease.phase, switched=switched)
        if not switched and not self._settings.allow_no_switch:
            answers = (self._facts.get("switch") or {}).get("probe", "it never started")
            raise BadHostError(f"it could not end itself ({answers}), see --runpod-allow-no-switch")
        if reason := fault(self._facts, self.task.needs, self._settings.cuda or ""):
            raise BadHostError(reason)
        if unsaid := unknown(self._facts, self.task.needs):
            self._say(f"its machine does not tell its {', '.join(unsaid)}: it is used all the same")
        if self._settings.min_download and self.task.needs.download_gb >= 1:
            await self._check_speed(self._settings.min_download)

    async def _check_speed(self, least: float) -> None:
        found = await self._ask("speed", url=self._settings.speed_url, seconds=SPEED_S)
        if "seconds" not in found:
            self._say(
                f"its download speed was not measured, so it may be slow ({found.get('failed')}); "
                "see --runpod-speed-url"
            )
            return
        mbits = found["bytes"] * 8 / 1e6 / found["seconds"]
        if mbits < least:
            raise BadHostError(f"it downloads at {mbits:.0f} Mbit/s, {least:.0f} are needed")

    async def _start(self) -> None:
        self._phase("staging")
        begun, task = time.monotonic(), self.task
        items = await asyncio.to_thread(task.items, self._digests)
        recipe = task.recipe(items)
        if recipe.fingerprint != self.lease.fingerprint:  # files have changed since it was rented
            self._ledger.keep_recipe(recipe.fingerprint, vars(recipe))
            self._phase("staging", fingerprint=recipe.fingerprint)
        sent = await self._steady(lambda: upload(self.link, self.job, items, self._limits))
        seconds = time.monotonic() - begun
        reach(Failpoint.AFTER_STAGE)
        own = {
            "RUNPOD_POD_ID": self.lease.id or self.lease.name,
            "RUNPOD_PRICE_USD_PER_H": f"{self.lease.rate:g}",
        }
        await self._ask(
            "start",
            command=task.command,
            directory=task.directory,
            pythonpath=task.pythonpath,
            requirements=task.requirements,
            snakemake=task.snakemake,
            limit_s=task.limit_s,
            variables=task.variables | own,
            secrets=self._secrets(),
        )
        self._phase("started", staged_bytes=sent, staged_s=round(seconds, 2))
        reach(Failpoint.AFTER_START)

    def _secrets(self) -> dict[str, str]:
        """Return what the machine may know."""
        if self.lease.cloud != "community" or self.task.trusts_all:
            return self.task.secrets
        if "HF_TOKEN_FILE" in self.task.secrets:
            self._say("its host is anybody's: HF_TOKEN does not go there, see --runpod-pass-env")
        return {n: value for n, value in self.task.secrets.items() if n != "HF_TOKEN_FILE"}

    async def _watch(self) -> dict[str, Any]:
        """Wait for the end of the job; return its last state."""
        harvested, dead = time.monotonic(), 0
        self._console.clear()
        self._offset = 0
        while True:
            state = await self._look()
            if self.lease.dies is not None:  # it has not ended itself: its clock goes on
                self._ledger.write("created", self.lease.name)
            reach(Failpoint.POLLING)
            if state["phase"] == "new":
                raise PodLostError("its container started anew")
            if state["phase"] not in (self.lease.phase, "starting"):
                self._phase(state["phase"], seconds=state.get("seconds"))
            if state["phase"] in ENDED:
                return state
            dead = 0 if state["alive"] or state["more"] else dead + 1
            if dead > 1:
                return state | {"error": "the process that looks after it was killed"}
            if self.task.updates and time.monotonic() - harvested > self._limits.harvest:
                await self._steady(self.harvest)
                harvested = time.monotonic()
            if not state["more"]:
                await asyncio.sleep(self._poll_s)

    async def _look(self) -> dict[str, Any]:
        """Ask how far the job is, and keep the next piece of what it printed."""
        state = await self._ask("poll", offset=self._offset)
        if state["phase"] != "new":
            self._console.add(state["log"])
            self._offset = state["offset"]
        return state

    async def salvage(self) -> None:
        """Fetch what is finished of a job that must end now: all of it, or finished parts."""
        if self._finishing is None:
            state = await self._look()
            if state["phase"] == "done":
                self._finishing = asyncio.ensure_future(self._finish(state))
        if self._finishing is not None:
            await self._finishing
        elif self.task.updates:
            await self.harvest()

    async def close(self) -> None:
        """Have done with the pod; what is still on its way stays there."""
        if self._finishing is not None and not self._finishing.done():
            self._finishing.cancel()
            await asyncio.wait({self._finishing})
        await self.link.close()

    async def harvest(self) -> None:
        """Fetch finished parts of a job that brings its outputs up to date, while it works."""
        answer = await self._manifest(self.task.updates)
        products = read_manifest(answer, self.task.updates)
        settled = [p for p in products if p.mtime_ns + SETTLED_NS < answer["now_ns"]]
        if fetched := await self._fetch()(settled):
            self._say(f"{len(fetched)} finished files are here")

    async def _finish(self, state: dict[str, Any]) -> None:
        """Fetch the products, then the rest of the console; of a failed job what it leaves.

        Raises:
            JobError, ShortageError, BadHostError: if it failed, or its products cannot come home.
        """
        good = state["phase"] == "done" and state.get("code") == 0
        names = [*(self.task.outputs if good else self.task.partial), *self.task.logs]
        products, missing, refused = await self._steady(lambda: self._bring(names))
        more = state["more"]
        while more:
            more = (await self._look()).get("more")
        if not good:
            for log in self.task.logs:
                neutralise(Path(log))
            raise self._failure(state)
        if refused:
            raise JobError(f"{refused}\n{self._last_words()}")
        if lacking := [name for name in self.task.outputs if name in missing]:
            text = f"it ended without an error, but did not make {lacking[0]}"
            raise JobError(f"{text}\n{self._last_words()}")
        self._ledger.write("fetched", self.lease.name, products=products)
        self._phase("fetched")

    async def _bring(self, names: list[str]) -> tuple[dict[str, str], set[str], str]:
        """Fetch what exists of some products.

        Returns:
            The digests of files, the names of products that do not exist, and why something of the
            others cannot come home.
        """
        answer = await self._manifest(names)
        products = read_manifest(answer, names)
        await self._fetch()(products)
        refused, links = "", [x for x in answer.get("refused") or [] if isinstance(x, dict)]
        for entry in links:
            name = printable(str(Path(str(entry.get("product")), str(entry.get("below")))))
            target = printable(str(entry.get("out")))
            refused = refused or (
                f"its product {name} is a link to {target}, which leads out of the job's folder "
                "and would lead nowhere here: all else is fetched; make it a file, or a relative "
                "link"
            )
        there = {product.product for product in products}
        there |= {str(entry.get("product")) for entry in links}
        digests = {str(p.target): p.sha256 for p in products if p.kind == "file"}
        return digests, set(names) - there, refused

    def _fetch(self) -> Fetch:
        return Fetch(self.link, self.job, self.lease.name, self._limits, self._digests)

    async def _manifest(self, names: list[str]) -> dict[str, Any]:
        request = {"job": self.job, "products": names}
        try:
            return await self.link.ask("manifest", request, patience=10 * self._limits.call)
        except EndlessError:
            raise JobError("its products are too many files to be listed: pack them") from None

    def _failure(self, state: dict[str, Any]) -> Exception:
        """Say why a job failed, with its last words; the host is blamed only with proof."""
        text, more = read(self._console.path), self._last_words()
        reason = printable(str(state.get("error") or f"exit status {state.get('code')}"))[:300]
        if state["phase"] == "failed":
            own = state.get("own") or is_of_requirements(text)
            return (JobError if own else BadHostError)(f"{reason}\n{more}")
        texts = [text, *(read(Path(log)) for log in self.task.logs)]
        if what := shortage(state.get("evidence") or {}, texts):
            return ShortageError(what, available(what, self._facts), more)
        return JobError(f"{reason}\n{more}")

    def _last_words(self) -> str:
        """Return the end of what the job printed, and where all of it is."""
        return f"{tail(read(self._console.path))}\n(all of it: {self._console.path})"

    async def _ask(self, command: str, /, **request: Any) -> dict[str, Any]:
        whole = {"job": self.job, **request}
        answer: dict[str, Any] = await self._steady(lambda: self.link.ask(command, whole))
        return answer

    async def _steady(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Do something with the pod; when the connection is lost, come back and do it again.

        Raises:
            PodLostError: if the pod is gone, or out of reach for too long.
            BadHostError, ShortageError: if the pod cannot do it.
        """
        since, tries = time.monotonic(), 0
        while True:
            try:
                return await call()
            except LostError as error:
                tries += 1
                since = since if tries > 1 else time.monotonic()
                if await self._gone():
                    raise PodLostError("it is gone") from None
                if time.monotonic() - since > self._limits.lost and tries > 3:
                    raise PodLostError(f"no contact: {error}") from None
                if tries == 1:
                    self._say(f"the connection was lost ({error}): coming back to it")
                await asyncio.sleep(min(self._poll_s, self._limits.lost / 10))
            except RemoteError as error:
                if FULL.search(str(error)):
                    raise ShortageError("disk", available("disk", self._facts)) from None
                raise BadHostError(str(error)) from None

    def _phase(self, phase: str, **facts: Any) -> None:
        changed = phase != self.lease.phase
        self._ledger.write("phase", self.lease.name, phase=phase, **facts)
        if changed:
            self._say(phase)
