"""Tunnels: where the network layer inside a tunnel's packet starts.

Sources: RFC 2784 and 2890 (GRE), RFC 2637 (PPTP's GRE), RFC 8926 (Geneve), RFC 7348 (VXLAN), 3GPP TS 29.281
(GTP-U), RFC 4380 (Teredo), RFC 2003 and 4213 (IP in IP), RFC 3032 (MPLS).
"""

from __future__ import annotations

import struct

from engine.protocols.link import (
    IPV4,
    IPV6,
    MPLS,
    TRANSPARENT_ETHERNET,
    Layer,
    by_version,
    ethernet,
    ppp,
    tags,
)

_IPV4_IN_IP, _UDP, _IPV6_IN_IP, _GRE, _MPLS_IN_IP = 4, 17, 41, 47, 137
_GENEVE, _VXLAN, _GTP_U, _TEREDO = 6081, 4789, 2152, 3544
_PPTP = 0x880B
_ERSPAN_II, _ERSPAN_III = 0x88BE, 0x22EB
_GTP_DATA = 0xFF
_MAX_LABELS = 8


def inside(frame: bytes, protocol: int, ports: tuple[int, int], start: int, end: int) -> tuple[str, Layer] | None:
    """Return the tunnel's name and its inner layer, or None when the packet is no tunnel that is known here.

    `start` and `end` bound the IP payload (for UDP: the UDP payload) in `frame`.
    """
    try:
        found = _find(frame, protocol, ports, start)
    except (IndexError, struct.error):
        return None
    return found if found and found[1].offset < end else None


def mpls(frame: bytes, layer: Layer) -> Layer | None:
    """Pop an MPLS label stack; the payload's version nibble tells what it is, for no label does."""
    offset = layer.offset
    for _ in range(_MAX_LABELS):
        if offset + 4 >= len(frame):
            return None
        bottom = frame[offset + 2] & 1
        offset += 4
        if bottom:
            found = by_version(frame, offset)
            return Layer(found.protocol, found.offset, layer.vlans) if found else None
    return None


def _find(frame: bytes, protocol: int, ports: tuple[int, int], start: int) -> tuple[str, Layer] | None:
    if protocol == _IPV4_IN_IP:
        return "ipip", Layer(IPV4, start)
    if protocol == _IPV6_IN_IP:
        return "6in4", Layer(IPV6, start)
    if protocol == _GRE:
        return _named("gre", _gre(frame, start))
    if protocol == _MPLS_IN_IP:
        return _named("mpls", mpls(frame, Layer(0, start)))
    if protocol != _UDP:
        return None
    dport = ports[1]
    if dport == _GENEVE:
        return _named("geneve", _geneve(frame, start))
    if dport == _VXLAN:
        return _named("vxlan", _vxlan(frame, start))
    if _GTP_U in ports:
        return _named("gtp", _gtp(frame, start))
    if _TEREDO in ports:
        return _named("teredo", _teredo(frame, start))
    return None


def _named(label: str, layer: Layer | None) -> tuple[str, Layer] | None:
    return (label, layer) if layer else None


def _payload(frame: bytes, protocol: int, offset: int) -> Layer | None:
    if protocol == TRANSPARENT_ETHERNET:
        return tags(frame, ethernet(frame, offset))
    if protocol in MPLS:
        return mpls(frame, Layer(protocol, offset))
    return tags(frame, Layer(protocol, offset))


def _gre(frame: bytes, at: int) -> Layer | None:
    flags, protocol = struct.unpack_from("!HH", frame, at)
    version = flags & 7
    offset = at + 4
    if version == 1 and protocol == _PPTP:
        offset += 4  # payload length and call id
        offset += 4 if flags & 0x1000 else 0
        offset += 4 if flags & 0x0080 else 0
        return ppp(frame, offset)
    if version or flags & 0x4000:  # source routing went with RFC 1701
        return None
    offset += 4 if flags & 0x8000 else 0
    offset += 4 if flags & 0x2000 else 0
    sequenced = flags & 0x1000
    offset += 4 if sequenced else 0
    if protocol == _ERSPAN_II:
        # Type I is the bare frame, type II has a header of eight bytes; the sequence bit tells them apart.
        return tags(frame, ethernet(frame, offset + 8 if sequenced else offset))
    if protocol == _ERSPAN_III:
        return tags(frame, ethernet(frame, offset + (20 if frame[offset + 11] & 1 else 12)))
    return _payload(frame, protocol, offset)


def _geneve(frame: bytes, at: int) -> Layer | None:
    first = frame[at]
    if first >> 6:
        return None
    protocol = int.from_bytes(frame[at + 2 : at + 4], "big")
    return _payload(frame, protocol, at + 8 + (first & 0x3F) * 4)


def _vxlan(frame: bytes, at: int) -> Layer | None:
    if not frame[at] & 0x08 or frame[at + 7]:
        return None
    return tags(frame, ethernet(frame, at + 8))


def _gtp(frame: bytes, at: int) -> Layer | None:
    flags = frame[at]
    if flags & 0xF0 != 0x30 or frame[at + 1] != _GTP_DATA:
        return None
    offset = at + 8
    if flags & 0x07:
        following = frame[offset + 3] if flags & 0x04 else 0
        offset += 4
        for _ in range(_MAX_LABELS):
            if not following:
                break
            length = frame[offset] * 4
            if not length:
                return None
            following = frame[offset + length - 1]
            offset += length
    return by_version(frame, offset)


def _teredo(frame: bytes, at: int) -> Layer | None:
    # Authentication (0, 1) and origin (0, 0) indications may precede the IPv6 packet, RFC 4380 section 5.1.1.
    for _ in range(2):
        if frame[at] or frame[at + 1] > 1:
            break
        at += 8 if frame[at + 1] == 0 else 13 + frame[at + 2] + frame[at + 3]
    return Layer(IPV6, at) if frame[at] >> 4 == 6 else None
