"""A proxy before a pod's port for SSH, which lets the connection go wrong as a fault says."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

PIECE = 1 << 14
BANNERS = {"silent": b"", "junk": b"\x00\xff220 mail\r\n" * 50, "hang": b"SSH-2.0-OpenSSH_9.6\r\n"}


class Proxy:
    """Listens on a port of its own and passes on to that of a pod, until the process ends.

    Attributes:
        port: where it listens.
    """

    def __init__(self, target: int, fault: Any, strike: Callable[[], None]) -> None:
        """Start.

        Args:
            target: port of the pod's sshd.
            fault: `banner`, `throttle` or `blackhole`; it strikes on its first `times` connections.
            strike: called when it does.
        """
        self._target, self._fault, self._strike, self._left = target, fault, strike, fault.times
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            struck, self._left = self._left > 0, self._left - 1
            if struck:
                self._strike()
            threading.Thread(target=self._serve, args=(client, struck), daemon=True).start()

    def _serve(self, client: socket.socket, struck: bool) -> None:
        if struck and self._fault.kind == "banner":
            with suppress(OSError):
                client.sendall(BANNERS[self._fault.value])
                while client.recv(PIECE):
                    pass
            return
        try:
            server = socket.create_connection(("127.0.0.1", self._target), timeout=5)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        for source, drain in ((client, server), (server, client)):
            pump = threading.Thread(target=self._pump, args=(source, drain, struck), daemon=True)
            pump.start()

    def _pump(self, source: socket.socket, drain: socket.socket, struck: bool) -> None:
        """Pass on until one side closes; slowly, or into nothing after some bytes."""
        passed, kind = 0, self._fault.kind if struck else ""
        with suppress(OSError):
            while chunk := source.recv(PIECE):
                passed += len(chunk)
                if kind == "throttle":
                    time.sleep(len(chunk) / self._fault.value)
                if kind != "blackhole" or passed <= self._fault.bytes:
                    drain.sendall(chunk)
        for end in (source, drain):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


KINDS = {"banner", "throttle", "blackhole"}
