"""Reads byte ranges of the hub's files at a pinned commit: in parallel, resumed, retried.

The hub redirects a reader to a storage server. That address is remembered for each file as long as
the storage server accepts it for any range; the token is sent to no host but the hub. What the hub
says of a file is compared with its listing, so that a file that changes meanwhile is noticed.
"""

import base64
import http.client
import random
import re
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from email.message import Message
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

from moe_outliers.checkpoint.hub import File, asked_to_wait
from moe_outliers.checkpoint.source import Stopped

ATTEMPTS = 6
"""A read is given up after so many failures in a row."""

PROGRESS_BYTES = 1 << 20
"""An attempt that read that much does not count as a failure: the line is bad, but it works."""

SLOWEST = 100_000
"""Bytes a second: an attempt that is slower counts as stalled, as one without any byte does."""

LONGEST_PAUSE_S = 30.0

RANGE_BOUND_S = 60.0
"""A storage address that is refused when younger than this was signed for one range only."""

TRANSIENT = (408, 416, 425, 429)
"""Statuses below 500 that may be transient."""

REDIRECTIONS = 5


class Ranges:
    """Reads ranges of the files of one repository; threads may share it.

    Attributes:
        files: size and digest of each file, as the hub lists them.
        patience_s: seconds without a byte after which a connection counts as stalled.
        pause_s: the first pause before another attempt; it doubles with each.
    """

    def __init__(
        self,
        endpoint: str,
        repo: str,
        revision: str,
        files: Mapping[str, File],
        *,
        token: str | None = None,
        patience_s: float = 30.0,
        pause_s: float = 0.5,
    ) -> None:
        """Name the repository; no request is made yet."""
        self.files, self.patience_s, self.pause_s = files, patience_s, pause_s
        self.where = f"{repo} at {revision[:12]}"
        self._base = f"{endpoint.rstrip('/')}/{repo}/resolve/{revision}"
        self._home = urlsplit(self._base)[:2]
        self._revision, self._token = revision, token
        self._addresses: dict[str, tuple[str, float]] = {}
        self._remembers = True
        self._local = threading.local()
        self._open: set[http.client.HTTPConnection] = set()
        self._lock, self._stopped = threading.Lock(), threading.Event()

    def read_into(self, name: str, offset: int, view: memoryview) -> None:
        """Fill a buffer with the bytes of a file from an offset on.

        Raises:
            ValueError: if the hub refuses, the file changed, or no attempt succeeds.
            Stopped: if `close` was called.
        """
        done = failures = 0
        known = self._addresses.get(name)
        while done < len(view):
            attempt = _Attempt(self, name, offset + done, view[done:])
            try:
                attempt.run(known[0] if known else f"{self._base}/{quote(name)}")
            except (OSError, http.client.HTTPException) as error:
                self._addresses.pop(name, None)
                if known and getattr(error, "by_storage", False):  # it expired: ask the hub again
                    self._remembers &= time.monotonic() - known[1] > RANGE_BOUND_S
                    known = None
                    continue
                known = None
                failures = 0 if attempt.got >= PROGRESS_BYTES else failures + 1
                if failures >= ATTEMPTS:
                    raise ValueError(
                        f"could not read {name} of {self.where} from {self._home[1]}: "
                        f"{str(error) or type(error).__name__} ({failures} attempts)"
                    ) from error
                self._pause(failures, getattr(error, "asked_s", 0))
            done += attempt.got

    def close(self) -> None:
        """End every read that is under way."""
        self._stopped.set()
        with self._lock:
            for connection in self._open:
                if connection.sock is not None:
                    with suppress(OSError):
                        connection.sock.shutdown(socket.SHUT_RDWR)
                connection.close()

    # -- used by an attempt --------------------------------------------------------------------

    def remember(self, name: str, address: str) -> None:
        """Remember the storage address of a file."""
        if self._remembers and not self.is_hub(urlsplit(address)):
            self._addresses[name] = address, time.monotonic()

    def is_hub(self, url: SplitResult) -> bool:
        """Tell the hub from a storage server."""
        return url[:2] == self._home

    def headers(self, url: SplitResult) -> dict[str, str]:
        """Return the headers of a request: the token only for the hub itself."""
        headers = {"User-Agent": "moe-outliers", "Accept-Encoding": "identity"}
        if self._token and self.is_hub(url):
            headers["Authorization"] = f"Bearer {self._token}"
        return headers

    def connection(self, url: SplitResult) -> http.client.HTTPConnection:
        """Return this thread's connection to a host."""
        if self._stopped.is_set():
            raise Stopped
        mine = self._local.__dict__.setdefault("connections", {})
        if url[:2] not in mine:
            mine[url[:2]] = _connect(url, self.patience_s)
            with self._lock:
                self._open.add(mine[url[:2]])
        connection: http.client.HTTPConnection = mine[url[:2]]
        return connection

    def drop(self, url: SplitResult) -> None:
        """Forget this thread's connection to a host."""
        connection = self._local.__dict__.get("connections", {}).pop(url[:2], None)
        if connection is not None:
            connection.close()
            with self._lock:
                self._open.discard(connection)

    def same(self, name: str, answer: Message, total: int | None) -> None:
        """Make sure that an answer is of the file that the hub listed.

        The ETag of a storage server is no sha256, though it can look like one.

        Raises:
            ValueError: if commit, digest or size differ.
        """
        listed = self.files[name]
        etag = (answer["X-Linked-ETag"] or "").removeprefix("W/").strip('"')
        claims = [
            (answer["X-Repo-Commit"], self._revision, "commit"),
            (etag if re.fullmatch("[0-9a-f]{64}", etag) else None, listed.sha256, "sha256"),
            (answer["X-Linked-Size"], str(listed.size), "size"),
            (None if total is None else str(total), str(listed.size), "size"),
        ]
        for got, wanted, what in claims:
            if got is not None and wanted is not None and got != wanted:
                raise ValueError(
                    f"{name} of {self.where} was changed on the way: its {what} is {got}, "
                    f"the hub listed {wanted}"
                )

    def _pause(self, failures: int, asked_s: float) -> None:
        """Wait before another attempt: longer each time, and as long as the server asks."""
        pause = self.pause_s * 2 ** max(failures - 1, 0) * random.uniform(0.5, 1.5)
        if self._stopped.wait(max(min(pause, LONGEST_PAUSE_S), asked_s)):
            raise Stopped


class _RefusedError(OSError):
    """The server answered with a status that may be transient.

    Attributes:
        by_storage: a storage server refused an address that the hub gave.
        asked_s: seconds that the server asks us to wait.
    """

    def __init__(self, response: http.client.HTTPResponse, by_storage: bool) -> None:
        super().__init__(f"status {response.status}")
        self.by_storage = by_storage
        self.asked_s = asked_to_wait(response.headers)


class _Attempt:
    """One request for one range, with its redirections.

    Attributes:
        got: bytes that it has read so far.
    """

    def __init__(self, ranges: Ranges, name: str, start: int, view: memoryview) -> None:
        self.ranges, self.name, self.start, self.view = ranges, name, start, view
        self.got = 0

    def run(self, address: str) -> None:
        """Fill the view from an address; after an error `got` says how far it came."""
        for _ in range(REDIRECTIONS):
            url = urlsplit(address)
            try:
                onward = self._request(url)
            except BaseException:
                self.ranges.drop(url)
                raise
            if onward is None:
                return
            address = urljoin(address, onward)
            self.ranges.remember(self.name, address)
        raise OSError(f"more than {REDIRECTIONS} redirections")

    def _request(self, url: SplitResult) -> str | None:
        """Ask one host; return the address it redirects to, or None when the view is full."""
        connection = self.ranges.connection(url)
        stop = self.start + len(self.view) - 1
        headers = self.ranges.headers(url) | {"Range": f"bytes={self.start}-{stop}"}
        connection.request("GET", urlunsplit(("", "", *url[2:4], "")), headers=headers)
        response = connection.getresponse()
        if response.status in (301, 302, 303, 307, 308):
            self.ranges.same(self.name, response.headers, None)
            response.read()
            return response.headers["Location"] or ""
        if response.status not in (200, 206):
            self._refuse(url, response)
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers["Content-Range"] or "")
        if response.status == 206 and span:
            self.ranges.same(self.name, response.headers, int(span[2]))
        if response.status != 206 or not span or int(span[1]) != self.start:
            raise OSError(f"{url.netloc} ignored the range asked for")
        if response.length != len(self.view):
            raise OSError(f"{url.netloc} sends {response.length} bytes, {len(self.view)} wanted")
        self._receive(response)
        return None

    def _receive(self, response: http.client.HTTPResponse) -> None:
        """Read the body straight into the view, as it comes."""
        late = time.monotonic() + self.ranges.patience_s + len(self.view) / SLOWEST
        while self.got < len(self.view):
            got = response.fp.readinto1(self.view[self.got :])
            if not got:
                raise OSError("the connection was closed")
            self.got += got
            response.length = len(self.view) - self.got  # what http.client still expects
            if time.monotonic() > late:
                raise TimeoutError("too slow")
        response.read()

    def _refuse(self, url: SplitResult, response: http.client.HTTPResponse) -> None:
        """Raise an error for a status: a transient one, or one that only a person can mend."""
        status, ranges = response.status, self.ranges
        if not ranges.is_hub(url):
            raise _RefusedError(response, by_storage=status < 500 and status not in TRANSIENT)
        if status in (401, 403):
            raise ValueError(
                f"{url.netloc} refuses {self.name} of {ranges.where} (status {status}): accept the "
                "licence of a gated model on its page, and set HF_TOKEN to your token"
            )
        if status < 500 and status not in TRANSIENT:
            raise ValueError(f"{url.netloc} has no {self.name} of {ranges.where} (status {status})")
        raise _RefusedError(response, by_storage=False)


def _connect(url: SplitResult, timeout_s: float) -> http.client.HTTPConnection:
    """Connect to a host, through the proxy of the environment if there is one."""
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    proxy = getproxies().get(url.scheme)
    if proxy is None or proxy_bypass(url.hostname or ""):
        return kind(url.netloc, timeout=timeout_s)
    way = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    through = kind(way.hostname or "", way.port or 80, timeout=timeout_s)
    who = f"{unquote(way.username or '')}:{unquote(way.password or '')}".encode()
    known = {"Proxy-Authorization": f"Basic {base64.b64encode(who).decode()}"}
    through.set_tunnel(url.netloc, headers=known if way.username else {})
    return through
