"""TCP and UDP without anything in it: who can call whom."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from engine.lab.dialogue import why


class Listener:
    """Takes calls on every address of its side."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_server(("", port))
        self._socket.setblocking(False)

    def accepted(self) -> list[str]:
        """Return the addresses that got through since the last time."""
        peers: list[str] = []
        while True:
            try:
                connection, peer = self._socket.accept()
            except BlockingIOError:
                return peers
            connection.close()
            peers.append(str(peer[0]))


class Caller:
    """A call in progress, which may never be answered."""

    def __init__(self, address: str, port: int, source: str) -> None:
        self._socket = socket.socket()
        self._socket.bind((source, 0))
        self._socket.setblocking(False)
        self._address = (address, port)
        self._state = "pending"
        self._look()

    def state(self) -> dict[str, Any]:
        """`connected`, `pending`, or the name of the error."""
        if self._state == "pending":
            self._look()
        return {"state": self._state}

    def _look(self) -> None:
        # connect(2) on a connecting socket answers how far it is. On one that has failed it would begin anew.
        code = self._socket.connect_ex(self._address)
        if code in (0, errno.EISCONN):
            self._state = "connected"
        elif code not in (errno.EALREADY, errno.EINPROGRESS):
            self._state = errno.errorcode.get(code, str(code))

    def close(self) -> None:
        self._socket.close()


class Volley:
    """Calls all at once, one to each of `ports`, which nobody need answer."""

    def __init__(self, address: str, ports: Sequence[int], source: str) -> None:
        self._callers = [Caller(address, port, source) for port in ports]

    def end(self) -> dict[str, Any]:
        """Give up what is still under way; return how many there were."""
        for caller in self._callers:
            caller.close()
        return {"calls": len(self._callers)}


class Datagrams:
    """One unconnected socket for each family and port that is sent from. Port 0: one that the kernel chooses."""

    def __init__(self) -> None:
        self._sockets: dict[tuple[int, int], socket.socket] = {}

    def send(self, address: str, port: int, text: str, source_port: int = 0) -> dict[str, Any]:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            self._socket(family, source_port).sendto(text.encode(), (address, port))
        except OSError as error:
            return {"error": why(error), "errno": error.errno or 0}
        return {}

    def received(self, port: int = 0) -> dict[str, Any]:
        """Return what has come over IPv4 since the last time: `datagrams`, a list of address, port, text."""
        found = []
        # Until nothing is left.
        with suppress(BlockingIOError):
            while True:
                data, (address, source_port) = self._socket(socket.AF_INET, port).recvfrom(2048)
                found.append((address, source_port, data.decode(errors="replace")))
        return {"datagrams": found}

    def _socket(self, family: int, port: int) -> socket.socket:
        if (family, port) not in self._sockets:
            self._sockets[family, port] = fresh = socket.socket(family, socket.SOCK_DGRAM)
            fresh.setblocking(False)
            if port:
                fresh.bind(("", port))
        return self._sockets[family, port]
