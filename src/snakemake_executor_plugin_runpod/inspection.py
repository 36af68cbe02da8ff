"""Whether a machine is what was rented: looked at before anything is sent to it."""

from typing import Any

from snakemake_executor_plugin_runpod.failures import available
from snakemake_executor_plugin_runpod.offers import Needs

SHARE = 0.88
"""A machine may have a little less than its advertised GB: drivers and file systems take some."""


def fault(facts: dict[str, Any], need: Needs, cuda: str) -> str | None:
    """Say what is wrong with a machine, or None.

    Args:
        facts: what its agent said.
        need: of the job.
        cuda: lowest CUDA version that its driver must support, such as 12.8.
    """
    gpus = facts.get("gpus") or []
    if len(gpus) < need.gpus:
        return f"{len(gpus)} GPUs, {need.gpus} were rented"
    if version(facts.get("cuda")) < version(cuda):
        return f"its driver supports CUDA {facts.get('cuda')}, {cuda} is needed"
    wanted = {"vram": need.vram_gb, "disk": need.disk_gb, "memory": need.memory_gb}
    for what, least in wanted.items():
        if (there := available(what, facts)) < SHARE * least:
            return f"{there:.0f} GB of {what}, {least} are needed"
    return None


def is_switched(facts: dict[str, Any]) -> bool | None:
    """Tell whether the machine has proved that it can end itself; None: not known yet."""
    probe = (facts.get("switch") or {}).get("probe")
    if not isinstance(probe, dict):
        return None
    if "authorised" in probe.values():
        return True
    unclear = any(str(answer).startswith("no answer") for answer in probe.values())
    return None if unclear else False


def version(text: Any) -> tuple[int, int]:
    """Read a version such as 12.8; (0, 0) if it is none."""
    major, _, minor = str(text or "").partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)
