"""What can be known before a pod is rented: key, money, prices, and files of the model hub."""

import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from urllib.parse import quote

from snakemake_executor_plugin_runpod.api.errors import BILLING, ApiError
from snakemake_executor_plugin_runpod.api.model import AGENT, Account, Offer, PodApi
from snakemake_executor_plugin_runpod.api.retry import insist
from snakemake_executor_plugin_runpod.needs import Needs
from snakemake_executor_plugin_runpod.renting.money import estimate
from snakemake_executor_plugin_runpod.renting.offers import candidates
from snakemake_executor_plugin_runpod.settings import ExecutorSettings

HUB = "https://huggingface.co"
PATIENCE_S = 10


def check_account(
    api: PodApi,
    account: Account,
    settings: ExecutorSettings,
    needed: list[Needs],
    spent_today: float,
) -> list[Offer]:
    """Check the money, and that there is a kind of GPU for every job.

    Args:
        api: to ask for offers.
        account: what the API told of it.
        settings: of the user.
        needed: what each job needs; a group is one job.
        spent_today: dollars of all runs of this folder in the last 24 hours.

    Returns:
        The offers of now.

    Raises:
        ValueError: saying what is wrong and how to mend it.
    """
    try:
        offers = insist(api.offers)
    except ApiError as error:
        raise ValueError(f"RunPod: {error}") from None
    if account.balance is not None and account.balance <= 0:
        raise ValueError(
            f"the account at RunPod has ${account.balance:.2f}: add credit at {BILLING}"
        )
    total = expected_cost(needed, settings, offers)
    if total > (settings.budget or 0):
        raise ValueError(
            f"the jobs are expected to cost ${total:.2f}, over the budget of "
            f"${settings.budget:.2f}: raise --runpod-budget, or select fewer"
        )
    if spent_today + total > (settings.daily_budget or 0):
        raise ValueError(
            f"the jobs are expected to cost ${total:.2f}; with the ${spent_today:.2f} that runs of "
            f"this folder have cost within 24 hours that is over the daily budget of "
            f"${settings.daily_budget:.2f}: raise --runpod-daily-budget, or wait"
        )
    if account.balance is not None and account.balance < total:
        raise ValueError(
            f"the jobs are expected to cost ${total:.2f}, the account at RunPod has "
            f"${account.balance:.2f}: add credit at {BILLING}"
        )
    return offers


def expected_cost(
    needed: Iterable[Needs], settings: ExecutorSettings, offers: list[Offer]
) -> float:
    """Return the dollars that jobs are expected to cost, each on the first choice of pod."""
    total = 0.0
    for need in needed:
        hourly = (candidates(need, settings, offers)[0].price or 0) + need.disk_usd_per_h
        total += estimate(need).cost(hourly)[1]
    return total


def check_hub(files: Iterable[str], say: Callable[[str], None]) -> None:
    """Check that the hub would give the files that jobs will ask for, by one request each.

    Args:
        files: REPOSITORY@REVISION; what a job declares as its resource `hub`.
        say: told when the hub cannot be asked, which stops nothing.

    Raises:
        ValueError: if one is gated or does not exist; with the way to mend it.
    """
    wanted = sorted({each for each in files if each})
    with ThreadPoolExecutor(8) as pool:
        for problem in pool.map(lambda each: _ask_hub(each, say), wanted):
            if problem:
                raise ValueError(problem)


def _ask_hub(file: str, say: Callable[[str], None]) -> str | None:
    repository, _, revision = file.partition("@")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repository):
        return f"resource hub={file!r}: must be REPOSITORY@REVISION"
    where = os.environ.get("HF_ENDPOINT", HUB)
    address = f"{where}/{repository}/resolve/{quote(revision or 'main', safe='')}/config.json"
    token = os.environ.get("HF_TOKEN")
    request = urllib.request.Request(address, headers={"User-Agent": AGENT}, method="HEAD")
    if token:  # never to another host, that a redirection names
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S):
            return None
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return (
                f"{repository} is gated or private: accept its licence at {where}/{repository} "
                "and set HF_TOKEN to a token that may read it"
            )
        if error.code == 404:
            return f"{where} has no {repository} at {revision or 'main'}"
        say(f"{where} answered {error.code} for {repository}: going on")
    except (OSError, ValueError, HTTPException) as error:
        say(f"{where} could not be asked for {repository} ({error}): going on")
    return None
