"""What goes wrong: each fault says where, how and how often, and counts how often it did."""

import re
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Fault:
    """One thing that goes wrong.

    Of a call of the API (`on`: account, offers, create, list, get, terminate, any), `kind` is

    - `status`: it answers with the HTTP status `value`, and does nothing; `retry_after` in seconds
    - `html`: the same with a page of HTML
    - `done-status`: it does what was asked and then answers with the status `value`
    - `lost`: it does what was asked and closes the connection
    - `cut`: it closes the connection and does nothing
    - `error`: it refuses with the message `value`
    - `null`: it answers without data; `half`: with half of the answer
    - `body`: it answers with the text `value`, and does nothing
    - `ignored`: it answers as if it had done what was asked
    - `slow`: it takes `value` seconds longer

    Of a pod (`on`: pod), decided when it is created, `kind` is

    - `never-ready`: it gets no runtime; `no-port`: no public port
    - `state`: its container is in state `value`, EXITED or ERROR, and never starts
    - `late-sshd`: sshd answers `value` seconds late
    - `machine`: it is on the host `value`
    - `price`: it costs `value` an hour; `gpu`: its driver shows `value`, a list of name and MiB
    - `cuda`: its driver supports CUDA `value`; `disk`: it has `value` GB free; None: it does not
      tell, as a GPU whose MiB are N/A; `slow-network`
    - `no-power`: its own key may end nothing; `stranger`: it says that it is another pod;
      `bare`: no Python environment is ready on it
    - `denied`: it knows the key only after `value` seconds; `noise`: its shell chatters
    - `moves`: after `value` seconds sshd listens on another port; `new-key`: with another host key
    - `banner` (silent, junk or hang), `throttle` (bytes a second), `blackhole` (after `bytes`): of
      its first `times` connections
    - `die`, `drop`, `truncate`, `flip`, `stall`: when a command that matches `at` is run on it, or
      (`die`, `freeze`, which stops its processes, and `wipe`, which empties its disk) when a file
      that matches the glob `file`
      exists, or `after` seconds

    Attributes:
        own: it happens to calls with a pod's own key instead of the user's.
        times: how often it happens, at most; `skip`: how many chances it lets pass before.
        fired: how often it happened; `moments`: when, of a call.
    """

    on: str
    kind: str
    value: Any = None
    times: int = 1
    skip: int = 0
    retry_after: float | None = None
    at: str = ""
    file: str = ""
    after: float | None = None
    bytes: int = 0
    own: bool = False
    fired: int = 0
    moments: list[float] = field(default_factory=list)

    def strikes(self, on: str, own: bool = False) -> bool:
        """Tell whether it happens now, and count it."""
        if self.own != own or self.on not in (on, "any") or self.fired >= self.times:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.fired += 1
        self.moments.append(time.time())
        return True

    def matches(self, command: str) -> bool:
        """Tell whether a command is the one that it waits for."""
        return bool(self.at) and re.search(self.at, command) is not None


ON_COMMAND = {"die", "drop", "truncate", "flip", "stall", "freeze", "wipe", "noise"}
ON_COMMAND |= {"denied", "moves", "new-key", "banner", "throttle", "blackhole"}
"""Faults that happen on the pod, while it works."""
