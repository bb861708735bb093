"""Who owns a socket that the gate never saw connect: older than the gate, or outside of its control group."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from engine.abi.numbers import Hook
from engine.abi.records import Identity, Tuple
from engine.runtime.flows import Flow


class SocketLike(Protocol):
    """One line of a socket listing (sock_diag(7))."""

    @property
    def flow(self) -> Tuple: ...
    @property
    def state(self) -> int: ...
    @property
    def cookie(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def inode(self) -> int: ...


_LISTEN = 10
_TCP = socket.IPPROTO_TCP
_ANY = (bytes(16), b"\0" * 10 + b"\xff\xff" + bytes(4))


class Owners:
    """Looks a flow's socket up in the kernel's listing and its owner in /proc: slow (milliseconds), and only for
    flows that no hook has seen. A listing is no proof: the owner found is whoever holds the socket now."""

    def __init__(self, sockets: Callable[[int], Iterator[SocketLike]], proc: Path = Path("/proc")) -> None:
        self._sockets = sockets
        self._proc = proc

    def complete(self, flow: Flow) -> bool:
        """Fill in who holds the flow's socket, where that can be known. True when the flow came in from outside: its
        socket is one of this host's, and somebody listens where it stands.

        That somebody listens says nothing by itself: a packet that a raw socket made, or that came from a container,
        may have any port of this host.
        """
        listening = False
        found: SocketLike | None = None
        for candidate in self._sockets(flow.tuple.transport):
            if candidate.state == _LISTEN and flow.tuple.transport == _TCP:
                here = candidate.flow.src == flow.tuple.src or candidate.flow.src in _ANY
                listening = listening or (here and candidate.flow.sport == flow.tuple.sport)
            elif candidate.cookie == flow.held.cookie and candidate.flow == flow.tuple:
                found = candidate
        if flow.held.identity.tgid == 0 and found is not None:
            tgid = self._holder(found.inode)
            flow.held = flow.held._replace(identity=flow.held.identity._replace(tgid=tgid, tid=tgid, uid=found.uid))
        # What is held where a container's packets come in was sent in its namespace, whose listeners are not listed.
        return listening and found is not None and flow.held.hook == Hook.EGRESS

    def listener(self, flow: Tuple) -> Identity | None:
        """Return who listens for what comes in with this tuple, None when nobody does or it cannot be known. A socket
        that is bound to this very address comes before one that is bound to any."""
        found: SocketLike | None = None
        for candidate in self._sockets(flow.transport):
            if candidate.flow.sport != flow.dport or (candidate.state != _LISTEN and flow.transport == _TCP):
                continue
            if candidate.flow.src == flow.dst:
                found = candidate
                break
            if candidate.flow.src in _ANY:
                found = found or candidate
        if found is None:
            return None
        tgid = self._holder(found.inode)
        return Identity(0, 0, tgid, tgid, found.uid, 0)

    def _holder(self, inode: int) -> int:
        wanted = f"socket:[{inode}]"
        for process in self._proc.glob("[0-9]*"):
            try:
                for link in os.scandir(process / "fd"):
                    if os.readlink(link.path) == wanted:  # noqa: PTH115 - a hot loop
                        return int(process.name)
            except OSError:
                continue
        return 0
