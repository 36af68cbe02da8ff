"""What can go wrong with RunPod's API, by what is to be done about it."""

import re

BILLING = "https://console.runpod.io/user/billing"


class ApiError(Exception):
    """An error of the API. Its text never holds a query, a variable of a pod or a key.

    Attributes:
        retry_after: seconds that the service asked to wait, or None.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TransientError(ApiError):
    """May pass: try again. Of a creation it means that nothing was created."""


class AmbiguousError(ApiError):
    """A creation without a clear answer: the pod may exist. Never try again; look for its name."""


class CapacityError(ApiError):
    """Nothing like this is free: try the next kind, then wait."""


class ForbiddenError(CapacityError):
    """This account may not rent this kind: try the next one. Waiting does not help."""


class PermanentError(ApiError):
    """Will not pass by itself: stop, and say what to do."""


class UnauthorisedError(PermanentError):
    """The key is missing, wrong or revoked."""


class BrokeError(PermanentError):
    """The account has no money, or has reached its spending limit."""


class RetiredError(ApiError):
    """This API answers 410: use the other one."""


class GoneError(ApiError):
    """There is no such pod."""


_MESSAGES: list[tuple[str, type[ApiError]]] = [
    (r"pod not found|no such pod", GoneError),
    (
        r"no longer any instances|no instances currently available|not have the resources"
        r"|not enough free gpus|something went wrong\. please try again later"
        r"|could not find any pods with required specifications|no gpus? available",
        CapacityError,
    ),
    (r"balance|spend(ing)? limit|insufficient funds|add (more )?credits?", BrokeError),
    (r"unauthori[sz]ed|api key", UnauthorisedError),
    (r"too many requests|rate limit", TransientError),
    (r"syntax error|cannot query field|invalid value|validation failed", PermanentError),
]
"""First match wins. Collected from the service's users, see docs/runpod.md."""

_STATUSES: dict[int, type[ApiError]] = {
    401: UnauthorisedError,
    402: BrokeError,
    403: PermanentError,
    404: GoneError,
    408: TransientError,
    410: RetiredError,
    422: PermanentError,
    425: TransientError,
    429: TransientError,
}


def classify(
    status: int | None, message: str, *, creating: bool = False, retry_after: float | None = None
) -> ApiError:
    """Turn an answer into an exception.

    Args:
        status: of HTTP; None if there was no readable answer.
        message: what the service said; it is shortened and stripped of control characters.
        creating: whether a pod was to be created: then an unclear answer is ambiguous.
        retry_after: seconds, from the header.
    """
    text = printable(message)[:300]
    if status is None or status >= 500 or (creating and status == 408):
        kind: type[ApiError] = AmbiguousError if creating else TransientError
    elif creating and status == 403:
        kind = ForbiddenError
    elif status in _STATUSES:
        kind = _STATUSES[status]
    else:
        matches = (kind for pattern, kind in _MESSAGES if re.search(pattern, message.lower()))
        unknown = (
            {400: CapacityError, 200: AmbiguousError}.get(status, PermanentError)
            if creating
            else PermanentError
        )
        kind = next(matches, unknown)
    prefix = "" if status in (None, 200) else f"HTTP {status}: "
    fix = f" Add credit at {BILLING}" if kind is BrokeError else ""
    return kind(f"{prefix}{text or 'no message'}{fix}", retry_after)


def printable(text: str) -> str:
    """Replace control characters, so that no answer can move the cursor or fake a line."""
    return "".join(c if c.isprintable() else " " for c in text).strip()


def seconds(header: str | None) -> float | None:
    """Read a Retry-After header; None if it is missing or no number."""
    try:
        return min(max(float(header or ""), 0.0), 3600.0)
    except ValueError:
        return None
