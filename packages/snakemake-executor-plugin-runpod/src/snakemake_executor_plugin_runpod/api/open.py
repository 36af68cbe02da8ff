"""The API by its transport: RunPod's package until its API is retired, then REST v2."""

import os
import re
import resource
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from snakemake_executor_plugin_runpod.api.errors import RetiredError, UnauthorisedError
from snakemake_executor_plugin_runpod.api.model import (
    KEY_FIX,
    Account,
    Offer,
    PodApi,
    PodView,
    Spec,
)

T = TypeVar("T")


class Switching:
    """The SDK's API until it is retired, then REST v2; that at once where there is no SDK."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._api = _open("sdk" if has_sdk() else "rest-v2", key)

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


def has_sdk() -> bool:
    """Tell whether RunPod's Python package is installed; a folder of that name is none."""
    found = find_spec("runpod")
    return found is not None and found.origin is not None


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


def open_api(transport: str = "auto", key: str | None = None) -> PodApi:
    """Return the API by its transport.

    Args:
        transport: auto, sdk or rest-v2.
        key: of the API; by default the one that is found.

    Raises:
        UnauthorisedError: if there is no key.
    """
    key = key or find_key()
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
