"""What bpf/include/packet.h reads of a frame, in plain Python: the reference for programs that use it.

tests/host_c holds packet.h to the engine's parser, which reads more and elsewhere; this reading has the kernel's own
bounds: the first 128 bytes, six extension headers, sixteen IPv4 options, two VLAN tags.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

from engine.abi.records import Tuple

WINDOW = 128
_EXTENSIONS = 6
_OPTIONS = 16
_LOOSE_ROUTE, _STRICT_ROUTE = 131, 137
_TCP, _UDP, _IGMP, _ICMPV6 = 6, 17, 2, 58
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION = 0, 43, 44, 51, 60
_CHAINED = frozenset((_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION, 135, 139, 140))
_MAPPED = bytes(10) + b"\xff\xff"
_TAGS = frozenset((0x8100, 0x88A8))


class Status(IntEnum):
    OK = 0
    NOT_IP = 1
    LINK_CONTROL = 2
    FRAGMENT = 3
    MALFORMED = 4


REQUESTS = {1: (8, 13), 58: (128,)}
"""ICMP and ICMPv6 types that ask (RFC 792, RFC 4443 4)."""
ANSWERS = {1: (0, 14), 58: (129,)}
"""Types that answer them."""
ERRORS = {1: (3, 4, 11, 12), 58: (1, 2, 3, 4)}
"""Types that are about a packet of somebody else's (RFC 1122 3.2.2, RFC 4443 2.1)."""
_NOTHING = Tuple(bytes(16), bytes(16), 0, 0, 0)


class Headers(NamedTuple):
    """`payload` (its bytes), `seq` and `flags` mean something only with OK. `flow`: without it, as much as was read."""

    status: Status
    version: int = 0
    flow: Tuple = _NOTHING
    payload: bytes = b""
    seq: int = 0
    flags: int = 0


def is_icmp(read: Headers, types: Mapping[int, tuple[int, ...]]) -> bool:
    """Is this an ICMP message of one of these types?"""
    return bool(read.payload) and read.payload[0] in types.get(read.flow.transport, ())


class _RefusedError(Exception):
    def __init__(self, status: Status) -> None:
        self.status = status


class _Window:
    """The frame as far as the kernel looks: a header that does not lie in it whole is malformed."""

    def __init__(self, frame: bytes) -> None:
        self.frame = frame
        self.flow = _NOTHING

    def need(self, at: int, size: int, end: int) -> None:
        if at + size > min(end, WINDOW):
            raise _RefusedError(Status.MALFORMED)

    def number(self, at: int, size: int = 2) -> int:
        return int.from_bytes(self.frame[at : at + size], "big")


def read(frame: bytes, link: int = 14) -> Headers:
    """Read a frame whose link header has `link` bytes: 14 (Ethernet) or 0."""
    window, at = _Window(frame), link
    if link:
        kind = window.number(12)
        for _ in range(2):
            if kind in _TAGS:
                kind = window.number(at + 2)
                at += 4
    else:
        kind = {4: 0x0800, 6: 0x86DD}.get(frame[0] >> 4, 0)
    try:
        if kind == 0x0800:
            return _ipv4(window, at)
        if kind == 0x86DD:
            return _ipv6(window, at)
    except _RefusedError as error:
        return Headers(error.status, flow=window.flow)
    return Headers(Status.MALFORMED if kind in _TAGS else Status.NOT_IP)


def _ipv4(window: _Window, at: int) -> Headers:
    frame = window.frame
    window.need(at, 20, len(frame))
    header, total = (frame[at] & 15) * 4, window.number(at + 2) or len(frame) - at
    if frame[at] >> 4 != 4 or header < 20 or total < header or at + total > len(frame):
        raise _RefusedError(Status.MALFORMED)
    src, dst = _MAPPED + frame[at + 12 : at + 16], _MAPPED + frame[at + 16 : at + 20]
    protocol, offset = frame[at + 9], window.number(at + 6) & 0x1FFF
    window.flow = Tuple(src, dst, 0, 0, protocol)
    if offset:
        raise _RefusedError(Status.MALFORMED if offset < 8 else Status.FRAGMENT)
    if protocol == _IGMP and dst[12] >> 4 == 14 and frame[at + 8] == 1:
        raise _RefusedError(Status.LINK_CONTROL)
    if header > 20 and _is_routed(frame, at + 20, at + header):
        raise _RefusedError(Status.MALFORMED)
    return _transport(window, 4, at + header, at + total, protocol, (src, dst))


def _is_routed(frame: bytes, at: int, end: int) -> bool:
    """Is there a source route among the options, or more of them than are looked at?"""
    for _ in range(_OPTIONS):
        if at >= end or frame[at] == 0:
            return False
        if frame[at] == 1:
            at += 1
            continue
        size = frame[at + 1] if at + 1 < end else 0
        if frame[at] in (_LOOSE_ROUTE, _STRICT_ROUTE) or size < 2:
            return True
        at += size
    return True


def _ipv6(window: _Window, at: int) -> Headers:
    frame = window.frame
    window.need(at, 40, len(frame))
    length = window.number(at + 4)
    end = at + 40 + length if length else len(frame)
    if frame[at] >> 4 != 6 or end > len(frame):
        raise _RefusedError(Status.MALFORMED)
    src, dst, hops, protocol = frame[at + 8 : at + 24], frame[at + 24 : at + 40], frame[at + 7], frame[at + 6]
    window.flow = Tuple(src, dst, 0, 0, 0)
    at += 40
    for _ in range(_EXTENSIONS):
        if protocol not in _CHAINED:
            break
        window.need(at, 8, end)
        size = (frame[at + 1] + 1) * 8
        if protocol == _ROUTING and frame[at + 3]:
            raise _RefusedError(Status.MALFORMED)  # the destination is only the next stop
        if protocol == _FRAGMENT:
            offset, size = window.number(at + 2) & 0xFFF8, 8
            window.flow = window.flow._replace(transport=frame[at])
            if offset:
                raise _RefusedError(Status.MALFORMED if offset < 64 else Status.FRAGMENT)
        elif protocol == _AUTHENTICATION:
            size = (frame[at + 1] + 2) * 4
        protocol = frame[at]
        at += size
        if at > end:
            raise _RefusedError(Status.MALFORMED)
    if protocol in _CHAINED:
        raise _RefusedError(Status.MALFORMED)
    if protocol == _ICMPV6:
        window.need(at, 4, end)
        kind = frame[at]
        to_group = kind in (130, 131, 132, 143) and dst[0] == 0xFF and hops == 1
        if to_group or (133 <= kind <= 137 and hops == 255):
            raise _RefusedError(Status.LINK_CONTROL)
    return _transport(window, 6, at, end, protocol, (src, dst))


def _transport(window: _Window, version: int, at: int, end: int, protocol: int, ends: tuple[bytes, bytes]) -> Headers:
    frame, seq, flags, ports = window.frame, 0, 0, (0, 0)
    window.flow = window.flow._replace(transport=protocol)
    start = at
    if protocol == _TCP:
        window.need(at, 20, end)
        start = at + (frame[at + 12] >> 4) * 4
        if start < at + 20 or start > end:
            raise _RefusedError(Status.MALFORMED)
        seq, flags = window.number(at + 4, 4), frame[at + 13]
    elif protocol == _UDP:
        window.need(at, 8, end)
        length, start = window.number(at + 4), at + 8
        if 0 < length < 8:
            raise _RefusedError(Status.MALFORMED)
        if length:
            end = min(end, at + length)
    if protocol in (_TCP, _UDP):
        ports = window.number(at), window.number(at + 2)
    return Headers(Status.OK, version, Tuple(*ends, *ports, protocol), frame[start:end], seq, flags)
