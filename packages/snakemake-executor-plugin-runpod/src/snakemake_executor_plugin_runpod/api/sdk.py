"""The API through RunPod's own Python package, which is imported only when it is needed."""

import json
import logging
import threading
from collections.abc import Callable
from typing import Any

from snakemake_executor_plugin_runpod.api import views
from snakemake_executor_plugin_runpod.api.errors import (
    ApiError,
    CapacityError,
    GoneError,
    UnauthorisedError,
    classify,
    seconds,
)
from snakemake_executor_plugin_runpod.api.model import KEY_FIX, Account, Offer, PodView, Spec

PRICES = """query { gpuTypes { id displayName memoryInGb secureCloud communityCloud securePrice
communityPrice maxGpuCount lowestPrice(input: {gpuCount: 1}) { stockStatus } } }"""

ACCOUNT = "query { myself { id clientBalance currentSpendPerHr } }"

NOT_INSTALLED = (
    "RunPod's package is not installed: install this plugin with its extra `sdk`, or set "
    "--runpod-api rest-v2"
)

CUDA_MINORS = 10
"""The SDK takes a list of exact CUDA versions: the lowest and all later ones that may come."""

CUDA_MAJORS = 2


class SdkApi:
    """The functions of the `runpod` package."""

    transport = "sdk"

    def __init__(self, key: str) -> None:
        self._runpod = _import()
        self._runpod.api_key = key
        graphql = self._runpod.api.graphql
        self._query = graphql.run_graphql_query
        self._recorder = _Recorder(getattr(graphql, "requests", None))
        graphql.requests = self._recorder

    def account(self) -> Account:
        """Check the key, and say what the account has."""
        raw = self._call(lambda: self._query(ACCOUNT)["data"]["myself"])
        return views.read(
            lambda raw: Account(
                views.number(raw.get("clientBalance")),
                views.number(raw.get("currentSpendPerHr")),
                views.identifier(raw.get("id")),
            ),
            raw,
        )

    def offers(self) -> list[Offer]:
        """Return every kind of GPU with its prices now."""
        raw = self._call(lambda: self._query(PRICES)["data"]["gpuTypes"])
        return views.read(lambda raw: [views.offer(each) for each in raw], raw)

    def create(self, spec: Spec) -> str:
        """Create a pod and return its id."""
        raw = self._call(lambda: self._runpod.create_pod(**self._arguments(spec)), creating=True)
        if not isinstance(raw, dict):
            raise classify(None, "the service answered no pod", creating=True)
        try:
            return views.identifier(raw.get("id"))
        except ApiError as error:
            raise classify(None, str(error), creating=True) from None

    def pods(self) -> list[PodView]:
        """Return every pod of the account."""
        return views.read(views.pods, self._call(self._runpod.get_pods))

    def pod(self, id: str) -> PodView | None:  # noqa: A002
        """Return one pod, or None if there is none of that id."""
        try:
            raw = self._call(lambda: self._runpod.get_pod(views.identifier(id)))
        except GoneError:
            return None
        return views.read(views.pod, raw) if raw is not None else None

    def terminate(self, id: str) -> None:  # noqa: A002
        """End a pod for good."""
        self._call(lambda: self._runpod.terminate_pod(views.identifier(id)))

    def _call(self, function: Callable[[], Any], *, creating: bool = False) -> Any:
        """Call the SDK and turn whatever it raises into an ApiError.

        Its QueryError carries the whole query, variables of the pod included; so nothing of it but
        the service's own message is kept, and the chain of exceptions is cut. Where it expects no
        data, it takes an error of the service for success.
        """
        try:
            answer = function()
            status = getattr(self._recorder.last(), "status_code", 200)
            if status < 400:
                return answer
            found = self._explain(RuntimeError(), creating)
        except ApiError:
            raise
        except Exception as error:  # it raises requests', json's and KeyError as they come
            found = self._explain(error, creating)
        raise found from None

    def _explain(self, error: Exception, creating: bool) -> ApiError:
        response = self._recorder.last()
        status = getattr(response, "status_code", None)
        wait = seconds(getattr(response, "headers", {}).get("Retry-After"))
        name = type(error).__name__
        if name == "AuthenticationError":
            return UnauthorisedError(f"RunPod refuses the API key: {KEY_FIX}")
        if name == "QueryError":
            said = str(error.args[0]) if error.args else ""
            return classify(status or 200, said, creating=creating, retry_after=wait)
        if name == "ValueError" and "No GPU found" in str(error):
            return CapacityError("RunPod knows no GPU of this name")
        if status in (None, 200):  # no answer, or one that makes no sense
            return classify(None, name, creating=creating)
        text = getattr(response, "text", "")[:80]
        return classify(status, text, creating=creating, retry_after=wait)

    def _arguments(self, spec: Spec) -> dict[str, Any]:
        quote = self._quote
        return {
            "name": quote(spec.name),
            "image_name": quote(spec.image),
            "gpu_type_id": quote(spec.gpu),
            "cloud_type": spec.cloud.upper(),
            "support_public_ip": True,
            "start_ssh": True,
            "data_center_id": quote(spec.data_center) if spec.data_center else None,
            "gpu_count": spec.gpus,
            "volume_in_gb": 0,
            "container_disk_in_gb": spec.disk_gb,
            "min_memory_in_gb": max(1, spec.memory_gb),
            "docker_args": quote(spec.start),
            "ports": "22/tcp",
            "env": {quote(name): quote(value) for name, value in spec.env.items()},
            "allowed_cuda_versions": cuda_versions(spec.cuda),
            "min_download": spec.min_download,
        }

    def _quote(self, text: str) -> str:
        """Escape what the SDK pastes between quotes into its query; not if it sends JSON."""
        pasted = hasattr(self._runpod.api.mutations.pods, "generate_pod_deployment_mutation")
        return json.dumps(text)[1:-1] if pasted else text


def cuda_versions(lowest: str) -> list[str]:
    """Return a CUDA version and those that follow it.

    Raises:
        ValueError: if it is not of the form 12.8.
    """
    major, _, minor = lowest.partition(".")
    if not (major.isdigit() and minor.isdigit()):
        raise ValueError(f"CUDA version {lowest!r}: must be like 12.8")
    first = [(int(major), n) for n in range(int(minor), CUDA_MINORS)]
    later = [(int(major) + step, n) for step in range(1, CUDA_MAJORS) for n in range(CUDA_MINORS)]
    return [f"{a}.{b}" for a, b in first + later]


def _import() -> Any:
    """Import the package; at import it would otherwise take over the root logger."""
    root = logging.getLogger()
    level, guard = root.level, logging.NullHandler()
    root.addHandler(guard)
    try:
        import runpod
        import runpod.api.graphql
        import runpod.api.mutations.pods
    except ImportError as error:
        raise UnauthorisedError(f"{NOT_INSTALLED} ({error})") from None
    finally:
        root.removeHandler(guard)
        root.setLevel(level)
    if not getattr(runpod, "create_pod", None):
        raise UnauthorisedError(NOT_INSTALLED)
    return runpod


class _Recorder:
    """Stands between the SDK and `requests`, and keeps each thread's last response.

    The SDK looks at no status but 401 and throws the response away: without it nobody would know
    that the service asked to wait, or that it has retired this API.
    """

    def __init__(self, requests: Any) -> None:
        self._requests, self._kept = requests, threading.local()

    def post(self, *arguments: Any, **options: Any) -> Any:
        """Post, and keep the response."""
        self._kept.response = None
        self._kept.response = self._requests.post(*arguments, **options)
        return self._kept.response

    def last(self) -> Any:
        """Return this thread's last response; None if there was no answer."""
        return getattr(self._kept, "response", None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._requests, name)
