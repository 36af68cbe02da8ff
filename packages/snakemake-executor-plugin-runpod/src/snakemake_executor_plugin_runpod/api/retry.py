"""Calls of the API that are made again, as the kind of their error allows."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import tenacity

from snakemake_executor_plugin_runpod.api.errors import ApiError, TransientError
from snakemake_executor_plugin_runpod.limits import scale

T = TypeVar("T")

ATTEMPTS = 6
"""How often a call that may pass is made."""

PAUSES_S = (1, 2, 4, 8, 16, 30)


def insist(function: Callable[..., T], *arguments: Any) -> T:
    """Call the API; an error that may pass is tried again.

    Raises:
        ApiError: of any kind but a transient one at once, that one at the end of patience.
    """
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(TransientError),
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=pause,
        reraise=True,
    )
    return retrying(function, *arguments)


def pause(state: tenacity.RetryCallState) -> float:
    """Return how long to wait before a call is made again: as long as the service asked."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, ApiError) and error.retry_after:
        return error.retry_after
    jitter = 0.75 + 0.5 * (time.monotonic_ns() % 1000) / 1000
    return PAUSES_S[min(state.attempt_number, len(PAUSES_S)) - 1] * jitter * scale()
