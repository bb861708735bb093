"""TCP and UDP without anything in it: who can call whom."""

from __future__ import annotations

import errno
import socket
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
        self._error = self._socket.connect_ex(self._address)

    def state(self) -> dict[str, Any]:
        """`connected`, `pending`, or the name of the error."""
        # connect(2) on a connecting socket answers how far it is.
        code = self._socket.connect_ex(self._address)
        if code in (0, errno.EISCONN):
            return {"state": "connected"}
        if code in (errno.EALREADY, errno.EINPROGRESS):
            return {"state": "pending"}
        return {"state": errno.errorcode.get(code, str(code))}


class Sender:
    """Datagrams, all from one unconnected socket for each family."""

    def __init__(self) -> None:
        self._sockets = {
            family: socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)
        }

    def send(self, address: str, port: int, text: str) -> dict[str, Any]:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            self._sockets[family].sendto(text.encode(), (address, port))
        except OSError as error:
            return {"error": why(error), "errno": error.errno or 0}
        return {}
