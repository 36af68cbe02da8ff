"""The API as REST v2."""

import os
from typing import Any

from snakemake_executor_plugin_runpod.api import views
from snakemake_executor_plugin_runpod.api.errors import (
    ApiError,
    GoneError,
    PermanentError,
    UnauthorisedError,
    classify,
    seconds,
)
from snakemake_executor_plugin_runpod.api.model import (
    AGENT,
    BASE,
    KEY_FIX,
    Account,
    Offer,
    PodView,
    Spec,
)

TIMEOUT_S = 30


class RestApi:
    """HTTP with httpx."""

    transport = "rest-v2"

    def __init__(self, key: str) -> None:
        import httpx

        self._client = httpx.Client(
            base_url=f"{os.environ.get('RUNPOD_API_BASE_URL', BASE)}/v2",
            headers={"Authorization": f"Bearer {key}", "User-Agent": AGENT},
            timeout=TIMEOUT_S,
        )

    def account(self) -> Account:
        """Check the key; this API tells nothing of money."""
        self._ask("GET", "/pods")
        return Account()

    def offers(self) -> list[Offer]:
        """Return every kind of GPU with its prices now."""
        raw = self._ask("GET", "/catalog/gpus?include=AVAILABILITY&product=POD")
        return views.read(lambda raw: [views.offer(each) for each in raw["gpus"]], raw)

    def create(self, spec: Spec) -> str:
        """Create a pod and return its id."""
        body = {
            "name": spec.name,
            "image": spec.image,
            "args": spec.start,
            "gpu": {"id": spec.gpu, "count": spec.gpus, "minCudaVersion": spec.cuda},
            "cloud": spec.cloud.upper(),
            "dataCenterIds": [spec.data_center] if spec.data_center else [],
            "disk": spec.disk_gb,
            "ports": ["22/tcp"],
            "env": spec.env,
            "startSsh": True,
        }
        raw = self._ask("POST", "/pods", body, creating=True)
        try:
            return views.identifier(raw.get("id") if isinstance(raw, dict) else None)
        except ApiError as error:
            raise classify(None, str(error), creating=True) from None

    def pods(self) -> list[PodView]:
        """Return every pod of the account."""
        raw = self._ask("GET", "/pods")
        return views.read(lambda raw: views.pods(raw["pods"]), raw)

    def pod(self, id: str) -> PodView | None:  # noqa: A002
        """Return one pod, or None if there is none of that id."""
        try:
            return views.read(views.pod, self._ask("GET", f"/pods/{views.identifier(id)}"))
        except GoneError:
            return None

    def terminate(self, id: str) -> None:  # noqa: A002
        """End a pod for good."""
        self._ask("DELETE", f"/pods/{views.identifier(id)}")

    def _ask(self, method: str, path: str, body: Any = None, *, creating: bool = False) -> Any:
        import httpx

        try:
            response = self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise classify(None, type(error).__name__, creating=creating) from None
        if response.status_code == 204:
            return None
        try:
            answer = response.json()
        except (ValueError, RecursionError):
            answer = None
        if response.is_success:
            if answer is None:
                raise classify(None, "an answer that is no JSON", creating=creating)
            return answer
        found = classify(
            response.status_code,
            _detail(answer, response.text),
            creating=creating,
            retry_after=seconds(response.headers.get("Retry-After")),
        )
        if isinstance(found, UnauthorisedError):
            found = UnauthorisedError(f"RunPod refuses the API key: {KEY_FIX}")
        if creating and isinstance(found, GoneError):
            found = PermanentError(str(found))
        raise found


def _detail(answer: Any, text: str) -> str:
    """Return what a problem document says (RFC 9457), or the text as it came."""
    if not isinstance(answer, dict):
        return text[:80]
    listed = answer.get("errors")
    parts = [answer.get("detail") or answer.get("title") or ""]
    parts += listed if isinstance(listed, list) else []
    return "; ".join(str(part) for part in parts if part)
