"""Answers of the service, made into our own objects: GraphQL's form and REST v2's."""

import re
from collections.abc import Callable
from typing import Any, TypeVar

from snakemake_executor_plugin_runpod.api.errors import TransientError, printable
from snakemake_executor_plugin_runpod.api.model import Endpoint, Offer, PodView

ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""An id that is safe in an address, a query and a file name."""

HOST = re.compile(r"[A-Za-z0-9:][A-Za-z0-9.:-]{0,252}")

FAILED = ("EXITED", "ERROR", "DEAD")
"""States from which a container does not come back by itself; the first two are REST v2's."""

T = TypeVar("T")


def read(reader: Callable[[Any], T], raw: Any) -> T:
    """Read an answer; where it has another form than the reader knows, it counts as none.

    Raises:
        TransientError: then.
    """
    try:
        return reader(raw)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TransientError(f"the answer makes no sense ({type(error).__name__})") from None


def pod(raw: Any) -> PodView:
    """Read a pod.

    Raises:
        TransientError: if it is none: then the answer as a whole is not to be believed.
    """
    if not isinstance(raw, dict):
        raise TransientError(f"the service answered no pod but {type(raw).__name__}")
    identity = identifier(raw.get("id"))
    status = str(raw.get("desiredStatus") or raw.get("status") or "")
    direct = isinstance(raw.get("ssh"), dict)
    gpu: Any = raw.get("gpu") if direct else raw.get("machine")
    gpu = gpu if isinstance(gpu, dict) else {}
    return PodView(
        id=identity,
        name=printable(str(raw.get("name") or ""))[:100],
        rate=number(raw.get("cost" if direct else "costPerHr")),
        failed=status if status in FAILED else "",
        terminated=status == "TERMINATED",
        endpoint=_rest_endpoint(raw) if direct else _graphql_endpoint(raw),
        machine=printable(str(raw.get("machineId") or ""))[:64] or None,
        gpu=printable(str(gpu.get("id") or gpu.get("gpuDisplayName") or ""))[:100] or None,
        gpus=int(number(gpu.get("count")) or number(raw.get("gpuCount")) or 1),
        memory_gb=number(raw.get("memoryInGb")),
        created=printable(str(raw.get("createdAt") or raw.get("lastStatusChange") or ""))[:100],
    )


def pods(raw: Any) -> list[PodView]:
    """Read a list of pods; see `pod`."""
    if not isinstance(raw, list):
        raise TransientError(f"the service answered no list of pods but {type(raw).__name__}")
    return [pod(each) for each in raw]


def identifier(raw: Any) -> str:
    """Check the id of a pod.

    Raises:
        TransientError: if it is no id.
    """
    if not isinstance(raw, str) or not ID.fullmatch(raw):
        raise TransientError(
            f"the service answered {printable(repr(raw))[:80]} for the id of a pod"
        )
    return raw


def offer(raw: Any) -> Offer:
    """Read a kind of GPU, in the form of GraphQL or of REST v2."""
    name = raw.get("id") if isinstance(raw, dict) else None
    if not isinstance(name, str) or not name.isprintable():
        raise TransientError("the service answered no list of GPUs")
    if "price" in raw:
        price, most = _dict(raw["price"]), _dict(raw.get("maxCount"))
        versions = [v for v in raw.get("cudaVersions") or [] if isinstance(v, dict)]
        return Offer(
            gpu=raw["id"],
            name=printable(str(raw.get("name") or raw["id"])),
            memory_gb=_gb(raw.get("memory")),
            secure=_price(price.get("secure"), raw.get("secure")),
            community=_price(price.get("community"), raw.get("community")),
            stock=printable(str(raw.get("availability") or "")),
            most=(_gb(most.get("secure")), _gb(most.get("community"))),
            cuda=tuple(printable(str(v.get("version"))) for v in versions if v.get("available")),
        )
    lowest = raw.get("lowestPrice") or {}
    return Offer(
        gpu=raw["id"],
        name=printable(str(raw.get("displayName") or raw["id"])),
        memory_gb=_gb(raw.get("memoryInGb")),
        secure=_price(raw.get("securePrice"), raw.get("secureCloud")),
        community=_price(raw.get("communityPrice"), raw.get("communityCloud")),
        stock=printable(str(lowest.get("stockStatus") or "")),
        most=(_gb(raw.get("maxGpuCount")),) * 2,
    )


def number(raw: Any) -> float | None:
    """Read a number that is not negative; None for anything else."""
    if isinstance(raw, bool) or not isinstance(raw, int | float) or not 0 <= raw < 1e9:
        return None
    return float(raw)


def _price(raw: Any, offered: Any) -> float | None:
    """Read a price; 0 is that of what is not offered."""
    return (number(raw) or None) if offered else None


def _dict(raw: Any) -> dict[str, Any]:
    return raw if isinstance(raw, dict) else {}


def _gb(raw: Any) -> int | None:
    gb = number(raw)
    return int(gb) if gb else None


def _graphql_endpoint(raw: dict[str, Any]) -> Endpoint | None:
    runtime = raw.get("runtime")
    ports = (runtime.get("ports") if isinstance(runtime, dict) else None) or []
    for port in ports:
        if (
            isinstance(port, dict)
            and port.get("privatePort") == 22
            and port.get("isIpPublic")
            and port.get("type") == "tcp"
        ):
            return _endpoint(port.get("ip"), port.get("publicPort"), "root")
    return None


def _rest_endpoint(raw: dict[str, Any]) -> Endpoint | None:
    direct = raw["ssh"].get("direct")
    if not isinstance(direct, dict):
        return None
    return _endpoint(direct.get("host"), direct.get("port"), direct.get("username") or "root")


def _endpoint(host: Any, port: Any, user: Any) -> Endpoint | None:
    sound = (
        isinstance(host, str)
        and HOST.fullmatch(host)
        and isinstance(port, int)
        and 0 < port < 65536
        and isinstance(user, str)
        and ID.fullmatch(user)
    )
    return Endpoint(host, port, user) if sound else None
