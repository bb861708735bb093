"""Packets made by hand, and read without believing them: bytes in, values out."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

ICMP, IPIP, TCP, UDP, ROUTING, FRAGMENT, SCTP, UDP_LITE = 1, 4, 6, 17, 43, 44, 132, 136
FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32
_TAGS = (0x8100, 0x88A8)
_EXTENSIONS = (0, ROUTING, FRAGMENT, 60)


def checksum(data: bytes) -> int:
    """RFC 1071."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


def ipv4(
    source: str, destination: str, protocol: int, payload: bytes, *,
    options: bytes = b"", ident: int = 1, offset: int = 0, more: bool = False,
) -> bytes:  # fmt: skip
    """Return an IPv4 packet. `offset` in bytes, a multiple of 8; `options` padded to a multiple of 4."""
    words = 5 + len(options) // 4
    head = struct.pack(
        "!BBHHHBBH", 0x40 | words, 0, 4 * words + len(payload), ident, (0x2000 if more else 0) | offset // 8, 64,
        protocol, 0,
    ) + socket.inet_aton(source) + socket.inet_aton(destination) + options  # fmt: skip
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def _sum(source: str, destination: str, protocol: int, segment: bytes) -> int:
    pseudo = socket.inet_aton(source) + socket.inet_aton(destination) + struct.pack("!BBH", 0, protocol, len(segment))
    return checksum(pseudo + segment)


def udp(source: str, destination: str, sport: int, dport: int, payload: bytes) -> bytes:
    """Return a UDP datagram without checksum (RFC 768 allows that over IPv4)."""
    return struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload


def tcp(
    source: str, destination: str, sport: int, dport: int, seq: int, ack: int, flags: int, payload: bytes = b"", *,
    urgent: int = 0,
) -> bytes:  # fmt: skip
    """Return a segment. `urgent`: its urgent pointer, 0 without."""
    flags |= URG if urgent else 0
    head = struct.pack("!HHIIBBHHH", sport, dport, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, 0x50, flags, 0xFFFF, 0, urgent)
    total = _sum(source, destination, TCP, head + payload)
    return head[:16] + struct.pack("!H", total) + head[18:] + payload


def ethernet(destination: bytes, source: bytes, kind: int, payload: bytes, tags: Sequence[int] = ()) -> bytes:
    """Return a frame, with a tag of priority 0 and VLAN 7 for each of the tag types in `tags`."""
    tagged = b"".join(struct.pack("!HH", tag, 7) for tag in tags)
    return destination + source + tagged + struct.pack("!H", kind) + payload


def echo(payload: bytes, number: int) -> bytes:
    """Return an ICMP echo request."""
    head = struct.pack("!BBHHH", 8, 0, 0, number, 1)
    return head[:2] + struct.pack("!H", checksum(head + payload)) + head[4:] + payload


@dataclass(frozen=True)
class Seen:
    """What of a frame matters to a witness. Ports and `seq` are 0 where there are none (a later fragment)."""

    source: bytes
    destination: bytes
    protocol: int
    sport: int = 0
    dport: int = 0
    seq: int = 0
    flags: int = 0
    payload: bytes = b""

    @property
    def flow(self) -> tuple[bytes, int, bytes, int]:
        return self.source, self.sport, self.destination, self.dport


def dissect(frame: bytes) -> Seen | None:
    """Read an Ethernet frame with IPv4 or IPv6 in it, through tags and extension headers. None for anything else."""
    at = 12
    while int.from_bytes(frame[at : at + 2], "big") in _TAGS:
        at += 4
    kind, packet = int.from_bytes(frame[at : at + 2], "big"), frame[at + 2 :]
    if kind == 0x0800 and len(packet) >= 20:
        # A total length of 0: segmentation offload beyond 64 KiB.
        body = packet[4 * (packet[0] & 15) : int.from_bytes(packet[2:4], "big") or None]
        later = int.from_bytes(packet[6:8], "big") & 0x1FFF
        return _transport(packet[12:16], packet[16:20], packet[9], body, later=bool(later))
    if kind == 0x86DD and len(packet) >= 40:
        following, body, later = packet[6], packet[40:], 0
        while following in _EXTENSIONS and len(body) >= 8:
            length = 8 if following == FRAGMENT else 8 + 8 * body[1]
            later |= int.from_bytes(body[2:4], "big") & 0xFFF8 if following == FRAGMENT else 0
            following, body = body[0], body[length:]
        return _transport(packet[8:24], packet[24:40], following, body, later=bool(later))
    return None


def _transport(source: bytes, destination: bytes, protocol: int, body: bytes, *, later: bool) -> Seen:
    if later or protocol not in (TCP, UDP) or len(body) < (20 if protocol == TCP else 8):
        return Seen(source, destination, protocol, payload=body)
    sport, dport = struct.unpack("!HH", body[:4])
    if protocol == UDP:
        return Seen(source, destination, protocol, sport, dport, payload=body[8:])
    seq = int.from_bytes(body[4:8], "big")
    return Seen(source, destination, protocol, sport, dport, seq, body[13], body[4 * (body[12] >> 4) :])


def streams(segments: Sequence[Seen]) -> list[bytes]:
    """Put TCP payloads together, each flow twice: where they overlap the first word counts, and the last one."""
    flows: dict[tuple[bytes, int, bytes, int], list[Seen]] = {}
    for each in segments:
        if each.protocol == TCP and each.payload:
            flows.setdefault(each.flow, []).append(each)
    return [_joined(order) for flow in flows.values() for order in (flow, flow[::-1])]


def _joined(segments: Sequence[Seen]) -> bytes:
    """Holes are NUL. A later segment writes over an earlier one."""
    start = segments[0].seq
    # Relative to the first one seen, which need not be the first of the stream.
    offsets = [((each.seq - start + (1 << 31)) & 0xFFFFFFFF) - (1 << 31) for each in segments]
    base = min(offsets)
    whole = bytearray()
    for offset, each in zip(offsets, segments, strict=True):
        at = offset - base
        if at > 1 << 20:
            continue
        whole.extend(bytes(max(0, at + len(each.payload) - len(whole))))
        whole[at : at + len(each.payload)] = each.payload
    return bytes(whole)
