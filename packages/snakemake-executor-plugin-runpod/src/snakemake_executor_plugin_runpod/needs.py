"""What a job needs of its pod, from the resources of its rule."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

DISK_GB = 20
MEMORY_GB = 8
VRAM_GB = 12

DISK_USD_PER_GB_H = 0.10 / 730
"""What a container's disk costs while its pod is there: $0.10 a GB and month, by RunPod's page of
prices (docs.runpod.io/pods/pricing); it comes on top of the price of the GPU."""


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

    @property
    def is_guess(self) -> bool:
        """Whether nothing is known of the time that it takes."""
        return self.runtime_min is None and not self.download_gb

    @property
    def disk_usd_per_h(self) -> float:
        """What its disk costs, in dollars an hour."""
        return self.disk_gb * DISK_USD_PER_GB_H

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
