"""Accounts, pods, prices and the bill. Nothing here does any input or output."""

import secrets
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from emulator.faults import ON_COMMAND, Fault

NO_STOCK = (
    "There are no longer any instances available with the requested specifications. "
    "Please refresh and try again."
)
NOT_FOUND = "pod not found to terminate"

GPUS = {
    "NVIDIA RTX A4000": (16, 0.25, 0.17),
    "NVIDIA RTX A5000": (24, 0.26, 0.16),
    "NVIDIA L4": (24, 0.43, None),
    "NVIDIA GeForce RTX 4090": (24, 0.74, 0.64),
    "NVIDIA L40S": (48, 0.89, 0.79),
    "NVIDIA H100 80GB HBM3": (80, 2.99, 2.69),
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": (96, 2.09, None),
    "Tesla V100-SXM2-32GB": (32, 0.19, 0.10),
}
"""GB, and dollars an hour in Secure and Community Cloud."""

MOST = 8
"""GPUs of one pod, where the account's catalogue says nothing else."""

DISK_USD_PER_GB_H = 0.10 / 730
"""Container disk is billed on top of what the API calls the cost of a pod: $0.10 a GB and month
(docs.runpod.io/pods/pricing, "Storage pricing")."""


class RefusedError(Exception):
    """The service refuses; the text is its message."""


@dataclass
class Pod:
    """One pod.

    Attributes:
        born: when its container started; None before.
        port: of its sshd; None before it has one.
        ended: when it was terminated; None while it is billed.
    """

    id: str
    spec: dict[str, Any]
    rate: float
    created: float
    machine: str
    secret: str
    faults: list[Fault]
    born: float | None = None
    port: int | None = None
    ended: float | None = None

    def has(self, kind: str) -> Fault | None:
        """Return the fault of this kind that the pod was created with."""
        return next((fault for fault in self.faults if fault.kind == kind), None)

    def cost(self, now: float) -> float:
        """Return the dollars that it has cost, its disk included."""
        hourly = self.rate + self.spec.get("disk", 0) * DISK_USD_PER_GB_H
        return hourly * ((self.ended or now) - self.created) / 3600

    @property
    def state(self) -> str:
        """What REST v2 calls its state."""
        fault = self.has("state")
        return str(fault.value) if fault else "RUNNING" if self.is_up else "STARTING"

    @property
    def is_up(self) -> bool:
        """Whether its container runs and its port is published."""
        return self.born is not None and self.ended is None


@dataclass
class Account:
    """What belongs to one API key.

    Attributes:
        lag: seconds for which a new pod is missing from listings.
        stale: seconds for which listings still show a pod that has ended.
        calls: how often each call was made; `moments`: when all were.
        peak: most pods alive at one time.
        availability: of kinds of GPU, as REST v2's catalogue tells it; `most` GPUs of one pod and
            the versions of `cuda` on their hosts, likewise.
        limits: how many calls REST v2 allows in a window of so many seconds.
        rest_for_pods: REST v2 lets a pod's own key end that pod. Now it answers 403 (public code of
            2026-09: "podTerminate, the only route the pod-scoped key may use").
        blind: so many calls that list or show pods find none.
        outage: every call answers 503.
        edge: an agent that the edge in front of the service refuses this account, beside those
            that it refuses everybody.
    """

    key: str
    balance: float = 100.0
    lag: float = 0.0
    stale: float = 0.0
    stock: dict[str, int] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    moments: list[float] = field(default_factory=list)
    peak: int = 0
    availability: dict[str, str] = field(default_factory=dict)
    most: dict[str, int] = field(default_factory=dict)
    cuda: dict[str, list[str]] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    retired: bool = False
    rest_for_pods: bool = False
    blind: int = 0
    outage: bool = False
    edge: str = ""
    valid: bool = True

    def alive(self) -> list[Pod]:
        """Return the pods that are billed."""
        return [pod for pod in self.pods.values() if pod.ended is None]

    def strike(self, on: str, own: bool = False) -> Fault | None:
        """Return the fault that happens now, if one does."""
        return next((fault for fault in self.faults if fault.strikes(on, own)), None)


class Store:
    """All accounts.

    Attributes:
        clock: returns seconds.
        boot: is called with a pod whose container is to start.
        kill: is called with a pod that has ended.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.accounts: dict[str, Account] = {}
        self.lock = threading.RLock()
        self.boot: Callable[[Account, Pod], None] = lambda account, pod: None
        self.kill: Callable[[Pod], None] = lambda pod: None

    def account(self, key: str) -> Account:
        """Return an account; every key that a test thinks of is one."""
        with self.lock:
            return self.accounts.setdefault(key, Account(key))

    def owner(self, secret: str) -> tuple[Account, Pod] | None:
        """Return the pod that a pod's own key belongs to."""
        with self.lock:
            for account in self.accounts.values():
                for pod in account.pods.values():
                    if pod.secret == secret:
                        return account, pod
        return None

    def create(self, account: Account, spec: dict[str, Any]) -> Pod:
        """Create a pod.

        Args:
            account: that pays.
            spec: name, image, gpu, gpus, cloud, disk, env, start, cuda (a list, or the lowest).

        Raises:
            RefusedError: if there is none such.
        """
        with self.lock:
            kind = GPUS.get(spec["gpu"])
            price = kind and kind[2 if spec["cloud"] == "COMMUNITY" else 1]
            none = account.availability.get(spec["gpu"]) == "NONE"
            few = spec["gpus"] > account.most.get(spec["gpu"], MOST)
            if price is None or none or few or account.stock.get(spec["gpu"], 1) <= 0:
                raise RefusedError(NO_STOCK)
            if account.balance <= 0:
                raise RefusedError("Insufficient funds: your balance is too low to rent this pod.")
            if spec["gpu"] in account.stock:
                account.stock[spec["gpu"]] -= 1
            faults = [fault for fault in account.faults if fault.strikes("pod")]
            for fault in faults:
                fault.fired -= fault.kind in ON_COMMAND  # it has yet to happen
            pod = Pod(
                id=secrets.token_hex(7),
                spec=spec,
                rate=round(price * spec["gpus"], 4),
                created=self.clock(),
                machine=secrets.token_hex(6),
                secret=f"pod-{secrets.token_hex(12)}",
                faults=[Fault(**vars(fault) | {"fired": 0}) for fault in faults],
            )
            if fault := pod.has("price"):
                pod.rate = fault.value
            if fault := pod.has("machine"):
                pod.machine = fault.value
            account.pods[pod.id] = pod
            account.peak = max(account.peak, len(account.alive()))
        if not (pod.has("never-ready") or pod.has("state")):
            self.boot(account, pod)
        return pod

    def listed(self, account: Account) -> list[Pod]:
        """Return the pods that a listing shows now."""
        now = self.clock()
        if self._is_blind(account):
            return []
        return [
            pod
            for pod in account.pods.values()
            if (
                now - pod.created >= account.lag
                if pod.ended is None
                else now - pod.ended < account.stale
            )
        ]

    def shown(self, account: Account, id: str) -> Pod | None:  # noqa: A002
        """Return a living pod as a question for it shows it."""
        return None if self._is_blind(account) else self.find(account, id)

    def _is_blind(self, account: Account) -> bool:
        with self.lock:
            account.blind = max(0, account.blind - 1)
            return account.blind > 0

    def find(self, account: Account, id: str) -> Pod | None:  # noqa: A002
        """Return a living pod."""
        pod = account.pods.get(id)
        return pod if pod and pod.ended is None else None

    def terminate(self, account: Account, id: str) -> None:  # noqa: A002
        """End a pod.

        Raises:
            RefusedError: if there is none of that id.
        """
        with self.lock:
            pod = self.find(account, id)
            if pod is None:
                raise RefusedError(NOT_FOUND)
            pod.ended = self.clock()
        self.kill(pod)

    def bill(self, account: Account) -> float:
        """Return the dollars that all pods of an account have cost."""
        return sum(pod.cost(self.clock()) for pod in account.pods.values())
