"""What is wrong with this machine or account for renting pods, and how to mend it."""

import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from snakemake_executor_plugin_runpod.api.errors import BILLING, ApiError
from snakemake_executor_plugin_runpod.api.model import KEY_FIX
from snakemake_executor_plugin_runpod.api.open import find_key, open_api
from snakemake_executor_plugin_runpod.ledger import FOLDER, Ledger

PACKAGES = ("asyncssh", "httpx", "tenacity")

OPTIONAL = ("runpod",)
"""RunPod's own package is the transport `sdk`; `rest-v2` does without it."""


@dataclass(frozen=True)
class Finding:
    """What was looked at; `fix` says what to do where it is not good."""

    what: str
    good: bool
    said: str
    fix: str = ""


def examine(directory: Path, transport: str) -> Iterator[Finding]:
    """Look at packages, key, account, prices and ledger.

    Args:
        directory: the working directory of runs.
        transport: of the API.
    """
    yield packages()
    yield ledger(directory)
    if not find_key():
        yield Finding("API key", False, "there is none", KEY_FIX)
        return
    try:
        api = open_api(transport)
        account = api.account()
        yield Finding("API key", True, f"accepted ({api.transport})")
    except ApiError as error:
        yield Finding("API key", False, str(error), KEY_FIX)
        return
    if account.balance is None:
        yield Finding("balance", True, "this API does not tell; a run says so when it is spent")
    else:
        said = f"${account.balance:.2f}"
        yield Finding("balance", account.balance > 0, said, f"add credit at {BILLING}")
    try:
        kinds = [offer for offer in api.offers() if offer.secure is not None]
        yield Finding("offers", bool(kinds), f"{len(kinds)} kinds of GPU", "try again later")
    except ApiError as error:
        yield Finding("offers", False, str(error), "try again later")


def packages() -> Finding:
    """Check that what the executor imports is installed."""
    found, missing = [], []
    for name in (*PACKAGES, *OPTIONAL):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing += [name] if name in PACKAGES else []
    if missing:
        fix = f"pip install {' '.join(missing)}"
        return Finding("packages", False, f"missing: {', '.join(missing)}", fix)
    return Finding("packages", True, ", ".join(found))


def ledger(directory: Path) -> Finding:
    """Look for pods of earlier runs that may be alive."""
    book = Ledger(directory / FOLDER)
    leases = book.open_leases()
    if not leases:
        return Finding("ledger", True, "no pod of this folder may be alive")
    names = ", ".join(lease.id or lease.name for lease in leases)
    fix = f"if no run is under way: run again to take them over, or {book.command('reap')}"
    return Finding("ledger", False, f"may be alive: {names}", fix)
