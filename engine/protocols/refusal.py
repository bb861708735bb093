"""What tells a sender at once that it is refused: a TCP reset or an ICMP error, made from the refused frame.

Sources: RFC 9293 section 3.10.7 (reset), RFC 792 and RFC 1812 section 4.3.2 (ICMP errors), RFC 4443 sections 2.4 and
3.1, RFC 1071 (checksum).
"""

from __future__ import annotations

import struct

from engine.protocols.packet import ACK, FIN, RST, SYN, TCP, UDP, Packet

_ADDRESSES = 12
_ICMP, _ICMPV6 = 1, 58
_TTL = 64
_QUOTED4, _QUOTED6 = 548, 1232
"""Bytes of the refused packet that fit an error of 576 bytes (IPv4), or of the smallest IPv6 MTU."""
_PORT_UNREACHABLE4, _PROHIBITED4 = (3, 3), (3, 13)
_PORT_UNREACHABLE6, _PROHIBITED6 = (1, 4), (1, 1)
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_TCP = struct.Struct("!HHIIBBHHH")
_NUMBER = struct.Struct("!I")


def refuse(packet: Packet) -> bytes | None:
    """Return the Ethernet frame that goes back to the sender of `packet`, None where the RFCs forbid an answer: to a
    reset, to an ICMP error, to a multicast or broadcast."""
    frame = packet.frame
    if packet.protocol == TCP:
        if packet.flags & RST:
            return None
        protocol, payload = TCP, _reset(packet)
    else:
        if frame[0] & 1 or _is_group(packet) or _is_error(packet):
            return None
        protocol, payload = (_ICMP if packet.version == 4 else _ICMPV6), _error(packet)
    start = _network(packet)
    return frame[6:12] + frame[:6] + frame[_ADDRESSES:start] + _ip(packet, protocol, payload)


def abort(packet: Packet) -> bytes | None:
    """Return the reset that tells the receiver of a TCP packet that its sender is gone: the sender's own words. None
    for what carries no acknowledgement to be believed by."""
    if packet.protocol != TCP or not packet.flags & ACK:
        return None
    start = _network(packet)
    head = _TCP.pack(packet.sport, packet.dport, packet.seq, 0, 5 << 4, RST, 0, 0, 0)
    return packet.frame[:start] + _ip(packet, TCP, head, forward=True)


def _network(packet: Packet) -> int:
    """Where the IP header begins: behind the link header and its tags."""
    return _ADDRESSES + 2 + 4 * len(packet.vlans)


def _addresses(packet: Packet) -> tuple[bytes, bytes]:
    if packet.version == 4:
        return packet.source_key[12:], packet.dest_key[12:]
    return packet.source_key, packet.dest_key


def _is_group(packet: Packet) -> bool:
    source, dest = _addresses(packet)
    if packet.version == 6:
        return dest[0] == 0xFF or source == bytes(16)
    return dest[0] >= 224 or source == bytes(4)


def _is_error(packet: Packet) -> bool:
    kind = packet.payload[:1]
    if packet.protocol == _ICMP:
        return kind in (b"\x03", b"\x04", b"\x05", b"\x0b", b"\x0c")
    return packet.protocol == _ICMPV6 and (not kind or kind[0] < 128)


def _reset(packet: Packet) -> bytes:
    """RFC 9293 3.10.7.1: with the sequence number that the segment acknowledges, or acknowledging the segment."""
    if packet.flags & ACK:
        (acknowledged,) = _NUMBER.unpack_from(packet.frame, packet.transport_offset + 8)
        return _TCP.pack(packet.dport, packet.sport, acknowledged, 0, 5 << 4, RST, 0, 0, 0)
    length = packet.payload_end - packet.payload_offset + bool(packet.flags & SYN) + bool(packet.flags & FIN)
    return _TCP.pack(packet.dport, packet.sport, 0, (packet.seq + length) & 0xFFFFFFFF, 5 << 4, RST | ACK, 0, 0, 0)


def _error(packet: Packet) -> bytes:
    quoted = packet.frame[_network(packet) :][: _QUOTED4 if packet.version == 4 else _QUOTED6]
    port = packet.protocol == UDP
    if packet.version == 4:
        kind, code = _PORT_UNREACHABLE4 if port else _PROHIBITED4
    else:
        kind, code = _PORT_UNREACHABLE6 if port else _PROHIBITED6
    return struct.pack("!BBHI", kind, code, 0, 0) + quoted


def _ip(packet: Packet, protocol: int, payload: bytes, *, forward: bool = False) -> bytes:
    """The IP packet that carries `payload` back to the sender, or on to the receiver; checksums filled in."""
    source, dest = _addresses(packet)
    if not forward:
        source, dest = dest, source
    at = 16 if protocol == TCP else 2
    if packet.version == 4:
        over = b"" if protocol == _ICMP else source + dest + struct.pack("!xBH", protocol, len(payload))
        payload = _filled(payload, at, over)
        head = _IPV4.pack(0x45, 0, 20 + len(payload), 0, 0x4000, _TTL, protocol, 0, source, dest)
        return _filled(head, 10, b"") + payload
    payload = _filled(payload, at, source + dest + struct.pack("!I3xB", len(payload), protocol))
    return _IPV6.pack(6 << 28, len(payload), protocol, _TTL, source, dest) + payload


def _filled(data: bytes, at: int, over: bytes) -> bytes:
    """`data` with the Internet checksum of itself and the pseudo header `over` at `at`."""
    whole = over + data + bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(whole) // 2}H", whole))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    checksum: int = ~total & 0xFFFF
    return data[:at] + checksum.to_bytes(2, "big") + data[at + 2 :]
