"""How long to wait for what: seconds, in one place."""

import os
from dataclasses import dataclass, fields, replace

VARIABLE = "SNAKEMAKE_RUNPOD_TIME_SCALE"
"""Multiplies every limit; an emulated service is faster than the real one."""


@dataclass(frozen=True)
class Limits:
    """Seconds.

    Attributes:
        mapping: from create until the pod has a public port for SSH; images may take long to pull.
        banner: from then until an SSH login works.
        connect: one attempt to connect, the key exchange included.
        call: one short command on the pod.
        silent: a transfer or a command may go without a byte for this long.
        lost: no contact by SSH although the API lists the pod; then it counts as lost.
        list_every: at least this long between two listings of pods while one is awaited.
        list_idle: between two listings while all pods are at work: a pod that was deleted by hand
            is noticed within this time.
        ambiguous: how long a pod whose creation had no clear answer is looked for by its name.
        late: and for this long it may still turn up, and is then terminated.
        twice: between the two looks that must both not find a terminated pod.
        terminate: patience with a pod that will not end, before its name is printed.
        harvest: between two looks for finished parts of a job that updates its outputs.
        switch: for the dead-man's switch of a pod to prove that it can end the pod.
        backoff: first pause when no candidate has capacity; doubles up to `backoff_most`.
        interrupted: how long an interrupted run waits for its pods to end.
    """

    mapping: float = 1200
    banner: float = 180
    connect: float = 15
    call: float = 60
    silent: float = 120
    lost: float = 300
    list_every: float = 5
    list_idle: float = 30
    ambiguous: float = 60
    late: float = 600
    twice: float = 2
    terminate: float = 300
    harvest: float = 60
    switch: float = 60
    backoff: float = 60
    backoff_most: float = 900
    interrupted: float = 60

    def scaled(self, factor: float) -> "Limits":
        """Return these limits, each multiplied by a factor."""
        return replace(self, **{f.name: getattr(self, f.name) * factor for f in fields(self)})


def scale() -> float:
    """Return the factor that the environment asks for; 1 unless it does."""
    return float(os.environ.get(VARIABLE, "1"))


def limits() -> Limits:
    """Return the limits of this process."""
    return Limits().scaled(scale())
