"""Which pods would do for a job, in which order, and at what price."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources

from snakemake_executor_plugin_runpod.api.model import Offer
from snakemake_executor_plugin_runpod.needs import Needs
from snakemake_executor_plugin_runpod.settings import ExecutorSettings, words


@dataclass(frozen=True)
class Candidate:
    """A pod that would do.

    Attributes:
        price: dollars an hour for all its GPUs, without its disk; None if nobody has said.
        free: whether there may be one now, by the catalogue.
    """

    gpu: str
    gpus: int
    cloud: str
    data_center: str | None
    price: float | None
    free: bool = True


OLDER = re.compile(r"AMD|MIG|Tesla|Quadro|TITAN|GTX|V100|\bT4\b|\bP\d+\b|RTX 20[678]0")
"""Kinds that do not compute in bfloat16, or are no whole GPU of NVIDIA's: never taken by `auto`."""


def price_list() -> tuple[str, list[Offer]]:
    """Return the prices that came with this package, and their month."""
    text = (resources.files("snakemake_executor_plugin_runpod") / "prices.tsv").read_text()
    comment, _, *rows = text.splitlines()
    month = re.search(r"\d{4}-\d\d", comment)
    offers = []
    for row in rows:
        gpu, memory, secure, community, _ = row.split("\t")
        offers.append(Offer(gpu, gpu, int(memory), _read(secure), _read(community)))
    return month[0] if month else "", offers


def candidates(need: Needs, settings: ExecutorSettings, offers: Iterable[Offer]) -> list[Candidate]:
    """List the pods that would do, the first choice first.

    With `auto` the cheapest come first, of all kinds that are offered and compute in bfloat16; else
    the kinds that the settings name, in that order.

    Raises:
        ValueError: if none would do at the price; the message says which nearly would.
    """
    known = {offer.gpu: offer for offer in offers}
    listed = {offer.gpu: offer.memory_gb for offer in price_list()[1]}
    chosen = words(settings.gpu)
    automatic = chosen == ["auto"]
    kinds = [kind for kind in known if not OLDER.search(kind)] if automatic else chosen
    if unknown := [kind for kind in kinds if kind not in known]:
        raise ValueError(f"--runpod-gpu: RunPod has no {unknown[0]!r}; see the command `offers`")
    centers: list[str | None] = [*words(settings.data_center)] or [None]
    found = [
        Candidate(kind, need.gpus, cloud, center, price, known[kind].is_free)
        for kind in kinds
        if not automatic or (known[kind].memory_gb or listed.get(kind) or 0) >= need.vram_gb
        if _has_cuda(known[kind], settings.cuda)
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


def _has_cuda(offer: Offer, lowest: str | None) -> bool:
    """Tell whether hosts of a kind may support a CUDA version: unless the catalogue denies it."""
    least = _version(lowest or "")
    return not offer.cuda or any(_version(each) >= least for each in offer.cuda)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdecimal())


def _price(offer: Offer, cloud: str, gpus: int) -> float | None:
    """Return the price of a pod; None if none has so many GPUs."""
    secure = cloud == "secure"
    each, most = (offer.secure, offer.most[0]) if secure else (offer.community, offer.most[1])
    if most and gpus > most:
        return None
    return None if each is None else round(each * gpus, 4)
