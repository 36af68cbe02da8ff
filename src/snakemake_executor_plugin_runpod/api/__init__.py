"""RunPod's API, seen through one small protocol: whichever transport is behind it."""

import os
import re
import resource
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from snakemake_executor_plugin_runpod.api.errors import RetiredError, UnauthorisedError

T = TypeVar("T")

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
        running: whether the service wants the pod to run. That it says so proves nothing: a pod
            can be used when it has an endpoint and an SSH login works.
        terminated: it was ended for good, though the service still lists it.
        machine: id of the host, where the transport shows it.
        memory_gb: of the host, where the transport shows it.
    """

    id: str
    name: str
    rate: float | None = None
    running: bool = True
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
    """

    gpu: str
    name: str
    memory_gb: int | None
    secure: float | None
    community: float | None
    stock: str = ""


@dataclass(frozen=True)
class Account:
    """What the account has: US dollars, and dollars an hour; None where the API does not tell."""

    balance: float | None = None
    spending: float | None = None


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


class Switching:
    """The SDK's API until it is retired, then REST v2."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._api = _open("sdk", key)

    @property
    def transport(self) -> str:
        """The transport that is in use."""
        return self._api.transport

    def account(self) -> Account:
        """See PodApi."""
        return self._try(lambda api: api.account())

    def offers(self) -> list[Offer]:
        """See PodApi."""
        return self._try(lambda api: api.offers())

    def create(self, spec: Spec) -> str:
        """See PodApi. An API that is retired has created nothing."""
        return self._try(lambda api: api.create(spec))

    def pods(self) -> list[PodView]:
        """See PodApi."""
        return self._try(lambda api: api.pods())

    def pod(self, id: str) -> PodView | None:  # noqa: A002
        """See PodApi."""
        return self._try(lambda api: api.pod(id))

    def terminate(self, id: str) -> None:  # noqa: A002
        """See PodApi."""
        return self._try(lambda api: api.terminate(id))

    def _try(self, call: Callable[[PodApi], T]) -> T:
        try:
            return call(self._api)
        except RetiredError:
            if self.transport == "rest-v2":
                raise
            self._api = _open("rest-v2", self._key)
            return call(self._api)


def find_key() -> str | None:
    """Return the API key: from the environment, else from the file of RunPod's own tools."""
    if key := os.environ.get("RUNPOD_API_KEY", "").strip():
        return key
    path = Path.home() / ".runpod/config.toml"
    try:
        text = path.read_text()
    except OSError:
        return None
    found = re.search(r"""^\s*api_?key\s*=\s*["']([^"']+)["']""", text, re.MULTILINE | re.I)
    return found[1].strip() if found else None


def open_api(transport: str = "auto") -> PodApi:
    """Return the API by its transport: auto, sdk or rest-v2.

    Raises:
        UnauthorisedError: if there is no key.
    """
    key = find_key()
    if not key:
        raise UnauthorisedError(f"there is no API key for RunPod: {KEY_FIX}")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # this process knows the key
    if transport == "auto":
        return Switching(key)
    return _open(transport, key)


def _open(transport: str, key: str) -> PodApi:
    if transport == "rest-v2":
        from snakemake_executor_plugin_runpod.api.rest import RestApi

        return RestApi(key)
    from snakemake_executor_plugin_runpod.api.sdk import SdkApi

    return SdkApi(key)
