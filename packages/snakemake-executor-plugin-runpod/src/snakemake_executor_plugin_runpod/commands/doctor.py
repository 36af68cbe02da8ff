"""What is wrong with this machine or account for renting pods, and how to mend it."""

import importlib.metadata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from snakemake_executor_plugin_runpod.api.errors import BILLING, ApiError, UnauthorisedError
from snakemake_executor_plugin_runpod.api.model import KEY_FIX, Account, PodApi, PodView
from snakemake_executor_plugin_runpod.api.open import find_key, open_api
from snakemake_executor_plugin_runpod.api.retry import insist
from snakemake_executor_plugin_runpod.commands import rows
from snakemake_executor_plugin_runpod.ledger import FOLDER, Ledger

PACKAGES = ("asyncssh", "httpx", "tenacity")

OPTIONAL = ("runpod",)
"""RunPod's own package is the transport `sdk`; `rest-v2` does without it."""

LATER = "try again later"


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
    book = Ledger(directory / FOLDER)
    if not find_key():
        yield ledger(book, None)
        yield Finding("API key", False, "there is none", KEY_FIX)
        return
    try:
        api = open_api(transport)
        account = ask(api, book)
        seen = insist(api.pods)
        offers = insist(api.offers)
    except UnauthorisedError as error:
        yield ledger(book, None)
        yield Finding("API key", False, str(error), KEY_FIX)
        return
    except ApiError as error:
        yield ledger(book, None)
        yield Finding("RunPod", False, f"it does not answer as it should: {error}", LATER)
        return
    yield ledger(book, seen)
    yield Finding("API key", True, f"accepted ({api.transport})")
    if account.balance is None:
        yield Finding("balance", True, "this API does not tell; a run says so when it is spent")
    else:
        said = f"${account.balance:.2f}"
        yield Finding("balance", account.balance > 0, said, f"add credit at {BILLING}")
    kinds = [offer for offer in offers if offer.secure is not None]
    yield Finding("offers", bool(kinds), f"{len(kinds)} kinds of GPU", LATER)


def ask(api: PodApi, book: Ledger) -> Account:
    """Ask what the account has, and let a ledger know whose key is in use."""
    account = insist(api.account)
    if book.leases:
        book.know(find_key() or "", account.user)
    return account


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


def ledger(book: Ledger, seen: Sequence[PodView] | None) -> Finding:
    """Look for pods that may be alive.

    Args:
        book: of the working directory.
        seen: every pod of the account; None if RunPod could not be asked.
    """
    found = rows.pods(book, seen)
    own = [pod for pod in found if pod["state"] != "of another folder"]
    if own:
        said = ", ".join(f"{pod['pod'] or pod['name']} ({pod['state']})" for pod in own)
        more = "" if all(p["state"] == "kept" for p in own) else "run again to take them over, or "
        fix = f"if no run is under way: {more}{book.command('reap')}"
        return Finding("pods", False, f"may be alive: {said}", fix)
    if seen is None:
        return Finding("pods", True, "the ledger has no open pod; RunPod was not asked")
    others = len(found)
    more = f"; {others} of other folders: see the command `list`" if others else ""
    return Finding("pods", True, f"no pod of this folder is alive{more}")
