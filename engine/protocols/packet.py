"""Packet headers: a frame in, a typed packet or a stated reason out.

`parse` is on the hold path, so it copies nothing but the two addresses, as the 16 bytes that kernel keys use
(`engine.model.net.to_key`); address objects and the payload are made when asked for.

Sources: RFC 791, RFC 8200 section 4, RFC 4302 (AH's length in words of four bytes), RFC 9293 section 3.1, RFC
768.
"""

from __future__ import annotations

import struct
from enum import Enum

from engine.model import net
from engine.model.facts import Transport
from engine.protocols import link as link_layer
from engine.protocols import tunnel

TCP = 6
UDP = 17
FIN, SYN, RST, PSH, ACK, URG = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20

_TRANSPORTS = {TCP: Transport.TCP, UDP: Transport.UDP, 1: Transport.ICMP, 58: Transport.ICMP}
_MAPPED = b"\0" * 10 + b"\xff\xff"
_IPV4 = struct.Struct("!BxHHHxBxx4s4s")
_IPV6 = struct.Struct("!xxxxHBx16s16s")
_FRAGMENT = struct.Struct("!BxHI")
_TCP = struct.Struct("!HHIIBB")
_UDP = struct.Struct("!HHH")

_HOP_BY_HOP, _ROUTING, _FRAGMENT_HEADER, _AUTH, _DEST_OPTIONS = 0, 43, 44, 51, 60
_EXTENSIONS = frozenset((_HOP_BY_HOP, _ROUTING, _AUTH, _DEST_OPTIONS, 135, 139, 140))
_MAX_EXTENSIONS = 8
"""More than the RFC's recommended order has; a longer chain is there to hide the transport header."""
_MAX_OPTIONS = 16
_MAX_ENCAPS = 4


class Refusal(str, Enum):
    """Why a frame is not a packet."""

    TRUNCATED = "truncated"
    NOT_IP = "not_ip"
    MALFORMED = "malformed"
    TOO_DEEP = "too_deep"
    UNKNOWN_LINK = "unknown_link"


class Packet:
    """One IP packet with what stands in its transport header.

    `protocol` is the IP protocol number; ports, `seq` and `flags` are 0 where it has none. `transport_offset`,
    `payload_offset` and `payload_end` point into `frame`. `missing` counts payload bytes that the headers promise and
    the frame lacks (a capture with a short snapshot length). `vlans`: ids, outermost first. `encaps`: names of
    the tunnels that were opened, outermost first. A UDP packet held before segmentation offload still holds
    several datagrams.
    """

    __slots__ = (
        "dest_key", "dport", "encaps", "flags", "frame", "missing", "payload_end", "payload_offset", "protocol",
        "seq", "source_key", "sport", "transport_offset", "version", "vlans",
    )  # fmt: skip

    def __init__(
        self, frame: bytes, version: int, protocol: int, source_key: bytes, dest_key: bytes, sport: int, dport: int,
        seq: int, flags: int, payload_offset: int, payload_end: int, missing: int, vlans: tuple[int, ...],
        encaps: tuple[str, ...], transport_offset: int,
    ) -> None:  # fmt: skip
        self.frame = frame
        self.version = version
        self.protocol = protocol
        self.transport_offset = transport_offset
        self.source_key = source_key
        self.dest_key = dest_key
        self.sport = sport
        self.dport = dport
        self.seq = seq
        self.flags = flags
        self.payload_offset = payload_offset
        self.payload_end = payload_end
        self.missing = missing
        self.vlans = vlans
        self.encaps = encaps

    @property
    def src(self) -> net.IPAddress:
        return net.from_key(self.source_key)

    @property
    def dst(self) -> net.IPAddress:
        return net.from_key(self.dest_key)

    @property
    def transport(self) -> Transport:
        return _TRANSPORTS.get(self.protocol, Transport.OTHER)

    @property
    def payload(self) -> bytes:
        return self.frame[self.payload_offset : self.payload_end]


class Fragment:
    """A piece of an IP packet (offset and length in bytes); `protocol` is what the whole packet carries."""

    __slots__ = (
        "data", "dest_key", "encaps", "ident", "more", "offset", "protocol", "source_key", "version", "vlans",
    )  # fmt: skip

    def __init__(
        self, version: int, protocol: int, source_key: bytes, dest_key: bytes, ident: int, offset: int, more: bool,
        data: bytes, vlans: tuple[int, ...], encaps: tuple[str, ...],
    ) -> None:  # fmt: skip
        self.version = version
        self.protocol = protocol
        self.source_key = source_key
        self.dest_key = dest_key
        self.ident = ident
        self.offset = offset
        self.more = more
        self.data = data
        self.vlans = vlans
        self.encaps = encaps


Parsed = Packet | Fragment | Refusal


def parse(frame: bytes, link: int = link_layer.ETHERNET, *, tunnels: bool = False) -> Parsed:
    """Read one frame.

    With `tunnels`, what travels inside GRE, Geneve, VXLAN, GTP-U, Teredo, IP-in-IP and 6in4 is returned
    instead of the outer packet. The gate does without: it decides about the packet that the kernel decides
    about.
    """
    if link == link_layer.ETHERNET and len(frame) > 34:
        ethertype = frame[12] << 8 | frame[13]
        if ethertype == link_layer.IPV4:
            return _ipv4(frame, 14, (), (), tunnels)
        if ethertype == link_layer.IPV6:
            return _ipv6(frame, 14, (), (), tunnels)
    elif not link_layer.supported(link):
        return Refusal.UNKNOWN_LINK
    layer = link_layer.network(frame, link)
    if layer is None:
        return Refusal.NOT_IP if len(frame) >= 20 else Refusal.TRUNCATED
    return _network(frame, layer, (), tunnels)


def reassembled(first: Fragment, data: bytes, *, tunnels: bool = False) -> Parsed:
    """Read the payload of an IP packet that was put together from fragments; `first` lends the addresses."""
    key_args = (first.source_key, first.dest_key, len(data), 0, first.vlans, first.encaps)
    if first.version == 4:
        return _transport(data, 4, first.protocol, 0, *key_args, tunnels)
    return _extensions(data, first.protocol, 0, *key_args, tunnels)


def _network(frame: bytes, layer: link_layer.Layer, encaps: tuple[str, ...], tunnels: bool) -> Parsed:
    if layer.protocol == link_layer.IPV4:
        return _ipv4(frame, layer.offset, layer.vlans, encaps, tunnels)
    if layer.protocol == link_layer.IPV6:
        return _ipv6(frame, layer.offset, layer.vlans, encaps, tunnels)
    if tunnels and layer.protocol in link_layer.MPLS:
        inside = tunnel.mpls(frame, layer)
        if inside:
            return _network(frame, inside, (*encaps, "mpls"), tunnels)
    return Refusal.NOT_IP


def _ipv4(frame: bytes, offset: int, vlans: tuple[int, ...], encaps: tuple[str, ...], tunnels: bool) -> Parsed:
    present = len(frame)
    if offset + 20 > present:
        return Refusal.TRUNCATED
    first, total, ident, fragment, protocol, source, dest = _IPV4.unpack_from(frame, offset)
    header = (first & 15) * 4
    if first >> 4 != 4 or header < 20:
        return Refusal.MALFORMED
    # A super-packet before segmentation may not fit the field: Linux writes 0 then (BIG TCP, 6.3 and newer).
    end = offset + total if total else present
    start = offset + header
    if end < start:
        return Refusal.MALFORMED
    missing = 0
    if end > present:
        missing = end - present
        end = present
    if start > end:
        return Refusal.TRUNCATED
    if header > 20 and not fragment & 0x1FFF and _is_routed(frame, offset + 20, start):
        return Refusal.MALFORMED
    source_key = _MAPPED + source
    dest_key = _MAPPED + dest
    if fragment & 0x3FFF:
        if missing:
            return Refusal.TRUNCATED
        return Fragment(
            4, protocol, source_key, dest_key, ident, (fragment & 0x1FFF) * 8, bool(fragment & 0x2000),
            frame[start:end], vlans, encaps,
        )  # fmt: skip
    return _transport(frame, 4, protocol, start, source_key, dest_key, end, missing, vlans, encaps, tunnels)


def _is_routed(frame: bytes, at: int, end: int) -> bool:
    """Is there a source route (RFC 791 section 3.1), which makes the destination only the next stop? More options than
    anybody has use for hide what they are: taken for one."""
    for _ in range(_MAX_OPTIONS):
        if at >= end or frame[at] == 0:
            return False
        length = 1
        if frame[at] != 1:
            length = frame[at + 1] if at + 1 < end else 0  # never the transport's first byte
            if frame[at] in (131, 137) or length < 2:
                return True
        at += length
    return True


def _ipv6(frame: bytes, offset: int, vlans: tuple[int, ...], encaps: tuple[str, ...], tunnels: bool) -> Parsed:
    present = len(frame)
    start = offset + 40
    if start > present:
        return Refusal.TRUNCATED
    if frame[offset] >> 4 != 6:
        return Refusal.MALFORMED
    length, protocol, source, dest = _IPV6.unpack_from(frame, offset)
    # 0 is a jumbogram (RFC 2675) or, between hosts of one machine, a super-packet: both run to the frame's
    # end.
    end = start + length if length else present
    missing = 0
    if end > present:
        missing = end - present
        end = present
    if protocol == TCP or protocol == UDP:  # noqa: PLR1714, SIM109 (cheaper than a tuple)
        return _transport(frame, 6, protocol, start, source, dest, end, missing, vlans, encaps, tunnels)
    return _extensions(frame, protocol, start, source, dest, end, missing, vlans, encaps, tunnels)


def _extensions(
    frame: bytes, protocol: int, at: int, source_key: bytes, dest_key: bytes, end: int, missing: int,
    vlans: tuple[int, ...], encaps: tuple[str, ...], tunnels: bool,
) -> Parsed:  # fmt: skip
    for _ in range(_MAX_EXTENSIONS + 1):
        if protocol == _FRAGMENT_HEADER:
            if at + 8 > end:
                return Refusal.TRUNCATED
            following, field, ident = _FRAGMENT.unpack_from(frame, at)
            at += 8
            if field & 0xFFF9:
                if missing:
                    return Refusal.TRUNCATED
                return Fragment(
                    6, following, source_key, dest_key, ident, field & 0xFFF8, bool(field & 1), frame[at:end], vlans,
                    encaps,
                )  # fmt: skip
            protocol = following  # an atomic fragment is a whole packet (RFC 6946)
        elif protocol in _EXTENSIONS:
            if at + 8 > end:
                return Refusal.TRUNCATED
            following, words = frame[at], frame[at + 1]
            if protocol == _ROUTING and frame[at + 3]:
                return Refusal.MALFORMED  # the destination is only the next stop (RFC 8200 section 4.4)
            at += (words + 2) * 4 if protocol == _AUTH else (words + 1) * 8
            protocol = following
        else:
            return _transport(frame, 6, protocol, at, source_key, dest_key, end, missing, vlans, encaps, tunnels)
    return Refusal.TOO_DEEP


def _transport(
    frame: bytes, version: int, protocol: int, at: int, source_key: bytes, dest_key: bytes, end: int, missing: int,
    vlans: tuple[int, ...], encaps: tuple[str, ...], tunnels: bool,
) -> Parsed:  # fmt: skip
    sport = dport = seq = flags = 0
    start = at
    if protocol == TCP:
        if at + 20 > end:
            return Refusal.TRUNCATED
        sport, dport, seq, _, words, flags = _TCP.unpack_from(frame, at)
        start = at + (words >> 4) * 4
        if start < at + 20:
            return Refusal.MALFORMED
        if start > end:
            return Refusal.TRUNCATED if missing else Refusal.MALFORMED
    elif protocol == UDP:
        if at + 8 > end:
            return Refusal.TRUNCATED
        sport, dport, length = _UDP.unpack_from(frame, at)
        start = at + 8
        if length:
            if length < 8:
                return Refusal.MALFORMED
            end = min(end, at + length)
    elif at > end:
        return Refusal.TRUNCATED
    packet = Packet(
        frame, version, protocol, source_key, dest_key, sport, dport, seq, flags, start, end, missing, vlans, encaps, at
    )
    if tunnels and protocol != TCP and len(encaps) < _MAX_ENCAPS:
        return _inside(packet)
    return packet


def _inside(packet: Packet) -> Parsed:
    """Open one tunnel; a packet that only looks like a tunnel stays what it was."""
    inside = tunnel.inside(
        packet.frame, packet.protocol, (packet.sport, packet.dport), packet.payload_offset, packet.payload_end
    )
    if inside is None:
        return packet
    label, layer = inside
    layer.vlans = packet.vlans + layer.vlans
    # The outer packet's end bounds the inner one, so that no padding or trailer is taken for payload.
    frame = packet.frame if packet.payload_end == len(packet.frame) else packet.frame[: packet.payload_end]
    result = _network(frame, layer, (*packet.encaps, label), True)
    return packet if isinstance(result, Refusal) else result
