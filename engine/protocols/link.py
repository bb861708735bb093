"""Link layers: from the first byte of a captured frame to the network protocol and where it starts.

Numbers are the LINKTYPE_ values of pcap (https://www.tcpdump.org/linktypes.html) and EtherTypes.
"""

from __future__ import annotations

import struct

NULL = 0
ETHERNET = 1
PPP = 9
RAW_BSD = (12, 14)
PPP_HDLC = 50
PPPOE = 51
RAW = 101
C_HDLC = 104
LOOP = 108
COOKED = 113
PPP_PPPD = 166
IPV4_ONLY = 228
IPV6_ONLY = 229
NFLOG = 239
COOKED_V2 = 276

IPV4 = 0x0800
IPV6 = 0x86DD
TRANSPARENT_ETHERNET = 0x6558
VLAN_TAGS = frozenset((0x8100, 0x88A8, 0x9100, 0x9200))
MPLS = frozenset((0x8847, 0x8848))
PPPOE_SESSION = 0x8864

# AF_INET6 has a value of its own on each system that writes these headers: NetBSD/OpenBSD, FreeBSD, Darwin,
# Linux.
_FAMILIES = {2: IPV4, 10: IPV6, 24: IPV6, 28: IPV6, 30: IPV6}
_PPP_PROTOCOLS = {0x0021: IPV4, 0x0057: IPV6}
_NFLOG_PAYLOAD = 9
_U16 = struct.Struct("!H")
_MAX_TAGS = 8


class Layer:
    """Where the network layer starts: `protocol` is an EtherType, `offset` into the frame."""

    __slots__ = ("offset", "protocol", "vlans")

    def __init__(self, protocol: int, offset: int, vlans: tuple[int, ...] = ()) -> None:
        self.protocol = protocol
        self.offset = offset
        self.vlans = vlans


def supported(link: int) -> bool:
    """Say whether frames of this link type can be read at all."""
    return link in _READERS


def network(frame: bytes, link: int) -> Layer | None:
    """Find the network layer of a frame, or None when it is cut short or carries no network protocol.

    VLAN tags, PPPoE and 802.2 SNAP are walked through; the tags' ids are kept in order, outermost first.
    """
    reader = _READERS.get(link)
    try:
        layer = reader(frame) if reader else None
        return tags(frame, layer) if layer else None
    except (IndexError, struct.error):
        return None


def tags(frame: bytes, layer: Layer) -> Layer | None:
    """Walk through VLAN tags and PPPoE. Raises IndexError or struct.error where the frame ends too early."""
    protocol, offset, vlans = layer.protocol, layer.offset, layer.vlans
    for _ in range(_MAX_TAGS):
        if protocol in VLAN_TAGS:
            vlans = (*vlans, _u16(frame, offset) & 0x0FFF)
            protocol = _u16(frame, offset + 2)
            offset += 4
        elif protocol < 0x0600:
            # An 802.3 length: 802.2 LLC follows, and IP stands in it only behind SNAP (RFC 1042).
            if frame[offset : offset + 6] != b"\xaa\xaa\x03\0\0\0":
                return None
            protocol = _u16(frame, offset + 6)
            offset += 8
        elif protocol == PPPOE_SESSION:
            inner = _ppp_protocol(frame, offset + 6)
            if frame[offset] != 0x11 or frame[offset + 1] != 0:
                return None
            protocol, offset = inner.protocol, inner.offset
        else:
            return Layer(protocol, offset, vlans)
    return None


def by_version(frame: bytes, offset: int) -> Layer | None:
    """Tell IPv4 from IPv6 by the version nibble, where no header names the protocol."""
    version = frame[offset] >> 4
    protocol = {4: IPV4, 6: IPV6}.get(version)
    return Layer(protocol, offset) if protocol else None


def ppp(frame: bytes, offset: int) -> Layer:
    """Read a PPP frame, with or without its address and control bytes (RFC 1661, RFC 1662 section 3.1)."""
    if frame[offset : offset + 2] == b"\xff\x03":
        offset += 2
    return _ppp_protocol(frame, offset)


def ethernet(frame: bytes, offset: int = 0) -> Layer:
    return Layer(_u16(frame, offset + 12), offset + 14)


def _ppp_protocol(frame: bytes, offset: int) -> Layer:
    first = frame[offset]
    if first & 1:  # protocol field compression, RFC 1661 section 6.5
        return Layer(_PPP_PROTOCOLS.get(first, 0xFFFF), offset + 1)
    number = _u16(frame, offset)
    return Layer(_PPP_PROTOCOLS.get(number, 0xFFFF), offset + 2)


def _u16(frame: bytes, offset: int) -> int:
    value: int = _U16.unpack_from(frame, offset)[0]
    return value


def _null(frame: bytes) -> Layer | None:
    # LINKTYPE_NULL is in the byte order of the machine that captured; LINKTYPE_LOOP is always big-endian, and
    # both orders give different small numbers, so one reader serves.
    family = frame[0] | frame[1] << 8 if frame[0] else frame[2] << 8 | frame[3]
    protocol = _FAMILIES.get(family)
    return Layer(protocol, 4) if protocol and len(frame) > 4 else None


def _cooked(frame: bytes) -> Layer:
    return Layer(_u16(frame, 14), 16)


def _cooked_v2(frame: bytes) -> Layer:
    return Layer(_u16(frame, 0), 20)


def _nflog(frame: bytes) -> Layer | None:
    # Lengths and types are in the byte order of the host that captured, which the frame does not tell;
    # little-endian is read, and a big-endian frame fails the bounds.
    offset = 4
    while offset + 4 <= len(frame):
        length, kind = struct.unpack_from("<HH", frame, offset)
        if length < 4:
            return None
        if kind & 0x7FFF == _NFLOG_PAYLOAD:
            return by_version(frame, offset + 4)
        offset += (length + 3) & ~3
    return None


_READERS = {
    NULL: _null,
    LOOP: _null,
    ETHERNET: ethernet,
    PPP: lambda frame: ppp(frame, 0),
    PPP_HDLC: lambda frame: ppp(frame, 0),
    PPP_PPPD: lambda frame: ppp(frame, 0),
    PPPOE: lambda _: Layer(PPPOE_SESSION, 0),
    C_HDLC: lambda frame: Layer(_u16(frame, 2), 4),
    RAW: lambda frame: by_version(frame, 0),
    RAW_BSD[0]: lambda frame: by_version(frame, 0),
    RAW_BSD[1]: lambda frame: by_version(frame, 0),
    IPV4_ONLY: lambda _: Layer(IPV4, 0),
    IPV6_ONLY: lambda _: Layer(IPV6, 0),
    COOKED: _cooked,
    COOKED_V2: _cooked_v2,
    NFLOG: _nflog,
}
