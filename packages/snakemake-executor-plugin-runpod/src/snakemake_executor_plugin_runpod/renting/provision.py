"""Renting a pod: written down first, asked for once, looked for if the answer was unclear."""

import asyncio
import base64
import gzip
import secrets
import time
from contextlib import suppress
from importlib import resources

from snakemake_executor_plugin_runpod.api.errors import (
    AmbiguousError,
    ApiError,
    CapacityError,
    ForbiddenError,
    GoneError,
    PermanentError,
    RetiredError,
    TransientError,
)
from snakemake_executor_plugin_runpod.api.model import Offer, PodView, Spec
from snakemake_executor_plugin_runpod.failpoints import Failpoint, reach
from snakemake_executor_plugin_runpod.failures import BadHostError, JobError, PodLostError
from snakemake_executor_plugin_runpod.lease import Lease
from snakemake_executor_plugin_runpod.ledger import Ledger
from snakemake_executor_plugin_runpod.limits import Limits
from snakemake_executor_plugin_runpod.needs import Needs
from snakemake_executor_plugin_runpod.renting.fleet import Fleet
from snakemake_executor_plugin_runpod.renting.money import Budget, estimate
from snakemake_executor_plugin_runpod.renting.offers import Candidate, candidates, price_list
from snakemake_executor_plugin_runpod.settings import ExecutorSettings
from snakemake_executor_plugin_runpod.task import Recipe, Task

ROUNDS = 3
"""How often one candidate is tried when the service asks for a pause."""


class Provision:
    """Rents pods for the jobs of one run.

    Attributes:
        avoided: machines that were no good, by the id that the API shows.
        offers: kinds of GPU with their prices; asked for where they are missing.
    """

    def __init__(
        self, fleet: Fleet, settings: ExecutorSettings, budget: Budget, *, key: str
    ) -> None:
        """Prepare.

        Args:
            fleet: the account's pods.
            settings: of the user.
            budget: of the run.
            key: public key that may log in.
        """
        self._fleet, self._settings, self._budget = fleet, settings, budget
        self._key = key
        self._ledger: Ledger = fleet.ledger
        self._limits: Limits = fleet.limits
        self._turn = asyncio.Lock()
        self._last = 0.0
        self.offers: list[Offer] = []
        self.avoided: set[str] = set()

    async def rent(self, task: Task, recipe: Recipe) -> Lease:
        """Rent a pod: the candidates in order, then again after a pause, until patience ends.

        Raises:
            JobError: if there is none; the message says what was tried.
            BudgetError: if the money is not there.
            ApiError: if the service refuses for good.
        """
        end = time.monotonic() + (self._settings.capacity_wait or 0) * 60
        wait = self._limits.backoff
        tried: dict[str, Exception] = {}
        while True:
            for candidate in await self._candidates(task.needs):
                kind = f"{candidate.gpu} ({candidate.cloud})"
                if not candidate.free:
                    tried[kind] = CapacityError("none is free, says RunPod's catalogue")
                    continue
                try:
                    return await self._rent(task, candidate, recipe)
                except (CapacityError, BadHostError, PodLostError, AmbiguousError) as error:
                    tried[kind] = error
                    if isinstance(error, BadHostError):
                        self._say(task, f"{kind}: {error}")
                except TransientError as error:  # of the API as a whole: no other kind does better
                    tried[kind] = error
                    break
            hopeless = all(isinstance(error, ForbiddenError) for error in tried.values())
            if hopeless or time.monotonic() + wait > end:
                raise JobError(_refusal(tried, hopeless, self._settings.capacity_wait or 0))
            self._say(task, f"none of {len(tried)} kinds is free: again in {wait:.0f} s")
            await asyncio.sleep(wait)
            wait = min(2 * wait, self._limits.backoff_most)
            self.offers = []  # what is free then is another question

    async def await_endpoint(self, lease: Lease) -> PodView:
        """Wait until a pod has a public port for SSH.

        Raises:
            BadHostError: if it gets none in time.
            PodLostError: if it is gone.
        """
        end = time.monotonic() + self._limits.mapping
        assert lease.id
        while True:
            with suppress(TransientError):  # an API that fails proves nothing
                view = await self._fleet.find(lease.id)
                if view and view.failed:
                    raise BadHostError(f"its container does not run: {view.failed}")
                if view and view.endpoint:
                    return view
                if view is None and await self._fleet.is_gone(lease.id):
                    raise PodLostError("it is gone")
            if time.monotonic() > end:
                raise BadHostError(f"no port for SSH after {self._limits.mapping:.0f} s")
            await asyncio.sleep(self._limits.list_every)

    async def find(self, lease: Lease) -> bool:
        """Look for the pod of an attempt whose creation had no answer; return whether it is there.

        Also of one whose pod is known: it may be gone.

        Of several pods of one name the oldest is kept, the others are ended.
        """
        age = max(0.0, time.time() - lease.asked)  # the clock may have been set back
        if lease.id:
            return await self._fleet.find(lease.id) is not None
        hits = await self._fleet.named(lease.name, max(0.0, self._limits.ambiguous - age))
        if not hits:
            return False
        self._ledger.write("created", lease.name, id=hits[0].id, rate=hits[0].rate)
        for extra in hits[1:]:
            self._fleet.say(f"pod {extra.id} is a second one of {lease.name}: ending it")
            await self._fleet.end_extra(extra.id)
        return True

    async def _candidates(self, need: Needs) -> list[Candidate]:
        try:
            self.offers = self.offers or await self._fleet.call(self._fleet.api.offers)
        except (TransientError, GoneError) as error:
            month, self.offers = price_list()
            self._fleet.say(f"no live prices ({error}): taking those of {month}")
        try:
            return candidates(need, self._settings, self.offers)
        except ValueError as error:
            raise JobError(str(error)) from None

    async def _rent(self, task: Task, candidate: Candidate, recipe: Recipe) -> Lease:
        name = f"{self._ledger.prefix}{task.key}-{secrets.token_hex(4)}"
        price = candidate.price or 0.0
        most = self._settings.max_pods or 1
        await self._fleet.room(most)
        await self._wait_for_turn()
        await self._fleet.room(most)  # what is planned after it stands in the ledger at once
        hourly = price + task.needs.disk_usd_per_h
        self._budget.plan(name, estimate(task.needs).cost(hourly)[1])
        reach(Failpoint.BEFORE_INTENT)
        self._fleet.wanted.add(name)
        self._ledger.keep_recipe(recipe.fingerprint, vars(recipe))
        unsure = self._settings.plain_start or self._settings.allow_no_switch
        lease = self._ledger.intend(
            name,
            key=task.key,
            title=task.title,
            fingerprint=recipe.fingerprint,
            gpu=candidate.gpu,
            gpus=candidate.gpus,
            rate=price,
            cloud=candidate.cloud,
            disk_gb=task.needs.disk_gb,
            grace_s=0 if unsure else (self._settings.grace or 0) * 60,
            outputs=task.outputs,
        )
        reach(Failpoint.AFTER_INTENT)
        try:
            await self._create(task, candidate, lease)
            view = await self.gate(lease)
        except BaseException:
            await asyncio.shield(self._fleet.end(lease))
            raise
        self._say(task, f"pod {view.id}, {candidate.gpu}, ${lease.rate:.2f}/h")
        return lease

    async def _create(self, task: Task, candidate: Candidate, lease: Lease) -> None:
        spec = self._spec(task, candidate, lease.name)
        for number in range(ROUNDS):
            try:
                id = await self._fleet.create(spec)  # noqa: A001 - the API's own word
                reach(Failpoint.AFTER_CREATE)
                self._ledger.write("created", lease.name, id=id)
                reach(Failpoint.AFTER_BIND)
                return
            except AmbiguousError as error:
                self._say(task, f"no clear answer to the creation of a pod ({error}): looking")
                if await self.find(lease):
                    self._say(task, f"it is there: pod {lease.id}")
                    return
                raise
            except (CapacityError, PermanentError, RetiredError):
                self._ledger.write("refused", lease.name)
                raise
            except ApiError as error:
                if number == ROUNDS - 1:
                    self._ledger.write("refused", lease.name)
                    raise CapacityError(str(error)) from None
                await asyncio.sleep(error.retry_after or self._limits.backoff / 10)

    def _spec(self, task: Task, candidate: Candidate, name: str) -> Spec:
        grace_s = (self._settings.grace or 0) * 60
        start = "" if self._settings.plain_start else start_command(grace_s, task.lifetime_s)
        return Spec(
            name=name,
            image=self._settings.image or "",
            gpu=candidate.gpu,
            gpus=candidate.gpus,
            cloud=candidate.cloud,
            disk_gb=task.needs.disk_gb,
            memory_gb=task.needs.memory_gb,
            data_center=candidate.data_center,
            cuda=self._settings.cuda or "",
            min_download=int(self._settings.min_download or 0) or None,
            start=start,
            env={"PUBLIC_KEY": self._key, "SNAKEMAKE_RUNPOD_POD": name},
        )

    async def gate(self, lease: Lease) -> PodView:
        """Check that a new pod is ours, and what it really costs.

        Raises:
            BadHostError: if it costs too much or its host is no good.
            PodLostError: if it does not appear.
        """
        end = time.monotonic() + self._limits.ambiguous
        view = None
        while view is None or not view.rate:  # 0 is what a pod costs that does not run
            view = await self._fleet.call(self._fleet.api.pod, lease.id)
            if view is not None and (view.rate or view.failed):
                break
            if time.monotonic() > end:
                raise PodLostError("it does not appear in the API, or without a price")
            await asyncio.sleep(self._limits.list_every / 2)
        if view.name != lease.name:  # not ours: leave it alone
            self._ledger.write("refused", lease.name)
            raise AmbiguousError(f"the service answered with another pod, {view.name}")
        rate = view.rate or lease.rate
        self._ledger.write("phase", lease.name, phase="rented", rate=rate, machine=view.machine)
        if view.failed:
            raise BadHostError(f"its container does not run: {view.failed}")
        most = self._settings.max_price or 0
        if rate > most:
            raise BadHostError(f"it costs ${rate:.2f}/h, over the limit of ${most:.2f}/h")
        if view.machine in self.avoided:
            raise BadHostError(f"its host {view.machine} was no good before")
        return view

    async def _wait_for_turn(self) -> None:
        """Keep the user's pause between two creations."""
        async with self._turn:
            pause = self._last + (self._settings.delay or 0) - time.monotonic()
            if pause > 0:
                await asyncio.sleep(pause)
            self._last = time.monotonic()

    def _say(self, task: Task, text: str) -> None:
        self._fleet.say(f"{task.title}: {text}")


def _refusal(tried: dict[str, Exception], hopeless: bool, minutes: float) -> str:
    """Say that there is no pod, what each kind said, and what may help."""
    what = f"no pod in {minutes:g} minutes"
    if all(isinstance(error, CapacityError) for error in tried.values()):
        what = f"no pod in {minutes:g} minutes; nothing was billed"
    if hopeless:
        what = "this account may rent none of these kinds"
    listed = "".join(f"\n    {kind}: {error}" for kind, error in tried.items())
    return (
        f"{what}. Tried:{listed}\nAllow more kinds (--runpod-gpu, --runpod-cloud), a higher "
        "--runpod-max-price, a longer --runpod-capacity-wait, or try later"
    )


def start_command(grace_s: float, lifetime_s: float) -> str:
    """Return a start command that switches the dead-man's switch on and then does as the image.

    A pod whose controller dies before its first login would otherwise be billed for ever.
    """
    program = (resources.files("snakemake_executor_plugin_runpod.pod") / "deadman.py").read_text()
    script = f"""
mkdir -p "$HOME/.snakemake-runpod"
cat > "$HOME/.snakemake-runpod/deadman.py" <<'END OF PROGRAM'
{program}
END OF PROGRAM
nohup bash -c 'until python3 "$HOME/.snakemake-runpod/deadman.py" {grace_s:.3f} {lifetime_s:.3f}
do sleep 5; done' < /dev/null > "$HOME/.snakemake-runpod/deadman.log" 2>&1 &
[ -x /start.sh ] && exec /start.sh
exec sleep infinity
"""
    packed = base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode()
    return f"bash -c 'echo {packed} | base64 -d | gzip -dc | bash'"
