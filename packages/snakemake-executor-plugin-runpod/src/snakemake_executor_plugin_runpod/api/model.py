"""What RunPod's API can do, and what it answers, whichever transport is behind it."""

from dataclasses import dataclass, field
from typing import Protocol

BASE = "https://api.runpod.io"

AGENT = "snakemake-executor-plugin-runpod"
"""How this package names itself in HTTP: RunPod's edge refuses Python's own name (403, 1010)."""

KEY_FIX = (
    "make a key at https://console.runpod.io/user/settings and set RUNPOD_API_KEY "
    "(or api_key in ~/.runpod/config.toml)"
)


@dataclass(frozen=True)
class Endpoint:
    """Where sshd of a pod listens."""

    host: str
    port: int
    user: str = "root"


@dataclass(frozen=True)
class PodView:
    """A pod as the API describes it, whichever transport it came by.

    Attributes:
        rate: US dollars an hour; None while the service does not say.
        failed: its container has ended, or cannot run; it does not start again by itself. That
            none has failed proves nothing: a pod can be used when a login by SSH works.
        terminated: it was ended for good, though the service still lists it.
        machine: id of the host, where the transport shows it.
        memory_gb: of the host, where the transport shows it.
    """

    id: str
    name: str
    rate: float | None = None
    failed: str = ""
    terminated: bool = False
    endpoint: Endpoint | None = None
    machine: str | None = None
    gpu: str | None = None
    gpus: int = 1
    memory_gb: float | None = None
    created: str = ""


@dataclass(frozen=True)
class Spec:
    """What to ask for when a pod is created.

    Attributes:
        cuda: lowest CUDA version that the host's driver must support, such as 12.8.
        min_download: Mbit/s, or None.
        start: the container's start command; empty for the image's own.
    """

    name: str
    image: str
    gpu: str
    gpus: int
    cloud: str
    disk_gb: int
    memory_gb: int
    data_center: str | None
    cuda: str
    min_download: int | None
    start: str
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Offer:
    """A kind of GPU with its prices.

    Attributes:
        memory_gb: of one GPU; None if the service does not say.
        secure: US dollars an hour for one GPU of Secure Cloud; None if not offered.
        community: the same of Community Cloud.
        stock: what the service says of its availability, such as High; empty if nothing.
        most: most GPUs of one pod, in Secure and in Community Cloud; None if it does not say.
        cuda: versions that hosts support now; empty if it does not say.
    """

    gpu: str
    name: str
    memory_gb: int | None
    secure: float | None
    community: float | None
    stock: str = ""
    most: tuple[int | None, int | None] = (None, None)
    cuda: tuple[str, ...] = ()

    @property
    def is_free(self) -> bool:
        """Whether there may be one now: only a plain NONE says that there is not."""
        return self.stock.upper() != "NONE"


@dataclass(frozen=True)
class Account:
    """What the account has; None where the API does not tell.

    Attributes:
        balance: US dollars.
        spending: US dollars an hour.
        user: what the service calls the account.
    """

    balance: float | None = None
    spending: float | None = None
    user: str | None = None


class PodApi(Protocol):
    """The calls of a transport. All block; none retries by itself; all raise ApiError only."""

    @property
    def transport(self) -> str:
        """The transport that is in use: sdk or rest-v2."""

    def account(self) -> Account:
        """Check the key, and say what the account has."""

    def offers(self) -> list[Offer]:
        """Return every kind of GPU with its prices now."""

    def create(self, spec: Spec) -> str:
        """Create a pod and return its id."""

    def pods(self) -> list[PodView]:
        """Return every pod of the account."""

    def pod(self, id: str) -> PodView | None:  # noqa: A002 - the API's own word
        """Return one pod, or None if there is none of that id."""

    def terminate(self, id: str) -> None:  # noqa: A002
        """End a pod for good. Raises GoneError if there is none of that id."""
