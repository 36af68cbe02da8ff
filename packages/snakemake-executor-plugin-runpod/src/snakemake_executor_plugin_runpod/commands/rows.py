"""What the ledger and the API tell about pods, as rows for people and for programs."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_runpod.api.model import Offer, PodView
from snakemake_executor_plugin_runpod.lease import Lease
from snakemake_executor_plugin_runpod.ledger import PREFIX, Ledger
from snakemake_executor_plugin_runpod.remote.console import last_line, read

Json = dict[str, Any]


def last_leases(ledger: Ledger) -> list[Lease]:
    """Return the last attempt of every job that ever had one, in the order of the ledger."""
    return list({lease.key: lease for lease in ledger.leases.values()}.values())


def jobs(ledger: Ledger, folder: Path) -> list[Json]:
    """Describe every job that had a pod: how far it is and what it has cost.

    Args:
        ledger: of the working directory.
        folder: the working directory.

    Returns:
        For each job: job, phase, files done and all, pod, gpu, age in minutes of its last pod,
        whether that may be alive, dollars of all its pods, and what it said last while it works.
    """
    now = time.time()
    return [
        {
            "job": lease.title,
            "phase": lease.phase if lease.open else _end(lease),
            "done": sum((folder / name).exists() for name in lease.outputs),
            "files": len(lease.outputs),
            "pod": lease.id,
            "gpu": lease.gpu,
            "minutes": round(((lease.ended or now) - lease.asked) / 60, 1),
            "alive": lease.open,
            "dollars": round(
                sum(x.cost(now) for x in ledger.leases.values() if x.key == lease.key), 4
            ),
            "said": last_line(read(ledger.folder / "logs" / f"{lease.name}.log"))
            if lease.open
            else "",
        }
        for lease in last_leases(ledger)
    ]


def pods(ledger: Ledger, seen: Sequence[PodView] | None) -> list[Json]:
    """Compare the pods that may be alive with those that the API lists.

    Args:
        ledger: of the working directory.
        seen: every pod of the account; None if the API was not asked.

    Returns:
        For each pod: pod, name, job, gpu, rate, minutes, dollars, and what is known of it:
        `alive`, `kept`, `left over` (the API lists it, and the ledger has done with it), `gone`
        (the ledger counts on it, the API does not list it), `of another account` (this key does
        not see it), `not in the ledger` (it has the name of this folder), `of another folder`, or
        `not asked`. Rates and dollars include the disk.
    """
    now = time.time()
    living = [view for view in seen or () if not view.terminated]
    found = []
    for lease in ledger.leases.values():
        own: list[PodView | None] = [view for view in living if view.name == lease.name]
        for view in own or ([None] if lease.open else []):
            current = lease if view is None else replace(lease, ended=None, dies=None)
            found.append(
                {
                    "pod": view.id if view else lease.id,
                    "name": lease.name,
                    "job": lease.title,
                    "gpu": lease.gpu,
                    "rate": replace(lease, rate=(view.rate if view else 0) or lease.rate).hourly,
                    "minutes": round(((current.ended or now) - lease.asked) / 60, 1),
                    "dollars": round(current.cost(now), 4),
                    "state": _state(ledger, lease, view, asked=seen is not None),
                }
            )
    unknown = (view for view in living if view.name not in ledger.leases)
    strangers = (view for view in unknown if view.name.startswith(f"{PREFIX}-"))
    found += [
        {
            "pod": view.id,
            "name": view.name,
            "job": "",
            "gpu": view.gpu or "",
            "rate": view.rate,
            "minutes": None,
            "dollars": None,
            "state": "not in the ledger"
            if view.name.startswith(ledger.prefix)
            else "of another folder",
        }
        for view in strangers
    ]
    return found


def _state(ledger: Ledger, lease: Lease, view: PodView | None, *, asked: bool) -> str:
    if view is not None:
        return "kept" if lease.kept else "alive" if lease.open else "left over"
    if ledger.is_foreign(lease):
        return "of another account"
    return "gone" if asked else "not asked"


def find(ledger: Ledger, word: str) -> Lease:
    """Return the last attempt that a word names: by pod, by the pod's name, or by part of the job.

    Raises:
        ValueError: if there is none, or jobs of several names have it.
    """
    exact = [x for x in ledger.leases.values() if word in (x.id, x.name)]
    close = exact or [x for x in last_leases(ledger) if word in x.title]
    if len({lease.key for lease in close}) > 1:
        listed = ", ".join(sorted(lease.title for lease in close))
        raise ValueError(f"{word} may be any of {listed}: say more")
    if not close:
        known = ", ".join(lease.title for lease in last_leases(ledger)) or "none yet"
        raise ValueError(f"no job or pod of this folder is {word!r}; there are: {known}")
    return close[-1]


def offers(listed: Iterable[Offer]) -> list[Json]:
    """Describe kinds of GPU, the cheapest first."""
    rows = [
        {
            "gpu": offer.gpu,
            "memory_gb": offer.memory_gb,
            "secure": offer.secure,
            "community": offer.community,
            "stock": offer.stock,
        }
        for offer in listed
        if offer.secure is not None or offer.community is not None
    ]
    return sorted(rows, key=lambda row: row["secure"] or row["community"] or 0)


def cells(rows: Sequence[Json]) -> list[list[str]]:
    """Return rows as text, the names of the columns first."""
    return [list(rows[0]), *([_text(*item) for item in row.items()] for row in rows)]


def _text(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "dollars":
        return f"{value:.4f}"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _end(lease: Lease) -> str:
    if lease.products is not None:
        return "fetched"
    return "refused" if lease.refused else f"ended: {lease.phase}"
