"""Where a job's pod comes from and where it goes: rented and ended, or a machine that is there."""

import asyncio
import re
import secrets
import time
from abc import ABC, abstractmethod
from contextlib import suppress

from snakemake_executor_plugin_runpod.api.errors import ApiError
from snakemake_executor_plugin_runpod.api.model import Endpoint
from snakemake_executor_plugin_runpod.context import Context
from snakemake_executor_plugin_runpod.lease import Lease
from snakemake_executor_plugin_runpod.remote.link import Identity, Link, LostError, RemoteError
from snakemake_executor_plugin_runpod.renting.fleet import Fleet
from snakemake_executor_plugin_runpod.renting.provision import Provision
from snakemake_executor_plugin_runpod.task import Recipe, Task

NODE = "node-"

ADDRESS = re.compile(r"(?P<user>[^@]+)@(\[(?P<six>[^]]+)\]|(?P<host>[^][:]+))(:(?P<port>\d+))?")
"""USER@HOST:PORT; an address of IPv6 stands in brackets."""

NOTHING_SENT = ("asked for", "rented", "reached")
"""Phases of a pod that any job may have: nothing of one has been sent to it."""

ROUNDS = 2
"""How often it is seen to it, at the end, that nothing is left."""

NAMED = 5
"""Changed things that are named when a pod is not taken over."""


class Pods(ABC):
    """A source of machines for jobs."""

    @abstractmethod
    async def start(self, outputs: set[str]) -> None:
        """See to what an earlier run left.

        Args:
            outputs: what this run needs: pods that are making some of it may be taken over.
        """

    @abstractmethod
    async def get(self, task: Task, recipe: Recipe) -> Lease:
        """Return a machine for a job: one that is at work on it, else a new one."""

    @abstractmethod
    async def link(self, lease: Lease) -> Link:
        """Return the connection to a machine, as soon as it can be reached."""

    @abstractmethod
    async def gone(self, lease: Lease, link: Link) -> bool:
        """Tell whether a machine is gone for good; else bring its link up to date."""

    @abstractmethod
    async def clear(self, task: Task, lease: Lease, link: Link) -> None:
        """End what an earlier run began of a job on a machine, unless that is to go on."""

    @abstractmethod
    async def release(self, task: Task) -> None:
        """Have done with whatever machines a job still has."""

    @abstractmethod
    async def give_back(self, lease: Lease, *, failed: bool, detach: bool) -> None:
        """Have done with a machine."""

    @abstractmethod
    async def watch(self) -> None:
        """Look after machines that no job is waiting for."""

    @abstractmethod
    async def close(self, detached: bool, patient: bool = True) -> None:
        """End what is left, unless it was left on purpose.

        Args:
            detached: it was.
            patient: wait also for what may still turn up.
        """

    @abstractmethod
    def avoid(self, lease: Lease) -> None:
        """Remember that a machine was no good."""


class Rented(Pods):
    """Pods of RunPod."""

    def __init__(
        self, context: Context, fleet: Fleet, provision: Provision, identity: Identity
    ) -> None:
        self._context, self._fleet, self._provision = context, fleet, provision
        self._ledger, self._identity = context.ledger, identity

    async def start(self, outputs: set[str]) -> None:
        """End pods of earlier runs that no job of this one may take over."""
        for lease in self._ledger.foreign_leases():
            with suppress(ApiError):  # unless the account shows it after all
                await self._fleet.look(within=self._context.limits.list_idle)
            if self._ledger.is_foreign(lease):
                self._context.say(
                    f"pod {lease.id or lease.name} of {lease.title} was rented with another API "
                    "key: this one neither sees it nor can end it, so it is left alone"
                )
        leases = [lease for lease in self._ledger.open_leases() if not lease.kept]
        wanted = [lease for lease in leases if outputs & set(lease.outputs)]
        self._fleet.wanted.update(lease.name for lease in wanted)
        others = [lease for lease in leases if lease not in wanted]
        for lease in others:
            self._context.say(f"pod {lease.id or lease.name} of an earlier run is ended")
        await asyncio.gather(*(self._fleet.end(lease) for lease in others))
        for view in (await self._fleet.look()).values():
            if view.name.startswith(self._ledger.prefix) and view.name not in self._ledger.leases:
                self._context.say(
                    f"POD {view.id} ({view.name}) IS OF THIS FOLDER, AND ITS LEDGER DOES NOT KNOW "
                    f"IT: it is billed until it ends itself. End it: {self._ledger.command('reap')}"
                )

    async def get(self, task: Task, recipe: Recipe) -> Lease:
        """Take over the pod that an earlier run left at work, else rent one."""
        taken: Lease | None = None
        for lease in self._ledger.open_leases(task.key):
            if lease.kept:
                continue
            given_back = lease.run == self._ledger.run  # by an attempt of this run: it is no good
            if taken is None and not given_back and await self._can_take(lease, task, recipe):
                taken = lease
            else:
                await self._fleet.end(lease)
        if taken is None:
            return await self._provision.rent(task, recipe)
        self._context.say(f"{task.title}: taking over pod {taken.id}")
        return taken

    async def _can_take(self, lease: Lease, task: Task, recipe: Recipe) -> bool:
        self._fleet.wanted.add(lease.name)
        unused = lease.phase in NOTHING_SENT
        if not unused and (reason := self._why_not(lease, task, recipe)):
            self._context.say(
                f"{task.title}: {reason}; pod {lease.id or lease.name}, on which "
                f"${lease.cost(time.time()):.4f} were spent, is ended"
            )
            return False
        if not await self._provision.find(lease):
            return False
        self._ledger.keep_recipe(recipe.fingerprint, vars(recipe))
        facts = {"id": lease.id, "run": self._ledger.run, "fingerprint": recipe.fingerprint}
        self._ledger.write("created", lease.name, **facts)
        try:
            await self._provision.gate(lease)
        except Exception as error:  # whatever is wrong with it, another one is rented
            self._context.say(f"{task.title}: pod {lease.id} cannot be taken over: {error}")
            return False
        return True

    def _why_not(self, lease: Lease, task: Task, recipe: Recipe) -> str | None:
        """Say why what a pod computes is not what is wanted; None if it is."""
        if task.anew:
            return f"{task.anew}, so it runs anew"
        if lease.fingerprint == recipe.fingerprint:
            return None
        before = self._ledger.recipe(lease.fingerprint)
        if before is None or before.keys() != vars(recipe).keys():
            return "it is not known any more what its pod computes"
        names = recipe.differences(Recipe(**before))
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        return f"its pod computes something else by now: {', '.join(names[:NAMED])}{more} changed"

    async def link(self, lease: Lease) -> Link:
        """Wait until the pod has a port for SSH."""
        view = await self._provision.await_endpoint(lease)
        assert view.endpoint
        return Link(view.endpoint, self._identity, self._context.limits, lease.host_key)

    async def gone(self, lease: Lease, link: Link) -> bool:
        """Ask the API; an error of it proves nothing."""
        assert lease.id
        try:
            view = await self._fleet.find(lease.id)
            if view is None:
                return await self._fleet.is_gone(lease.id)
        except ApiError:
            return False
        if view.failed:
            self._context.say(f"pod {lease.id}: its container does not run: {view.failed}")
            return True
        link.endpoint = view.endpoint or link.endpoint
        return False

    async def clear(self, task: Task, lease: Lease, link: Link) -> None:
        """There is nothing on a pod but what it was taken over for."""

    async def release(self, task: Task) -> None:
        """End the pods that earlier runs left the job."""
        for lease in self._ledger.open_leases(task.key):
            if not lease.kept:
                self._fleet.end_soon(lease)

    async def give_back(self, lease: Lease, *, failed: bool, detach: bool) -> None:
        """End the pod in the background; keep it if the user wants to look at a failure."""
        if detach:
            return
        if failed and self._context.settings.keep_pod_on_failure and lease.id:
            self._keep(lease)
            return
        self._fleet.end_soon(lease)

    def _keep(self, lease: Lease) -> None:
        grace = self._context.settings.grace or 0
        ends = f"ends itself after {grace:g} minutes"
        if lease.switched:
            self._ledger.write("silent", lease.name, dies=time.time() + grace * 60)
        else:
            ends = f"IS BILLED AT ${lease.hourly:.2f}/h UNTIL YOU END IT, it cannot do so itself"
        self._ledger.write("kept", lease.name)
        login, end = self._ledger.command(f"ssh {lease.id}"), self._ledger.command("reap")
        self._context.say(f"pod {lease.id} is kept for you and {ends}: {login}; to end it: {end}")

    async def watch(self) -> None:
        """List the pods now and then: one that turns up late is ended on sight."""
        if self._ledger.open_leases():
            await self._fleet.look(within=self._context.limits.list_idle)

    async def close(self, detached: bool, patient: bool = True) -> None:
        """End every pod of this directory that is left."""
        self._fleet.closing = True
        await self._fleet.settle()
        if detached:
            for lease in self._ledger.open_leases():
                self._context.say(f"pod {lease.id or lease.name} works on: run again to take over")
            return
        self._fleet.wanted.clear()
        for _ in range(ROUNDS):  # one may turn up while the others end
            left = [lease for lease in self._ledger.open_leases() if not lease.kept]
            await asyncio.gather(*map(self._fleet.end, left), return_exceptions=True)
        if patient:
            await self._fleet.settle_late()

    def avoid(self, lease: Lease) -> None:
        """Remember the host, where the API shows it."""
        if lease.machine:
            self._provision.avoided.add(lease.machine)


class Node(Pods):
    """One machine that is there already, reached by the user's own SSH settings."""

    def __init__(self, context: Context, address: str) -> None:
        """Read an address of the form USER@HOST:PORT.

        Raises:
            ValueError: if it is none.
        """
        parts = ADDRESS.fullmatch(address)
        if parts is None:
            raise ValueError(f"--runpod-node {address}: must be like root@127.0.0.1:22")
        user, host, port = parts["user"], parts["six"] or parts["host"], parts["port"]
        self._context, self._ledger = context, context.ledger
        self._endpoint = Endpoint(host, int(port or 22), user)
        self._cleared: set[str] = set()

    async def start(self, outputs: set[str]) -> None:
        """Nothing is billed: forget what earlier runs did here."""
        for lease in self._ledger.open_leases():
            if lease.name.startswith(NODE):
                self._ledger.write("gone", lease.name)

    async def get(self, task: Task, recipe: Recipe) -> Lease:
        """Return the machine; it finds by itself whether it is at work on the job."""
        return self._ledger.intend(
            f"{NODE}{task.key}-{secrets.token_hex(4)}",
            key=task.key,
            title=task.title,
            fingerprint=recipe.fingerprint,
            gpu=self._endpoint.host,
            gpus=task.needs.gpus,
            rate=0.0,
            outputs=task.outputs,
        )

    async def link(self, lease: Lease) -> Link:
        """Connect to it."""
        return Link(self._endpoint, Identity(None), self._context.limits)

    async def gone(self, lease: Lease, link: Link) -> bool:
        """It is never gone: only out of reach."""
        return False

    async def clear(self, task: Task, lease: Lease, link: Link) -> None:
        """End what is there of the job: a machine that is not rented outlives its controllers.

        Raises:
            LostError, RemoteError: if it cannot be ended.
        """
        if task.key in self._cleared:
            return
        earlier = [x for x in self._ledger.leases.values() if x.run != self._ledger.run]
        for name in {x.job for x in earlier if x.key == task.key and x.name.startswith(NODE)}:
            if task.anew or name != lease.job:
                await link.ask("stop", {"job": name})
        self._cleared.add(task.key)

    async def release(self, task: Task) -> None:
        """Nothing is billed."""

    async def give_back(self, lease: Lease, *, failed: bool, detach: bool) -> None:
        """Remove the job's folder; keep it under another name if the user wants to look."""
        self._ledger.write("gone", lease.name)
        if detach:
            return
        keep = failed and self._context.settings.keep_pod_on_failure
        link = await self.link(lease)
        with suppress(LostError, RemoteError):
            await link.ask("stop", {"job": lease.job, "keep": keep})
        await link.close()

    async def watch(self) -> None:
        """Nothing to look after."""

    async def close(self, detached: bool, patient: bool = True) -> None:
        """Nothing to end."""

    def avoid(self, lease: Lease) -> None:
        """There is no other."""
