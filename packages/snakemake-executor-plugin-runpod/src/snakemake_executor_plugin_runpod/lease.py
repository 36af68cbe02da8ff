"""One attempt to have one pod for one job, as the entries of the ledger tell it."""

from dataclasses import dataclass
from typing import Any

from snakemake_executor_plugin_runpod.needs import DISK_USD_PER_GB_H

EVENTS = {
    "intent": ("key", "title", "fingerprint", "run", "gpu", "gpus", "rate", "outputs"),
    "created": (),
    "phase": (),
    "fetched": ("products",),
    "superseded": (),
    "silent": ("dies",),
    "terminating": (),
    "gone": (),
    "refused": (),
    "kept": (),
}
"""What an entry may tell, and the facts that it must come with."""

LATER = ("disk_gb", "grace_s", "account", "keyed", "home", "cloud")
"""Facts of an intent that the ledgers of earlier versions do not have."""

NUMBERS = ("rate", "ended", "dies", "disk_gb", "grace_s")

Json = dict[str, Any]


@dataclass
class Lease:
    """One attempt to have one pod for one job, as the ledger tells it.

    Attributes:
        name: of the pod, unique to this attempt.
        key: of the job; `title` is its name for people.
        fingerprint: of what the job computes; a pod is taken over for an equal one only.
        run: of the controller that asked for it.
        rate: dollars an hour without its disk, once it is known; before that what was quoted.
        disk_gb: of its container, which is billed too.
        grace_s: after so many seconds of silence it ends itself; 0 where that is not certain.
        account: digest of the account that pays; empty where the API does not tell.
        keyed: digest of the API key that it was asked for with.
        cloud: secure, or community: then its host is anybody's.
        home: where it was asked for: the ledger's inode, host and working directory.
        id: of the pod; None while it is not known whether there is one.
        host_key: of its sshd, from the first login on.
        switched: whether it has proved that it can end itself; None while that is not known.
        terminating: when the service accepted to end it, which proves nothing.
        ended: when it was there for the last time, known once it is proven that it is gone: the
            later of when the service accepted to end it and when it was last seen.
        dies: when it must have ended itself, having heard nothing; None while it hears from here.
        gone: it is proven that there is no such pod any more, or that there never was.
        kept: it is left for people to look at.
        products: digests of the outputs that were fetched whole, by path; None before that.
        superseded: what it made is not used again: Snakemake knows of it, or wants it anew.
    """

    name: str
    key: str
    title: str
    fingerprint: str
    run: str
    gpu: str
    gpus: int
    rate: float
    asked: float
    outputs: list[str]
    disk_gb: float = 0.0
    grace_s: float = 0.0
    account: str = ""
    keyed: str = ""
    home: str = ""
    cloud: str = ""
    id: str | None = None
    created: float | None = None
    host_key: str | None = None
    machine: str | None = None
    switched: bool | None = None
    phase: str = "asked for"
    terminating: float | None = None
    ended: float | None = None
    dies: float | None = None
    gone: bool = False
    refused: bool = False
    kept: bool = False
    products: dict[str, str] | None = None
    superseded: bool = False

    @property
    def job(self) -> str:
        """The job's name on its machine: another one if it computes something else."""
        return f"{self.key}-{self.fingerprint[:12]}"

    @property
    def open(self) -> bool:
        """Whether a pod of this name may be alive."""
        return not (self.gone or self.refused)

    @property
    def hourly(self) -> float:
        """Dollars an hour, its disk included."""
        return self.rate + self.disk_gb * DISK_USD_PER_GB_H

    def cost(self, now: float, since: float = 0.0) -> float:
        """Return the dollars that it has cost until now; an estimate, not RunPod's bill.

        Args:
            now: seconds since the epoch.
            since: what it cost before that is left out.
        """
        if self.created is None:
            return 0.0
        end = min(self.ended or now, self.dies or now)
        return self.hourly * max(0.0, end - max(self.created, since)) / 3600

    def apply(self, entry: Json) -> None:
        """Take in what an entry of the ledger tells of it."""
        event, when = entry["event"], entry["time"]
        if event == "created":
            self.created = self.created or self.asked
            self.dies = self.terminating = None
            if not self.open:  # it turned up after all
                self.gone, self.refused, self.ended = False, False, None
            self._update(entry, "id", "rate", "machine", "run", "fingerprint", "account", "keyed")
        elif event == "phase":
            names = ("phase", "host_key", "rate", "machine", "fingerprint", "switched")
            self._update(entry, *names)
        elif event == "fetched":
            self.products = entry["products"]
        elif event == "silent":
            self.dies = entry["dies"]
        elif event == "terminating":
            self.terminating = self.terminating or when
        elif event in ("gone", "refused"):
            setattr(self, event, True)
            self.ended = self.ended or entry.get("ended") or when
        elif event in ("kept", "superseded"):
            setattr(self, event, True)

    def _update(self, entry: Json, *names: str) -> None:
        for name in names:
            if entry.get(name) is not None:
                setattr(self, name, entry[name])


def intended(entry: Json) -> Lease:
    """Return the attempt that an entry announces."""
    facts = {fact: entry[fact] for fact in EVENTS["intent"]}
    facts |= {fact: entry[fact] for fact in LATER if entry.get(fact)}
    return Lease(entry["name"], asked=entry["time"], **facts)


def is_sound(entry: Any) -> bool:
    """Tell whether an entry is one that `Lease.apply` understands."""
    return (
        isinstance(entry, dict)
        and entry.get("event") in EVENTS
        and isinstance(entry.get("name"), str)
        and isinstance(entry.get("time"), int | float)
        and all(
            isinstance(entry.get(n, 0.0), int | float | None) for n in ("rate", "ended", *LATER[:2])
        )
        and all(isinstance(entry.get(n, ""), str | None) for n in LATER[2:])
        and entry.keys() >= set(EVENTS[entry["event"]])
    )
