"""REST v2: the wire format of RunPod's published description."""

import datetime
import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

from emulator.state import GPUS, MOST, Account, Pod, RefusedError, Store

DESCRIPTION = json.loads(Path(__file__).with_name("v2.json").read_text())
"""The forms of pods, offers and errors in RunPod's published description, without its prose."""


@cache
def form(name: str) -> jsonschema.Draft202012Validator:
    """Return what checks a value against a form of the description."""
    return jsonschema.Draft202012Validator(DESCRIPTION | {"$ref": f"#/components/schemas/{name}"})


class ProblemError(Exception):
    """An answer that is no success: its status and what it says."""

    def __init__(self, status: int, detail: str, errors: Sequence[str] = ()) -> None:
        super().__init__(detail)
        self.status, self.errors = status, list(errors)


def operation(method: str, path: str) -> str:
    """Name the call that a request makes, as faults name it."""
    if path.startswith("/v2/catalog/gpus"):
        return "offers"
    if path == "/v2/billing/pods":
        return "billing"
    one = re.fullmatch(r"/v2/pods/[^/]+", path) is not None
    return {
        ("GET", False): "list",
        ("POST", False): "create",
        ("GET", True): "get",
        ("DELETE", True): "terminate",
    }.get((method, one), "other")


def execute(  # noqa: PLR0917
    store: Store, account: Account, call: str, path: str, body: Any, own: Pod | None, ignore: bool
) -> tuple[int, Any]:
    """Do what a request asks for; return status and body.

    Raises:
        ProblemError: with the status that says why not.
    """
    id = path.rpartition("/")[2]  # noqa: A001
    if own and not (account.rest_for_pods and call == "terminate" and not own.has("no-power")):
        raise ProblemError(403, "this key has no access to this resource")
    if own and id != own.id:
        raise ProblemError(404, "pod not found")
    if call == "billing":
        return 200, billing(store, account)
    if call == "offers":
        return 200, {"gpus": [_gpu(account, each) for each in GPUS]}
    if call == "list":
        return 200, {"pods": [view(store, pod) for pod in store.listed(account)]}
    if call == "create":
        try:
            return 201, view(store, store.create(account, _spec(body)))
        except RefusedError as error:
            raise ProblemError(402 if "balance" in str(error) else 400, str(error)) from None
    pod = store.shown(account, id) if call == "get" else store.find(account, id)
    if call == "get" and pod:
        return 200, view(store, pod)
    if call == "terminate" and pod:
        if not ignore:
            store.terminate(account, id)
        return 204, None
    raise ProblemError(404, "pod not found")


def _spec(body: Any) -> dict[str, Any]:
    if errors := [error.message for error in form("CreatePodRequest").iter_errors(body)]:
        raise ProblemError(422, "Request validation failed", errors)
    gpu = body["gpu"]
    return {
        "name": body["name"],
        "image": body["image"],
        "gpu": gpu["id"],
        "gpus": gpu.get("count", 1),
        "cloud": body.get("cloud", "SECURE"),
        "disk": body.get("disk", 50),
        "env": body.get("env", {}),
        "start": body.get("args", ""),
        "ports": body.get("ports", []),
        "ssh": body.get("startSsh", False),
        "cuda": gpu.get("allowedCudaVersions") or [gpu.get("minCudaVersion", "0.0")],
        "memory": 1,
    }


def view(store: Store, pod: Pod) -> dict[str, Any]:
    """Describe a pod."""
    spec, up = pod.spec, pod.is_up
    published = up and pod.port is not None and not pod.has("no-port")
    user = f"{pod.id}-6441{pod.machine[:4]}"
    direct = {
        "host": "127.0.0.1",
        "port": pod.port,
        "username": "root",
        "command": f"ssh root@127.0.0.1 -p {pod.port}",
    }
    port = {"private": 22, "public": pod.port, "type": "tcp", "ip": "127.0.0.1"}
    return {
        "id": pod.id,
        "name": spec["name"],
        "status": pod.state,
        "actions": ["stop", "restart", "terminate"] if up else ["terminate"],
        "image": spec["image"],
        "args": spec["start"],
        "disk": spec["disk"],
        "mounts": {},
        "ports": spec["ports"],
        "env": spec["env"],
        "registry": None,
        "gpu": {"id": spec["gpu"], "count": spec["gpus"]},
        "cloud": "COMMUNITY" if spec["cloud"] == "COMMUNITY" else "SECURE",
        "dataCenterId": "EU-RO-1",
        "cudaVersion": "13.0",
        "ssh": {
            "proxy": {
                "host": "ssh.runpod.io",
                "port": 22,
                "username": user,
                "command": f"ssh {user}@ssh.runpod.io",
            },
            "direct": direct if published else None,
        },
        "template": None,
        "cost": 0 if pod.has("state") else pod.rate,
        "locked": False,
        "aFieldOfTomorrow": [{"of": "any form"}, None],
        "globalNetworking": {"enabled": False},
        "runtime": {
            "uptime": int(store.clock() - (pod.born or 0)),
            "ports": [port] if published else [],
        }
        if up
        else None,
        "createdAt": _time(pod.created),
        "startedAt": _time(pod.born) if pod.born else None,
    }


def billing(store: Store, account: Account) -> dict[str, Any]:
    """Bill every pod, in one bucket."""
    now = store.clock()
    bucket = {"startTime": _time(now - 86400), "endTime": _time(now)}
    records = []
    for pod in account.pods.values():
        total, gpu = pod.cost(now), pod.rate * ((pod.ended or now) - pod.created) / 3600
        amounts = {
            "totalAmount": total,
            "gpuAmount": gpu,
            "cpuAmount": 0,
            "diskAmount": total - gpu,
        }
        records.append({**bucket, "podId": pod.id, **amounts})
    names = ("totalAmount", "gpuAmount", "cpuAmount", "diskAmount")
    totals = {name: sum(record[name] for record in records) for name in names}
    metadata = {"query": {**bucket, "bucketSize": "day"}, "recordCount": len(records)}
    return {
        "records": records,
        "metadata": {**metadata, "totals": totals, "uniquePodCount": len(records)},
    }


def _gpu(account: Account, id: str) -> dict[str, Any]:  # noqa: A002
    memory, secure, community = GPUS[id]
    most = account.most.get(id, MOST)
    return {
        "id": id,
        "name": id.removeprefix("NVIDIA "),
        "pool": None,
        "manufacturer": "NVIDIA",
        "memory": memory,
        "secure": True,
        "community": community is not None,
        "price": {"secure": secure, "community": community or 0},
        "maxCount": {"secure": most, "community": most if community else 0},
        "availability": account.availability.get(id, "HIGH"),
        "cudaVersions": [
            {"version": version, "available": True}
            for version in account.cuda.get(id, ["12.8", "13.0"])
        ],
    }


def _time(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
