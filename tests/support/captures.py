"""Builds packets and capture files."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable, Sequence

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
CLIENT, SERVER = "192.0.2.10", "198.51.100.20"
CLIENT6, SERVER6 = "2001:db8::10", "2001:db8:1::20"


def tcp(sport: int, dport: int, payload: bytes = b"", *, seq: int = 0, flags: int = ACK, options: bytes = b"") -> bytes:
    words = 5 + len(options) // 4
    return struct.pack("!HHIIBBHHH", sport, dport, seq, 0, words << 4, flags, 64_240, 0, 0) + options + payload


def udp(sport: int, dport: int, payload: bytes) -> bytes:
    return struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload


def ipv4(
    protocol: int,
    payload: bytes,
    *,
    src: str = CLIENT,
    dst: str = SERVER,
    ident: int = 0,
    offset: int = 0,
    more: bool = False,
    options: bytes = b"",
    total: int | None = None,
    ttl: int = 64,
) -> bytes:
    words = 5 + len(options) // 4
    length = words * 4 + len(payload) if total is None else total
    field = (0x2000 if more else 0) | offset // 8
    header = struct.pack("!BBHHHBBH", 0x40 | words, 0, length, ident, field, ttl, protocol, 0)
    return header + ipaddress.IPv4Address(src).packed + ipaddress.IPv4Address(dst).packed + options + payload


def ipv6(protocol: int, payload: bytes, *, src: str = CLIENT6, dst: str = SERVER6) -> bytes:
    header = struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64)
    return header + ipaddress.IPv6Address(src).packed + ipaddress.IPv6Address(dst).packed + payload


def ethernet(payload: bytes, *, ethertype: int | None = None, vlans: Sequence[int] = ()) -> bytes:
    if ethertype is None:
        ethertype = 0x0800 if payload[0] >> 4 == 4 else 0x86DD
    tags = b"".join(struct.pack("!HH", 0x8100, vlan) for vlan in vlans)
    return b"\x02" * 6 + b"\x04" * 6 + tags + struct.pack("!H", ethertype) + payload


def tcp_frame(payload: bytes = b"", *, seq: int = 0, flags: int = ACK, sport: int = 40_000, dport: int = 443) -> bytes:
    """Return an Ethernet frame from the client to the server over IPv4."""
    return ethernet(ipv4(6, tcp(sport, dport, payload, seq=seq, flags=flags)))


def reply_frame(
    payload: bytes = b"", *, seq: int = 0, flags: int = ACK, sport: int = 40_000, dport: int = 443
) -> bytes:
    """Return a frame of the same connection from the server."""
    return ethernet(ipv4(6, tcp(dport, sport, payload, seq=seq, flags=flags), src=SERVER, dst=CLIENT))


def udp_frame(payload: bytes, *, sport: int = 40_000, dport: int = 443) -> bytes:
    return ethernet(ipv4(17, udp(sport, dport, payload)))


def connection(segments: Iterable[bytes], *, isn: int = 1_000, sport: int = 40_000, dport: int = 443) -> list[bytes]:
    """Return the frames of one client's direction: its SYN, then the segments in order."""
    frames = [tcp_frame(seq=isn, flags=SYN, sport=sport, dport=dport)]
    seq = isn + 1
    for segment in segments:
        frames.append(tcp_frame(segment, seq=seq & 0xFFFFFFFF, flags=ACK | PSH, sport=sport, dport=dport))
        seq += len(segment)
    return frames


def pcap(
    frames: Iterable[bytes], *, link: int = 1, order: str = "<", nano: bool = False, start_ns: int = 10**18
) -> bytes:
    """Return a pcap file whose frames are one microsecond apart."""
    magic, tick = (0xA1B23C4D, 1) if nano else (0xA1B2C3D4, 1000)
    out = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 262_144, link)
    for index, frame in enumerate(frames):
        seconds, rest = divmod(start_ns + index * 1000, 10**9)
        out += struct.pack(order + "IIII", seconds, rest // tick, len(frame), len(frame)) + frame
    return out


def pcapng(
    frames: Iterable[bytes], *, link: int = 1, order: str = "<", resolution: int = 9, start_ns: int = 10**18
) -> bytes:
    """Return a pcapng file: one section, one interface, enhanced packet blocks, one block of an unknown
    type."""
    out = block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))
    options = struct.pack(order + "HHB3x", 9, 1, resolution) + struct.pack(order + "HH", 0, 0)
    out += block(order, 1, struct.pack(order + "HHI", link, 0, 0) + options)
    out += block(order, 0x0000_0BAD, b"skipped")
    for index, frame in enumerate(frames):
        ticks = (start_ns + index * 1000) * 10**resolution // 10**9
        head = struct.pack(order + "IIIII", 0, ticks >> 32, ticks & 0xFFFFFFFF, len(frame), len(frame))
        out += block(order, 6, head + frame)
    return out


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    size = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + size + body + size
