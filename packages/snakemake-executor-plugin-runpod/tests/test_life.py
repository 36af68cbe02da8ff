"""The life of pods as a state machine: what rents, adopts and ends them, against the emulated API.

The calls go over real HTTP by the unmodified transport; there are no jobs. Time is scaled: a limit
of a minute is a fraction of a second.
"""

import asyncio
import gc
import os
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from emulator.faults import Fault
from emulator.server import Server
from emulator.state import Store
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from snakemake_executor_plugin_runpod.api.errors import ApiError
from snakemake_executor_plugin_runpod.api.rest import RestApi
from snakemake_executor_plugin_runpod.context import Context
from snakemake_executor_plugin_runpod.failures import BadHostError, JobError, PodLostError
from snakemake_executor_plugin_runpod.ledger import Ledger
from snakemake_executor_plugin_runpod.limits import Limits
from snakemake_executor_plugin_runpod.needs import Needs
from snakemake_executor_plugin_runpod.remote.link import Identity
from snakemake_executor_plugin_runpod.renting.fleet import Fleet
from snakemake_executor_plugin_runpod.renting.money import Budget, BudgetError
from snakemake_executor_plugin_runpod.renting.pods import Rented
from snakemake_executor_plugin_runpod.renting.provision import Provision
from snakemake_executor_plugin_runpod.settings import ExecutorSettings
from snakemake_executor_plugin_runpod.task import Recipe, Task

SOAK = os.environ.get("LIFE_SEQUENCES")
"""How many sequences chance is to make; without it they are always the same 500."""
JOBS = ("alpha", "beta", "gamma")
LIMITS = replace(Limits().scaled(0.0005), terminate=10, late=0.1)
PATIENCE_S = 60
SETTINGS = ExecutorSettings(delay=0, capacity_wait=0.0005, gpu=["NVIDIA L4", "NVIDIA RTX A4000"])
FAULTS = st.builds(
    Fault,
    on=st.sampled_from(["create", "list", "get", "terminate"]),
    kind=st.sampled_from(["lost", "html", "status", "done-status", "cut"]),
    value=st.sampled_from([500, 502, 503]),
    times=st.integers(1, 2),
)


def task(job):
    return Task(
        key=job, title=job, rule=job, needs=Needs(), limit_s=60, lifetime_s=60, command="true",
        directory=".", pythonpath=[], inputs=[], outputs=[f"{job}.json"], updates=[], logs=[],
        identity=None, image="i:1", stage=list, decides_nothing=lambda _: False,
        requirements="", snakemake="9", anew="",
    )  # fmt: skip


RECIPE = Recipe({}, {})


class Controller:
    """One process of Snakemake, as far as pods are concerned."""

    def __init__(self, api, folder):
        self.ledger = Ledger(folder)
        context = Context(SETTINGS, self.ledger, LIMITS, lambda _: None, 0.01)
        self.fleet = Fleet(api, self.ledger, LIMITS, lambda _: None)
        budget = Budget(1000, self.ledger, lambda _: None)
        provision = Provision(self.fleet, SETTINGS, budget, key="ssh-ed25519 A")
        self.pods = Rented(context, self.fleet, provision, Identity(folder / "key"))
        self.held = {}


@pytest.fixture(scope="module", autouse=True)
def fast():
    """The pauses between two calls of the API are scaled by the environment."""
    patch = pytest.MonkeyPatch()
    patch.setenv("SNAKEMAKE_RUNPOD_TIME_SCALE", "0.0005")
    patch.setenv("RUNPOD_API_BASE_URL", "http://127.0.0.1:9")
    yield
    patch.undo()


happened = Counter()
"""What the sequences did, so that none of it is left out unnoticed."""


class Life(RuleBasedStateMachine):
    """Rents, loses, adopts and ends pods in any order."""

    @initialize()
    def begin(self):
        self.store = Store(time.time)
        self.server = Server(self.store)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        os.environ["RUNPOD_API_BASE_URL"] = self.server.url
        self.account = self.store.account("key")
        self.api = RestApi("key")
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.controller = self.new(JOBS)

    def new(self, wanted):
        made = Controller(self.api, Path(self.folder.name))
        self.before = {pod.id for pod in self.account.alive()}
        with suppress(Exception):  # the API may fail just then; the next look sees to the rest
            self.run(made.pods.start({f"{job}.json" for job in wanted}))
        return made

    def run(self, work):
        return self.loop.run_until_complete(asyncio.wait_for(work, PATIENCE_S))

    @rule(job=st.sampled_from(JOBS))
    def rent(self, job):
        """A job gets a pod: the one that an earlier controller left it, or a new one."""
        if job in self.controller.held:
            return
        refusals = (ApiError, JobError, BadHostError, PodLostError, BudgetError)
        with suppress(*refusals):
            lease = self.run(self.controller.pods.get(task(job), RECIPE))
            happened["adopted" if lease.id in self.before else "rented"] += 1
            self.controller.held[job] = lease

    @rule(fault=FAULTS)
    def fail(self, fault):
        """Some next calls of the API go wrong."""
        self.account.faults.append(fault)

    @rule(lag=st.sampled_from([0, 0.02]))
    def lag(self, lag):
        """New pods are missing from listings for a while."""
        self.account.lag = lag

    @rule(gpu=st.sampled_from(["NVIDIA L4", "NVIDIA RTX A4000"]), count=st.integers(0, 3))
    def stock(self, gpu, count):
        self.account.stock[gpu] = count

    @precondition(lambda self: self.controller.held)
    @rule(job=st.sampled_from(JOBS), failed=st.booleans())
    def finish(self, job, failed):
        """A job has done with its pod."""
        if lease := self.controller.held.pop(job, None):

            async def end():
                await self.controller.pods.give_back(lease, failed=failed, detach=False)
                await self.controller.fleet.settle()

            self.run(end())

    @rule(number=st.integers(0, 9))
    def preempt(self, number):
        """The service takes a pod away."""
        if alive := self.account.alive():
            self.store.terminate(self.account, alive[number % len(alive)].id)
            happened["preempted"] += 1

    @rule()
    def look(self):
        """What a run does now and then while jobs work."""

        async def watch():
            with suppress(Exception):
                await self.controller.pods.watch()
            await self.controller.fleet.settle()

        self.run(watch())
        alive = Counter(pod.spec["name"].split("-")[2] for pod in self.account.alive())
        assert all(alive[job] <= 1 for job in self.controller.held), alive

    @rule(wanted=st.just(set(JOBS)) | st.sets(st.sampled_from(JOBS)), resumes=st.booleans())
    def restart(self, wanted, resumes):
        """The controller is killed; another begins, may want other jobs, may go on with them."""
        had = wanted & set(self.controller.held)
        for job in asyncio.all_tasks(self.loop):
            job.cancel()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.controller = self.new(wanted)
        for job in sorted(had) if resumes else ():
            self.rent(job)

    @invariant()
    def every_living_pod_is_in_the_ledger(self):
        if hasattr(self, "controller"):
            known = {lease.name for lease in self.controller.ledger.leases.values()}
            assert {pod.spec["name"] for pod in self.account.alive()} <= known

    @invariant()
    def no_pod_serves_two_jobs(self):
        if hasattr(self, "controller"):
            held = [lease.id for lease in self.controller.held.values()]
            assert len(set(held)) == len(held)

    def teardown(self):
        """Without faults and with nothing wanted, the next run leaves no pod."""
        if not hasattr(self, "controller"):
            return
        happened["faults"] += sum(fault.fired for fault in self.account.faults)
        self.account.faults.clear()
        try:
            self.restart(set(), False)
            time.sleep(LIMITS.late)

            async def close():
                await self.controller.pods.watch()
                await self.controller.fleet.settle()
                await self.controller.pods.close(False)

            self.run(close())
            assert not self.account.alive(), self.account.alive()
        finally:
            self.server.shutdown()
            self.server.server_close()
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()
            self.folder.cleanup()
            gc.collect()


@pytest.fixture
def life():
    """One life, led step by step."""
    made = Life()
    made.begin()
    yield made
    made.teardown()


@pytest.mark.fault(9, 58)
def test_who_is_interrupted_while_the_service_wants_a_pause_creates_nothing_after_it(life):
    life.rent("alpha")  # the offers are known then: nothing is asked before the creation

    async def act():
        life.account.faults.append(Fault("list", "status", 429, retry_after=0.5))
        listing = asyncio.ensure_future(life.controller.fleet.look())
        while not life.account.faults[0].fired:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        renting = asyncio.ensure_future(life.controller.pods.get(task("beta"), RECIPE))
        await asyncio.sleep(0.1)
        renting.cancel()
        await asyncio.wait({listing, renting})
        await asyncio.sleep(0.5)

    life.run(act())
    assert len(life.account.pods) == 1


@pytest.mark.fault(4)
def test_an_outage_that_outlasts_the_tries_of_a_call_is_waited_for(life):
    life.controller.pods._provision._settings = replace(SETTINGS, capacity_wait=0.1)
    life.account.faults += [Fault("create", "status", 503), Fault("list", "status", 503, times=8)]
    life.rent("alpha")
    assert life.controller.held["alpha"].id
    assert all(fault.fired == fault.times for fault in life.account.faults)


@pytest.mark.fault(61)
def test_a_pod_ends_also_when_the_ledgers_disk_is_full(life):
    life.rent("alpha")
    (lease,) = life.controller.held.values()
    life.controller.ledger._file = Path("/dev/full").open("a")  # noqa: SIM115
    life.finish("alpha", failed=False)
    assert not life.account.alive()
    assert not lease.open


@pytest.mark.fault(64)
def test_a_clock_that_was_set_back_makes_no_run_wait(life):
    life.rent("alpha")
    lease = life.controller.held.pop("alpha")
    lease.asked, lease.id = time.time() + 86400, None
    life.store.terminate(life.account, life.account.alive()[0].id)
    life.controller.ledger.run = "another"
    life.rent("alpha")
    assert life.controller.held["alpha"].name != lease.name


@pytest.mark.slow
@pytest.mark.fault(1, 2, 3, 4, 18, 20, 21)
def test_in_whatever_order_no_pod_is_lost_or_left():
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=int(SOAK or 500),
            derandomize=not SOAK,
            stateful_step_count=12,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert all(happened[name] for name in ("rented", "adopted", "preempted", "faults")), happened
