"""What pods have cost, as lines of text."""

import time
from collections.abc import Sequence

from snakemake_executor_plugin_runpod.lease import Lease
from snakemake_executor_plugin_runpod.ledger import Ledger


def spending(ledger: Ledger) -> list[str]:
    """List what each pod of a run has cost so far; nothing if there was none."""
    now = time.time()
    leases = [
        lease
        for lease in ledger.leases.values()
        if lease.run == ledger.run and lease.id and lease.created
    ]
    if not leases:
        return []
    rows = [("job", "pod", "GPU", "$/h", "minutes", "$")]
    for lease in leases:
        minutes = ((lease.ended or now) - (lease.created or now)) / 60
        cost = lease.cost(now)
        rows.append(
            (
                lease.title,
                f"{lease.id}{' (may be alive)' if lease.open else ''}",
                lease.gpu,
                f"{lease.hourly:.2f}",
                f"{minutes:.1f}",
                f"{cost:.4f}",
            )
        )
    total = ledger.spent(ledger.run)
    return [
        "spent by this run, an estimate and not RunPod's bill:",
        *table(rows),
        f"  total ${total:.4f}",
    ]


def farewell(ledger: Ledger) -> list[str]:
    """Name the pods that may be alive when a process ends, with the way to end them."""
    foreign = [
        f"runpod: pod {lease.id or lease.name} of {lease.title} was rented with another API key, "
        f"and may be alive at ${lease.hourly:.2f}/h; to end it, with that key: "
        f"{ledger.command('reap')}"
        for lease in ledger.foreign_leases()
    ]
    return [_fate(lease, ledger) for lease in ledger.open_leases() if lease.rate] + foreign


def _fate(lease: Lease, ledger: Ledger) -> str:
    """Say what will become of a pod that is left; a machine that is not rented has no price."""
    name, price, end = lease.id or lease.name, f"${lease.hourly:.2f}/h", ledger.command("reap")
    until = "it ends itself" if lease.switched is not False else "you end it, for it cannot"
    if lease.kept:
        return (
            f"runpod: pod {name} of {lease.title} is kept for you at {price} until {until}; "
            f"to end it: {end}"
        )
    return (
        f"runpod: pod {name} of {lease.title} may be alive at {price} until {until}; the next run "
        f"that needs its job takes it over; to end it: {end}"
    )


def table(rows: Sequence[Sequence[str]], numbers: int = 3) -> list[str]:
    """Lay out rows as text, the last columns flush right.

    Args:
        rows: the first one is the head.
        numbers: how many of the last columns are flush right.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    left = len(widths) - numbers
    return [
        "  "
        + "  ".join(
            text.ljust(width) if i < left else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
