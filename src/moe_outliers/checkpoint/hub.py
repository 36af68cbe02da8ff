"""Files of the Hugging Face hub, at a pinned commit, with errors that say what to do."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import tenacity
from huggingface_hub import HfApi, constants, get_token, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

CHECKPOINT = ["*.safetensors", "*.json"]
"""Files of a checkpoint that are fetched: no pickled weights, no code."""

FOLDERS = ["*/*"]
"""Left out: folders, which hold the same weights again in other layouts (GPT-OSS's `original`)."""

COMMIT = re.compile("[0-9a-f]{40}")

LARGEST_JSON_BYTES = 200_000_000
"""No config.json, index or tokenizer.json is that large."""

ATTEMPTS = 6

LONGEST_WAIT_S = 600.0
"""The hub counts requests over five minutes."""


def _transient(error: BaseException) -> bool:
    """Tell whether an error may be transient: a lost connection, 5xx, too many requests."""
    if isinstance(error, HfHubHTTPError):
        status = getattr(error.response, "status_code", 0)
        return status in (408, 429) or status >= 500
    return isinstance(error, OSError) and not isinstance(
        error, EntryNotFoundError | FileNotFoundError
    )


def asked_to_wait(headers: Mapping[str, str] | Message) -> float:
    """Return how many seconds an answer asks to wait, by Retry-After or the hub's RateLimit."""
    if (seconds := headers.get("Retry-After") or "").isdecimal():
        return min(float(seconds), LONGEST_WAIT_S)
    spent = re.search(r"\br=0;t=(\d+)", headers.get("RateLimit") or "")
    return min(float(spent[1]) + 1, LONGEST_WAIT_S) if spent else 0.0


_backoff = tenacity.wait_exponential_jitter(multiplier=0.5, max=30)


def _pause(state: tenacity.RetryCallState) -> float:
    """Wait longer each time, and as long as the hub asks."""
    error = state.outcome.exception() if state.outcome else None
    answer = getattr(error, "response", None)
    return max(_backoff(state), asked_to_wait(getattr(answer, "headers", {})))


_retry = tenacity.retry(
    retry=tenacity.retry_if_exception(_transient),
    wait=_pause,
    stop=tenacity.stop_after_attempt(ATTEMPTS),
    reraise=True,
)


def fetch(repo: str, revision: str, name: str) -> Path:
    """Download one file, or find it in the cache.

    Raises:
        ValueError: if the hub refuses; the message names the repository and the fix.
    """
    with _explained(repo, revision):
        return Path(_retry(hf_hub_download)(repo, name, revision=revision))


def snapshot(repo: str, revision: str) -> Path:
    """Download a checkpoint, or find it in the cache: safetensors and JSON files only.

    Raises:
        ValueError: if the hub refuses; the message names the repository and the fix.
    """
    with _explained(repo, revision):
        return Path(
            _retry(snapshot_download)(
                repo, revision=revision, allow_patterns=CHECKPOINT, ignore_patterns=FOLDERS
            )
        )


@dataclass(frozen=True)
class File:
    """A file of a repository.

    Attributes:
        size: its bytes.
        sha256: its digest, for a large file.
        git_sha1: its digest as git computes it, for a small one.
    """

    size: int
    sha256: str | None = None
    git_sha1: str | None = None


def listing(repo: str, revision: str) -> dict[str, File]:
    """List the files of a repository at a commit.

    Raises:
        ValueError: if the hub refuses; the message names the repository and the fix.
    """
    with _explained(repo, revision):
        info = _retry(HfApi().model_info)(repo, revision=revision, files_metadata=True)
    if info.sha != revision:
        raise ValueError(f"{repo}: asked for commit {revision}, the hub answered with {info.sha}")
    return {
        file.rfilename: File(
            file.size or 0,
            sha256=file.lfs.sha256 if file.lfs else None,
            git_sha1=None if file.lfs else file.blob_id,
        )
        for file in info.siblings or []
    }


def glance(
    repo: str, revision: str, timeout_s: float
) -> tuple[dict[str, File], dict[str, int], bytes]:
    """Ask once, without patience, what a repository holds at a commit.

    Args:
        repo: its name.
        revision: a commit.
        timeout_s: seconds that one answer may take.

    Returns:
        Its files; the number of values of each type in its safetensors files, as far as the hub
        has counted them; and config.json.

    Raises:
        ValueError: if the hub refuses or is not reached.
    """
    token = get_token()

    def get(path: str) -> bytes:
        request = Request(f"{constants.ENDPOINT}/{path}", headers={"User-Agent": "moe-outliers"})
        if token:  # not sent on to a host that a redirection names
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        with urlopen(request, timeout=timeout_s) as answer:
            data: bytes = answer.read()
            return data

    try:
        with _explained(repo, revision):
            info = json.loads(get(f"api/models/{quote(repo)}/revision/{revision}?blobs=true"))
            listed = {f["rfilename"]: File(f.get("size") or 0) for f in info["siblings"]}
            counted = (info.get("safetensors") or {}).get("parameters") or {}
            config = get(f"{quote(repo)}/resolve/{revision}/config.json")
    except ValueError as error:
        if isinstance(error.__cause__, HTTPError) and error.__cause__.code in (401, 403):
            raise ValueError(f"{repo} is gated, or there is no such repository") from None
        raise
    return listed, {str(kind): int(count) for kind, count in counted.items()}, config


def commit(repo: str, revision: str) -> str:
    """Return the commit that a revision of a repository is now; of a commit itself, unasked.

    Raises:
        ValueError: if the hub refuses; the message names the repository and the fix.
    """
    if COMMIT.fullmatch(revision):
        return revision
    with _explained(repo, revision):
        found = _retry(HfApi().model_info)(repo, revision=revision).sha
    if not found or not COMMIT.fullmatch(found):
        raise ValueError(f"{repo}: the hub names no commit of {revision}")
    return str(found)


def fetch_intact(repo: str, revision: str, name: str, listed: File) -> Path:
    """Fetch a small file, and make sure that it has the digest that the hub lists.

    Raises:
        ValueError: if it arrives damaged twice, is larger than any such file, or the hub refuses.
    """
    if listed.size > LARGEST_JSON_BYTES:
        raise ValueError(f"{repo} at {revision}: {name} has {listed.size} bytes: not fetched")
    for _ in range(2):
        path = fetch(repo, revision, name)
        data = path.read_bytes()
        sha1 = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        if listed in (File(len(data), git_sha1=sha1), File(len(data), sha256=_sha256(data))):
            return path
        path.resolve().unlink()
        path.unlink(missing_ok=True)
    raise ValueError(f"{repo} at {revision}: {name} came damaged: its digest is not the hub's")


def tokenizer(repo: str, revision: str) -> Path:
    """Fetch the tokenizer.json of a repository, intact; offline, find it in the cache.

    Raises:
        ValueError: if there is none, or as `listing` and `fetch_intact` do.
    """
    name = "tokenizer.json"
    if constants.HF_HUB_OFFLINE:
        return fetch(repo, revision, name)
    files = listing(repo, revision)
    if name not in files:
        raise ValueError(f"{repo} at {revision} has no {name}: no ids can be made for it")
    return fetch_intact(repo, revision, name, files[name])


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class _explained:  # noqa: N801 - used as `with _explained(…)`
    """Turn the hub's exceptions into messages that name the fix."""

    def __init__(self, repo: str, revision: str) -> None:
        self.repo, self.revision = repo, revision

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        where = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        if isinstance(error, GatedRepoError):
            raise ValueError(
                f"{self.repo} is gated: accept its licence at {where}/{self.repo} "
                "and set HF_TOKEN to your token"
            ) from error
        if isinstance(error, RevisionNotFoundError):
            raise ValueError(
                f"{self.repo} has no commit {self.revision}: correct its revision in the table"
            ) from error
        if isinstance(error, RepositoryNotFoundError):
            raise ValueError(
                f"{where} has no repository {self.repo}, or HF_TOKEN may not see it"
            ) from error
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise ValueError(f"{self.repo} at {self.revision}: {error}") from error
        if isinstance(error, HfHubHTTPError | OSError):
            raise ValueError(f"could not fetch {self.repo} from {where}: {error}") from error
        if isinstance(error, json.JSONDecodeError | UnicodeError | KeyError | TypeError):
            raise ValueError(
                f"{where} did not answer as the hub does when asked for {self.repo} ({error}): is "
                "there a proxy or a login page between, is HF_ENDPOINT right?"
            ) from error
