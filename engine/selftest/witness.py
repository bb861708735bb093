"""The other side of the wire: servers that listen, and the capture that is the judge of what got through.

`python -m engine.selftest.witness`: one JSON object a line in, one a line out, until its input ends.
"""

from __future__ import annotations

import json
import selectors
import socket
import struct
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from engine.selftest import frames
from engine.selftest.frames import Seen

HEARD = b"heard"
_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_SO_RCVBUFFORCE = 33
_TCP_FASTOPEN = 23
_BUFFER = 64 << 20
_CALL_SECONDS = 0.05
_KEPT = 1 << 16
"""Bytes of one port that the servers keep."""

Answer = dict[str, Any]


class Servers:
    """TCP and UDP on every port of a list, on all addresses. TCP answers what it hears with one word."""

    def __init__(self, ports: list[int]) -> None:
        self.heard: dict[int, bytearray] = defaultdict(bytearray)
        self._selector = selectors.DefaultSelector()
        for port in ports:
            # Every port is listened to over IPv4 and IPv6 by one socket.
            listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
            listener.setsockopt(socket.IPPROTO_TCP, _TCP_FASTOPEN, 16)
            datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            datagrams.bind(("::", port))
            for each, turn in ((listener, self._accept), (datagrams, self._receive)):
                each.setblocking(False)
                self._selector.register(each, selectors.EVENT_READ, partial(turn, each, port))
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                with suppress(OSError):
                    key.data()

    def _accept(self, listener: socket.socket, port: int) -> None:
        connection, _ = listener.accept()
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ, partial(self._read, connection, port))

    def _read(self, connection: socket.socket, port: int) -> None:
        try:
            data = connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(connection)
            connection.close()
            return
        self._keep(port, data)
        connection.send(HEARD)

    def _receive(self, datagrams: socket.socket, port: int) -> None:
        self._keep(port, datagrams.recv(65536))

    def _keep(self, port: int, data: bytes) -> None:
        self.heard[port] += data[: _KEPT - len(self.heard[port])]


class Wire:
    """Every frame that comes in, from the moment of its making, on every device of the namespace."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        self._socket.setblocking(False)
        self._frames: list[tuple[bytes, Seen | None]] = []
        self._missed = 0

    def seen(self, port: int, token: bytes, heard: bytes) -> Answer:
        """What of one attempt came through. `bytes`: payload for its port; `token`: was its token there, in a frame,
        in a stream put together from several, or in what a server read."""
        self._drain()
        segments = [seen for _, seen in self._frames if seen is not None and seen.dport == port]
        token_seen = (
            token in heard
            or any(token in frame for frame, _ in self._frames)
            or any(token in stream for stream in frames.streams(segments))
        )
        _, missed = struct.unpack("=II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        self._missed += missed
        return {"bytes": sum(len(each.payload) for each in segments), "token": token_seen, "missed": self._missed}

    def forget(self) -> Answer:
        self._drain()
        self._frames.clear()
        return {}

    def _drain(self) -> None:
        while True:
            try:
                frame, (_, _, direction, _, _) = self._socket.recvfrom(1 << 17)
            except BlockingIOError:
                return
            # The capture takes the tag out of a frame: what is left are type and content, which is enough.
            if direction != socket.PACKET_OUTGOING:
                self._frames.append((frame, frames.dissect(frame)))


class Peer:
    """A TCP end made of frames: it opens towards a port that is itself opening, and answers what comes of it. `deaf`:
    but for what carries data, so that it is sent again."""

    def __init__(
        self, device: str, address: str, port: int, client: str, client_port: int, client_mac: str, *, deaf: bool
    ) -> None:
        self._deaf = deaf
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
        self._socket.bind((device, 0x0800))
        self._socket.settimeout(0.01)
        self._own = self._socket.getsockname()[4]
        self._how = (address, client, port, client_port)
        self._mac = bytes.fromhex(client_mac.replace(":", ""))
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ending.set()
        self._thread.join()
        self._socket.close()

    def _send(self, seq: int, ack: int, flags: int) -> None:
        address, client, _, _ = self._how
        segment = frames.tcp(*self._how, seq, ack, flags)
        packet = frames.ipv4(address, client, frames.TCP, segment)
        with suppress(OSError):
            self._socket.send(frames.ethernet(self._mac, self._own, 0x0800, packet))

    def _run(self) -> None:
        _, _, port, client_port = self._how
        answered = False
        while not self._ending.is_set():
            if not answered:
                self._send(1000, 0, frames.SYN)
            try:
                seen = frames.dissect(self._socket.recv(65536))
            except OSError:
                continue
            if seen is None or (seen.sport, seen.dport) != (client_port, port):
                continue
            length = len(seen.payload) + bool(seen.flags & (frames.SYN | frames.FIN))
            if seen.flags & frames.ACK and length and not (self._deaf and seen.payload):
                answered = True
                self._send(1001, seen.seq + length, frames.ACK)


class Caller:
    """Calls a port until it is answered, and reads what it is told."""

    def __init__(self, source: str, address: str, port: int) -> None:
        self._how = (address, port), (source, 0)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        to, source = self._how
        while not self._ending.wait(_CALL_SECONDS):
            with suppress(OSError), socket.create_connection(to, 1.0, source) as connection:
                while connection.recv(4096):
                    connection.send(HEARD)


class Pinger(Caller):
    """Sends echo requests."""

    def _run(self) -> None:
        (address, port), source = self._how
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as pings:
            pings.bind(source)
            while not self._ending.wait(_CALL_SECONDS):
                with suppress(OSError):
                    pings.sendto(frames.echo(b"ping", port), (address, 0))


class Witness:
    def __init__(self) -> None:
        self._servers: Servers | None = None
        self._wire = Wire()
        self._other: Peer | Caller | None = None
        self.orders: dict[str, Callable[..., Answer]] = {
            "serve": self.serve,
            "seen": self.seen,
            "heard": self.heard,
            "forget": self.forget,
            "peer": self.peer,
            "tcp": partial(self.call, Caller),
            "icmp": partial(self.call, Pinger),
            "alone": self.alone,
        }

    def serve(self, ports: list[int]) -> Answer:
        self._servers = Servers(ports)
        return {}

    def seen(self, port: int, token: str) -> Answer:
        heard = bytes(self._servers.heard[port]) if self._servers else b""
        return self._wire.seen(port, token.encode(), heard)

    def heard(self, port: int, token: str) -> Answer:
        """What the servers have read at a port."""
        heard = bytes(self._servers.heard[port]) if self._servers else b""
        return {"bytes": len(heard), "token": token.encode() in heard}

    def forget(self) -> Answer:
        if self._servers:
            self._servers.heard.clear()
        return self._wire.forget()

    def peer(self, **how: Any) -> Answer:
        self._other = Peer(**how)
        return {}

    def call(self, kind: type[Caller], **how: Any) -> Answer:
        self._other = kind(**how)
        return {}

    def alone(self) -> Answer:
        if self._other is not None:
            self._other.end()
            self._other = None
        return {}


def main() -> None:
    witness = Witness()
    for line in sys.stdin:
        order = json.loads(line)
        name = order.pop("do")
        print(json.dumps(witness.orders[name](**order)), flush=True)


if __name__ == "__main__":
    main()
