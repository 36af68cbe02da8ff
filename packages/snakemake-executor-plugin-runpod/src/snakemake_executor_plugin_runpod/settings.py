"""What a user may set: every field is an option --runpod-NAME, and a key of a profile."""

# Snakemake hands these annotations to argparse: they must be types that can be called. So this
# module must never say `from __future__ import annotations`, nor `str | None`.
# ruff: noqa: UP045

from dataclasses import dataclass, field
from typing import Any, Optional

from snakemake_interface_executor_plugins.settings import ExecutorSettingsBase

latest: list["ExecutorSettings"] = []
"""The settings that Snakemake made last: in a dry run it hands them to nobody."""


def _option(default: Any, text: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": text, **more})


def _words(default: Optional[str], text: str, name: str) -> Any:
    return field(default=default, metadata={"help": text, "nargs": "+", "metavar": name})


@dataclass
class ExecutorSettings(ExecutorSettingsBase):
    """The options of this executor. Money is in US dollars, disk and memory in GB."""

    api: Optional[str] = _option(
        "auto",
        "How to talk to RunPod: sdk (its Python package), rest-v2, or auto: the package if it is "
        "installed and until its API is retired.",
        choices=["auto", "sdk", "rest-v2"],
    )
    image: Optional[str] = _option(
        "runpod/pytorch:1.0.7-cu1281-torch291-ubuntu2404",
        "Container image, pinned by tag. It must start sshd from PUBLIC_KEY, as all images of "
        "RunPod do, and have bash and Python 3.",
    )
    requirements: Optional[str] = _option(
        None,
        "Requirements file of the jobs' Python environment, relative to the repository, with "
        "hashes. Without one, a pod installs this version of Snakemake and nothing else.",
    )
    stage: Optional[str] = _words(
        None,
        "Files and folders to stage beside those that git tracks, relative to the repository.",
        "PATH",
    )
    gpu: Optional[str] = _words(
        "auto",
        "Kinds of GPU in order of preference, such as 'NVIDIA L4'; auto: the cheapest first "
        "that have what the job's resources name.",
        "KIND",
    )
    cloud: Optional[str] = _words(
        "secure", "Cloud tiers in order of preference: secure, community.", "TIER"
    )
    data_center: Optional[str] = _words(
        None, "Data centres in order of preference, such as EU-RO-1; by default any.", "ID"
    )
    cuda: Optional[str] = _option(
        "12.8", "Lowest CUDA version that a host's driver must support.", metavar="VERSION"
    )
    max_price: Optional[float] = _option(
        1.0, "Most that one pod may cost, in dollars an hour.", metavar="DOLLARS"
    )
    budget: Optional[float] = _option(
        10.0, "Most that one run may cost, in dollars.", metavar="DOLLARS"
    )
    daily_budget: Optional[float] = _option(
        25.0,
        "Most that all runs of one folder may cost within 24 hours, in dollars.",
        metavar="DOLLARS",
    )
    max_pods: Optional[int] = _option(
        8, "Most pods at a time; one counts until it is proven that it is gone.", metavar="N"
    )
    delay: Optional[float] = _option(
        2.0, "Seconds between the creation of two pods.", metavar="SECONDS"
    )
    grace: Optional[float] = _option(
        30.0,
        "Minutes after which a pod that has not heard from its controller ends itself.",
        metavar="MINUTES",
    )
    max_hours: Optional[float] = _option(
        12.0,
        "Hours after which a pod ends itself in any case; a job's resource `runtime` lowers it.",
        metavar="HOURS",
    )
    capacity_wait: Optional[float] = _option(
        30.0, "Minutes to wait for a GPU when none is free.", metavar="MINUTES"
    )
    restarts: Optional[int] = _option(
        3, "How often a job starts again on another pod if its pod was lost.", metavar="N"
    )
    min_download: Optional[float] = _option(
        100.0,
        "Mbit/s that a host must download at; asked for at creation, and measured for jobs whose "
        "resource `download_gb` is 1 or more. 0: anything.",
        metavar="MBITS",
    )
    speed_url: Optional[str] = _option(
        "https://huggingface.co/openai-community/gpt2/resolve/"
        "607a30d783dfa663caf39e06633721c8d4cfcd7e/model.safetensors",
        "What is downloaded to measure it, for a few seconds: a large file that is there for all.",
        metavar="URL",
    )
    pass_env: Optional[str] = _words(
        "HF_ENDPOINT HF_HUB_DISABLE_XET",
        "Variables that jobs get where they are set here. HF_TOKEN goes in a file, to jobs with a "
        "resource `hub`, on hosts of Secure Cloud; named here it goes to all.",
        "NAME",
    )
    node: Optional[str] = _option(
        None,
        "Run on this machine by SSH instead of renting one; RunPod is not asked at all.",
        metavar="USER@HOST:PORT",
    )
    on_interrupt: Optional[str] = _option(
        "terminate",
        "What becomes of the pods when you interrupt a run: terminate, or detach: they work on, "
        "and the next run takes them over.",
        choices=["terminate", "detach"],
    )
    keep_pod_on_failure: bool = _option(
        False,
        "Leave the pod of a failed job for you to look at; it ends itself after `grace`.",
    )
    plain_start: bool = _option(
        False,
        "Leave the image's start command alone; the switch that ends a forgotten pod then works "
        "only from the first login on.",
    )
    allow_no_switch: bool = _option(
        False, "Use pods that cannot end themselves. A lost controller then costs you money."
    )
    no_rehearsal: bool = _option(
        False, "Do not try the staged files out here before the first pod is rented."
    )

    def __post_init__(self) -> None:
        latest[:] = [self]

    def check(self) -> None:
        """Check every value.

        Raises:
            ValueError: naming the option, its value and what it must be.
        """
        for name in ("max_price", "budget", "daily_budget", "max_pods", "grace", "max_hours"):
            if (value := getattr(self, name)) is None or value <= 0:
                raise ValueError(f"--runpod-{name.replace('_', '-')} is {value}, must be above 0")
        for name in ("delay", "capacity_wait", "restarts", "min_download"):
            if (value := getattr(self, name)) is None or value < 0:
                raise ValueError(f"--runpod-{name.replace('_', '-')} is {value}, must be 0 or more")
        for name, allowed in (
            ("api", {"auto", "sdk", "rest-v2"}),
            ("on_interrupt", {"terminate", "detach"}),
        ):
            if getattr(self, name) not in allowed:
                listed = ", ".join(sorted(allowed))
                raise ValueError(f"--runpod-{name.replace('_', '-')} must be one of {listed}")
        if wrong := set(words(self.cloud)) - {"secure", "community"}:
            raise ValueError(f"--runpod-cloud: {wrong.pop()!r} is neither secure nor community")
        if ":" not in (self.image or "").rpartition("/")[2] and "@" not in (self.image or ""):
            raise ValueError(f"--runpod-image {self.image}: pin it by a tag or a digest")
        major, _, minor = (self.cuda or "").partition(".")
        if not (major.isdigit() and minor.isdigit()):
            raise ValueError(f"--runpod-cuda is {self.cuda!r}, must be like 12.8")


def words(value: Any) -> list[str]:
    """Return a list setting as a list: Snakemake gives a list, a default is a text of words."""
    if value is None:
        return []
    return value.split() if isinstance(value, str) else [str(each) for each in value]
