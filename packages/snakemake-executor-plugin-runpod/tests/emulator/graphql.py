"""GraphQL: with literal arguments as the `runpod` package sends it, with variables as runpodctl."""

import json
import re
import time
from dataclasses import dataclass, field
from typing import Any

from emulator.state import GPUS, MOST, NOT_FOUND, Account, Pod, RefusedError, Store

TOKEN = re.compile(
    r'"((?:[^"\\\n]|\\.)*)"|(-?\d+\.\d+|-?\d+)|([A-Za-z_]\w*)|([{}()\[\]:,$!])|(\s+)'
)

OPERATIONS = {
    "podFindAndDeployOnDemand": "create",
    "podTerminate": "terminate",
    "pod": "get",
    "gpuTypes": "offers",
}


class DocumentError(Exception):
    """The document is no GraphQL."""


@dataclass(frozen=True)
class Document:
    """What is sent: a text, and the values of its variables."""

    text: str
    variables: dict[str, Any] = field(default_factory=dict)


class Parser:
    """Reads a document into fields, their arguments and what is selected of them."""

    def __init__(self, document: Document) -> None:
        self.tokens = list(_tokens(document.text))
        self.variables = document.variables
        self.place = 0

    def document(self) -> dict[str, Any]:
        """Read the whole document."""
        if self.peek()[0] == "name":
            self.take()
            if self.peek()[0] == "name":
                self.take()
            if self.peek() == ("mark", "("):  # the variables' types: their values say enough here
                while self.take() != ")":
                    pass
        selection = self.selection()
        if self.peek()[0] is not None:
            raise DocumentError(f"Syntax Error: Unexpected {self.peek()[1]!r}.")
        return selection

    def peek(self) -> tuple[str | None, Any]:
        """Return the next token."""
        return self.tokens[self.place] if self.place < len(self.tokens) else (None, None)

    def take(self, expected: str | None = None) -> Any:
        """Return the next token's value and go on."""
        kind, value = self.peek()
        if kind is None or (expected is not None and (kind, value) != ("mark", expected)):
            raise DocumentError(f'Syntax Error: Expected "{expected}", found {value!r}.')
        self.place += 1
        return value

    def value(self) -> Any:
        """Read an argument's value."""
        kind, value = self.peek()
        if kind in ("string", "number"):
            return self.take()
        if value == "$":
            self.take("$")
            return self.variables.get(self.take())
        if kind == "name":
            return {"true": True, "false": False, "null": None}.get(self.take(), value)
        if value == "[":
            self.take("[")
            found = []
            while self.peek() != ("mark", "]"):
                found.append(self.value())
            self.take("]")
            return found
        self.take("{")
        return self.pairs("}")

    def pairs(self, end: str) -> dict[str, Any]:
        """Read names with values up to a closing bracket."""
        found = {}
        while self.peek() != ("mark", end):
            name = self.take()
            self.take(":")
            found[name] = self.value()
        self.take(end)
        return found

    def selection(self) -> dict[str, Any]:
        """Read fields in braces."""
        self.take("{")
        found = {}
        while self.peek() != ("mark", "}"):
            name, arguments, below = self.take(), {}, None
            if self.peek() == ("mark", "("):
                self.take("(")
                arguments = self.pairs(")")
            if self.peek() == ("mark", "{"):
                below = self.selection()
            found[name] = (arguments, below)
        self.take("}")
        return found


def operation(document: Document) -> str:
    """Name the call that a document makes, as faults name it."""
    for name, (_, below) in Parser(document).document().items():
        if name == "myself":
            return "list" if "pods" in (below or {}) else "account"
        if name in OPERATIONS:
            return OPERATIONS[name]
    return "other"


def execute(
    store: Store, account: Account, document: Document, own: Pod | None, ignore: bool
) -> Any:
    """Do what a document asks for.

    Args:
        store: of everything.
        account: whose key was sent.
        document: what was sent.
        own: the pod whose own key was sent, if it was one.
        ignore: answer as if it were done.

    Raises:
        DocumentError: if it is no GraphQL.
        RefusedError: if the service refuses.
    """
    answer = {}
    for name, (arguments, below) in Parser(document).document().items():
        given = arguments.get("input") or {}
        if own and (name not in ("pod", "podTerminate") or own.has("no-power")):
            raise RefusedError("Unauthorized")
        if own and given["podId"] != own.id:
            raise RefusedError("Unauthorized" if name == "pod" else NOT_FOUND)
        answer[name] = _select(_field(store, account, name, given, ignore), below)
    return answer


def _field(store: Store, account: Account, name: str, given: Any, ignore: bool) -> Any:
    if name == "gpuTypes":
        return [_gpu(account, each) for each in GPUS if given.get("id") in (None, each)]
    if name == "myself":
        pods = [view(store, pod) for pod in store.listed(account)]
        spending = sum(pod.rate for pod in account.alive())
        money = {"clientBalance": account.balance, "currentSpendPerHr": spending}
        return {"id": "user_emulated", "pods": pods, "networkVolumes": [], **money}
    if name == "pod":
        pod = store.shown(account, given["podId"])
        return view(store, pod) if pod else None
    if name == "podFindAndDeployOnDemand":
        return view(store, store.create(account, _spec(given)))
    if name == "podTerminate":
        if not ignore:
            store.terminate(account, given["podId"])
        return None
    raise RefusedError(f'Cannot query field "{name}" on type "Query".')


def _spec(given: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": given["name"],
        "image": given.get("imageName"),
        "gpu": given.get("gpuTypeId"),
        "gpus": given.get("gpuCount", 1),
        "cloud": given.get("cloudType", "ALL"),
        "disk": given.get("containerDiskInGb", 10),
        "env": {entry["key"]: entry["value"] for entry in given.get("env") or []},
        "start": given.get("dockerArgs") or "",
        "ports": (given.get("ports") or "").split(","),
        "ssh": given.get("startSsh", False),
        "cuda": given.get("allowedCudaVersions") or [],
        "memory": given.get("minMemoryInGb", 1),
    }


def view(store: Store, pod: Pod) -> dict[str, Any]:
    """Describe a pod as the service does: `desiredStatus` is what is wanted, not what is."""
    spec, up = pod.spec, pod.is_up
    ports = [
        {
            "ip": "127.0.0.1",
            "isIpPublic": True,
            "privatePort": 22,
            "publicPort": pod.port,
            "type": "tcp",
        }
    ]
    published = pod.port is not None and not pod.has("no-port")
    uptime = int(store.clock() - pod.born) if up and pod.born else 0
    changed = time.strftime("%a %b %d %Y %H:%M:%S GMT+0000", time.gmtime(pod.created))
    return {
        "id": pod.id,
        "name": spec["name"],
        "imageName": spec["image"],
        "env": [f"{name}={value}" for name, value in spec["env"].items()],
        "desiredStatus": pod.state if pod.has("state") else "RUNNING",
        "machineId": pod.machine,
        "machine": {
            "podHostId": f"{pod.id}-6441{pod.machine[:4]}",
            "gpuDisplayName": spec["gpu"].removeprefix("NVIDIA "),
        },
        "costPerHr": pod.rate,
        "containerDiskInGb": spec["disk"],
        "volumeInGb": 0,
        "volumeMountPath": "/runpod-volume",
        "dockerArgs": spec["start"],
        "dockerId": None,
        "gpuCount": spec["gpus"],
        "lastStatusChange": f"Rented by User: {changed}",
        "memoryInGb": 64,
        "vcpuCount": 16,
        "podType": "RESERVED",
        "port": None,
        "ports": ",".join(spec["ports"]),
        "uptimeSeconds": uptime,
        "runtime": {"uptimeInSeconds": uptime, "ports": ports if published else None}
        if up
        else None,
    }


def _gpu(account: Account, id: str) -> dict[str, Any]:  # noqa: A002
    memory, secure, community = GPUS[id]
    return {
        "id": id,
        "displayName": id.removeprefix("NVIDIA "),
        "manufacturer": "Nvidia",
        "memoryInGb": memory,
        "maxGpuCount": account.most.get(id, MOST),
        "cudaCores": 0,
        "secureCloud": True,
        "communityCloud": community is not None,
        "securePrice": secure,
        "communityPrice": community,
        "lowestPrice": {
            "minimumBidPrice": None,
            "uninterruptablePrice": secure,
            "stockStatus": "High",
        },
    }


def _select(value: Any, selection: Any) -> Any:
    if selection is None or value is None:
        return value
    if isinstance(value, list):
        return [_select(each, selection) for each in value]
    return {name: _select(value.get(name), below) for name, (_, below) in selection.items()}


def _tokens(text: str) -> Any:
    place = 0
    while place < len(text):
        match = TOKEN.match(text, place)
        if match is None:
            raise DocumentError(f"Syntax Error: Unexpected character {text[place]!r}.")
        place = match.end()
        if match[1] is not None:
            try:
                yield "string", json.loads(f'"{match[1]}"')
            except ValueError:
                raise DocumentError("Syntax Error: Invalid character escape sequence.") from None
        elif match[2]:
            yield "number", float(match[2]) if "." in match[2] else int(match[2])
        elif match[3]:
            yield "name", match[3]
        elif match[4] and match[4] != ",":
            yield "mark", match[4]
