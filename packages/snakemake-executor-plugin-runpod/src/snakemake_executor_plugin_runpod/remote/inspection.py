"""Whether a machine is what was rented: looked at before anything is sent to it.

What a machine does not tell about itself is unknown, and refuses nothing.
"""

from typing import Any

from snakemake_executor_plugin_runpod.failures import available
from snakemake_executor_plugin_runpod.needs import Needs

SHARE = 0.88
"""A machine may have a little less than its advertised GB: drivers and file systems take some."""


def fault(facts: dict[str, Any], need: Needs, cuda: str) -> str | None:
    """Say what is wrong with a machine, or None if nothing is known to be.

    Args:
        facts: what its agent said.
        need: of the job.
        cuda: lowest CUDA version that its driver must support, such as 12.8.
    """
    gpus = facts.get("gpus")
    if gpus is not None and len(gpus) < need.gpus:
        return f"{len(gpus)} GPUs that work, {need.gpus} were rented"
    has, least = version(facts.get("cuda")), version(cuda)
    if has and least and has < least:
        return f"its driver supports CUDA {facts.get('cuda')}, {cuda} is needed"
    for what, gb in _needed(need).items():
        if (there := available(what, facts)) is not None and there < SHARE * gb:
            return f"{there:.0f} GB of {what}, {gb} are needed"
    return None


def unknown(facts: dict[str, Any], need: Needs) -> list[str]:
    """Name what a machine does not tell about itself: it is used all the same."""
    told = {"GPUs": facts.get("gpus"), "CUDA version": version(facts.get("cuda"))}
    told |= {what: available(what, facts) for what in _needed(need)}
    return [what for what, fact in told.items() if fact is None]


def _needed(need: Needs) -> dict[str, int]:
    return {"vram": need.vram_gb, "disk": need.disk_gb, "memory": need.memory_gb}


def is_switched(facts: dict[str, Any]) -> bool | None:
    """Tell whether the machine has proved that it can end itself; None: not known yet."""
    probe = (facts.get("switch") or {}).get("probe")
    if not isinstance(probe, dict):
        return None
    if "authorised" in probe.values():
        return True
    unclear = any(str(answer).startswith("no answer") for answer in probe.values())
    return None if unclear else False


def version(text: Any) -> tuple[int, int] | None:
    """Read a version such as 12.8; None if it is none."""
    major, _, minor = str(text or "").partition(".")
    return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else None
