"""What really arrived: a packet socket on the server's side of the wire."""

from __future__ import annotations

import ipaddress
import socket
import struct
from dataclasses import dataclass
from typing import Any

_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_SO_RCVBUFFORCE = 33
_BUFFER = 16 << 20
_TCP, _UDP = 6, 17
_SYN, _ACK = 0x02, 0x10


@dataclass(frozen=True)
class Segment:
    """A TCP segment or a UDP datagram: where to, and what it carries. `opens`: the first of a TCP connection."""

    address: str
    port: int
    payload: bytes
    opens: bool = False


def dissect(frame: bytes) -> Segment | None:
    """Read an Ethernet frame with IPv4 or IPv6 (no extension headers: the lab makes none)."""
    kind = int.from_bytes(frame[12:14], "big")
    packet = frame[14:]
    if kind == 0x0800 and len(packet) >= 20:
        transport, address = packet[9], packet[16:20]
        body = packet[4 * (packet[0] & 15) : int.from_bytes(packet[2:4], "big")]
    elif kind == 0x86DD and len(packet) >= 40:
        transport, address = packet[6], packet[24:40]
        body = packet[40 : 40 + int.from_bytes(packet[4:6], "big")]
    else:
        return None
    header = 8 if transport == _UDP else 4 * (body[12] >> 4) if transport == _TCP and len(body) >= 20 else 0
    if not header or len(body) < header:
        return None
    opens = transport == _TCP and body[13] & (_SYN | _ACK) == _SYN
    return Segment(str(ipaddress.ip_address(address)), int.from_bytes(body[2:4], "big"), body[header:], opens)


class Capture:
    """Frames that arrived at a device, from the moment of its making."""

    def __init__(self, device: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        self._socket.setblocking(False)
        self._socket.bind((device, _ETH_P_ALL))
        self._seen: list[Segment] = []

    def take(self, address: str, port: int, needle: bytes) -> dict[str, Any]:
        """Return what was sent to this address and port, and forget it: `opened` connections, `bytes` and `segments` of
        payload, whether one of them held `needle`, and how many frames the capture itself has `missed`."""
        self._drain()
        found = [seen for seen in self._seen if (seen.address, seen.port) == (address, port)]
        self._seen = [seen for seen in self._seen if (seen.address, seen.port) != (address, port)]
        payloads = [seen.payload for seen in found if seen.payload]
        _, missed = struct.unpack("=II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        return {
            "opened": sum(seen.opens for seen in found),
            "segments": len(payloads),
            "bytes": sum(map(len, payloads)),
            "needle": bool(needle) and any(needle in payload for payload in payloads),
            "missed": missed,
        }

    def _drain(self) -> None:
        while True:
            try:
                frame, (_, _, direction, _, _) = self._socket.recvfrom(1 << 17)
            except BlockingIOError:
                return
            if direction == socket.PACKET_OUTGOING:
                continue
            segment = dissect(frame)
            if segment is not None:
                self._seen.append(segment)
