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
