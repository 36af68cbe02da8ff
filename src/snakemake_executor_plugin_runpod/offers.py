"""Which pods would do for a job, in which order, and at what price."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

from snakemake_executor_plugin_runpod.api import Offer
from snakemake_executor_plugin_runpod.settings import ExecutorSettings, words

DISK_GB = 20
MEMORY_GB = 8
VRAM_GB = 12


@dataclass(frozen=True)
class Needs:
    """What a job needs of a pod, from its resources.

    Attributes:
        vram_gb: of each GPU.
        memory_gb: of the host.
        runtime_min: minutes after which it is stopped; None: as long as a pod may live.
        download_gb: what it fetches from the network.
        hub: files of the model hub that it will ask for, as REPOSITORY@REVISION, or empty.
    """

    gpus: int = 1
    vram_gb: int = VRAM_GB
    disk_gb: int = DISK_GB
    memory_gb: int = MEMORY_GB
    runtime_min: int | None = None
    download_gb: float = 0.0
    hub: str = ""

    def larger(self, what: str, than: float | None) -> "Needs":
        """Return these needs with more vram, memory or disk than there was, if that is known."""
        if what == "vram":
            return replace(self, vram_gb=max(self.vram_gb, math.floor(than or 0)) + 1)
        if what == "memory":
            return replace(self, memory_gb=2 * max(self.memory_gb, MEMORY_GB))
        return replace(self, disk_gb=math.ceil(1.5 * self.disk_gb))


def needs(resource: Mapping[str, Any]) -> Needs:
    """Read a job's resources.

    Those that only this executor knows are gpus, vram_gb, min_memory_gb, disk_gb, download_gb and
    hub; of Snakemake's own it takes mem_mb, disk_mb and runtime.

    Raises:
        ValueError: if the runtime is 0, which Snakemake makes of anything below a minute.
    """
    if resource.get("runtime") == 0:
        raise ValueError("resource runtime is 0 minutes: give a whole number, at least 1")

    def number(name: str, otherwise: float = 0) -> float:
        value = resource.get(name, otherwise)
        return value if isinstance(value, int | float) and value > 0 else otherwise

    runtime = number("runtime")
    return Needs(
        gpus=max(1, math.ceil(number("gpus", 1))),
        vram_gb=math.ceil(number("vram_gb", VRAM_GB)),
        disk_gb=math.ceil(number("disk_gb", DISK_GB) + number("disk_mb") / 1000),
        memory_gb=math.ceil(max(number("min_memory_gb", MEMORY_GB), number("mem_mb") / 1000)),
        runtime_min=math.ceil(runtime) if runtime else None,
        download_gb=number("download_gb"),
        hub=str(resource.get("hub") or ""),
    )


@dataclass(frozen=True)
class Candidate:
    """A pod that would do.

    Attributes:
        price: dollars an hour for all its GPUs; None if nobody has said.
    """

    gpu: str
    gpus: int
    cloud: str
    data_center: str | None
    price: float | None


def price_list() -> tuple[str, list[Offer]]:
    """Return the prices that came with this package, and their month."""
    text = (resources.files("snakemake_executor_plugin_runpod") / "prices.tsv").read_text()
    comment, _, *rows = text.splitlines()
    month = re.search(r"\d{4}-\d\d", comment)
    offers = []
    for row in rows:
        gpu, memory, secure, community = row.split("\t")
        offers.append(Offer(gpu, gpu, int(memory), _read(secure), _read(community)))
    return month[0] if month else "", offers


def candidates(need: Needs, settings: ExecutorSettings, offers: Iterable[Offer]) -> list[Candidate]:
    """List the pods that would do, the first choice first.

    With `auto` the cheapest come first, among the kinds of this package's list, which all compute
    in bfloat16; else the kinds that the settings name, in that order.

    Raises:
        ValueError: if none would do at the price; the message says which nearly would.
    """
    known = {offer.gpu: offer for offer in offers}
    listed = {offer.gpu: offer.memory_gb for offer in price_list()[1]}
    chosen = words(settings.gpu)
    automatic = chosen == ["auto"]
    kinds = list(listed) if automatic else chosen
    if unknown := [kind for kind in kinds if kind not in known and not automatic]:
        raise ValueError(f"--runpod-gpu: RunPod has no {unknown[0]!r}; see the command `offers`")
    centers: list[str | None] = [*words(settings.data_center)] or [None]
    found = [
        Candidate(kind, need.gpus, cloud, center, price)
        for kind in kinds
        if kind in known
        if not automatic or (known[kind].memory_gb or listed[kind] or 0) >= need.vram_gb
        for cloud in words(settings.cloud)
        if (price := _price(known[kind], cloud, need.gpus)) is not None
        for center in centers
    ]
    if automatic:
        found.sort(key=lambda c: c.price or math.inf)
    most = settings.max_price or math.inf
    affordable = [c for c in found if c.price is not None and c.price <= most]
    if affordable:
        return affordable
    wanted = f"{need.gpus} GPU of at least {need.vram_gb} GB"
    if not found:
        raise ValueError(f"no kind of GPU that may be chosen is {wanted}: see --runpod-gpu")
    nearest = min(found, key=lambda c: c.price or math.inf)
    raise ValueError(
        f"{wanted} costs at least ${nearest.price:.2f}/h ({nearest.gpu}), over the limit of "
        f"${most:.2f}/h: raise --runpod-max-price"
    )


def _read(price: str) -> float | None:
    return None if price == "-" else float(price)


def _price(offer: Offer, cloud: str, gpus: int) -> float | None:
    each = offer.secure if cloud == "secure" else offer.community
    return None if each is None else round(each * gpus, 4)
