"""IP headers that lead elsewhere than they seem to, or away from the port: options, routes, extensions, fragments."""

from __future__ import annotations

import socket
import struct
from dataclasses import replace

from engine.lab.topology import CLIENT, CLIENT6, DENIED, DENIED6, NEIGHBOUR, SERVER, SERVER6
from engine.selftest import frames
from engine.selftest.attempt import PATIENCE, Attempt, Chance, Outcome
from engine.selftest.attempts.packets import SOURCE_PORT, raw_packet, token_datagram

RECORD_ROUTE = b"\x07\x27\x04" + bytes(36) + b"\x01"
"""As long as options can be, and such that anybody may set them (RFC 791 section 3.1)."""
_IPV6_HDRINCL = 36
_OPEN6 = "2001:db8:5a11::98"


def _datagram_with(options: bytes, c: Chance) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, options)
        datagrams.sendto(c.data, (DENIED, c.port))


def options(c: Chance) -> None:
    _datagram_with(RECORD_ROUTE, c)


def many_options(c: Chance) -> None:
    _datagram_with(b"\x01" * 40, c)


def options_hello(c: Chance) -> None:
    with socket.socket() as connection:
        connection.settimeout(PATIENCE)
        connection.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, RECORD_ROUTE)
        connection.connect((SERVER, c.port))
        connection.sendall(c.denied_hello())


def source_route(c: Chance) -> None:
    """Loose source routing (RFC 791): the header names a neighbour that may be reached, the option who comes next."""
    route = b"\x83\x07\x04" + socket.inet_aton(NEIGHBOUR) + b"\0"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, route)
        datagrams.sendto(c.data, (DENIED, c.port))


def routing_header(c: Chance) -> None:
    """IPv6 segment routing (RFC 8754): the header names one that may be reached, the segments who comes next."""
    segments = [socket.inet_pton(socket.AF_INET6, each) for each in (DENIED6, _OPEN6)]
    head = struct.pack("!BBBBBBH", 0, 2 * len(segments), 4, 1, len(segments) - 1, 0, 0)
    datagram = struct.pack("!HHHH", SOURCE_PORT, c.port, 8 + len(c.data), 0) + c.data
    extension = bytes([frames.UDP]) + head[1:] + b"".join(segments)
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.setsockopt(socket.IPPROTO_IPV6, _IPV6_HDRINCL, 1)
        whole = struct.pack("!IHBB", 0x60000000, len(extension) + len(datagram), frames.ROUTING, 64)
        whole += socket.inet_pton(socket.AF_INET6, CLIENT6) + socket.inet_pton(socket.AF_INET6, _OPEN6)
        raw.sendto(whole + extension + datagram, (_OPEN6, 0))


def extension_headers(c: Chance) -> None:
    """A hello's worth of extension headers before the datagram."""
    datagram = struct.pack("!HHHH", SOURCE_PORT, c.port, 8 + len(c.data), 0) + c.data
    pad = b"\x01\x04\0\0\0\0"
    chain = b"".join(bytes([60, 0]) + pad for _ in range(7)) + bytes([frames.UDP, 0]) + pad
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        whole = struct.pack("!IHBB", 0x60000000, len(chain) + len(datagram), 60, 64)
        whole += socket.inet_pton(socket.AF_INET6, CLIENT6) + socket.inet_pton(socket.AF_INET6, SERVER6)
        raw.sendto(whole + chain + datagram, (SERVER6, 0))


def fragments(c: Chance) -> None:
    datagram = token_datagram(c)
    for offset in range(0, len(datagram), 16):
        piece = datagram[offset : offset + 16]
        more = offset + 16 < len(datagram)
        raw_packet(DENIED, frames.ipv4(CLIENT, DENIED, frames.UDP, piece, ident=c.port, offset=offset, more=more))


def fragments_of_a_hello(c: Chance) -> None:
    """The first fragment has the ports and as little of the rest as can be."""
    segment = frames.tcp(CLIENT, SERVER, SOURCE_PORT, c.port, 1, 1, frames.ACK | frames.PSH, c.denied_hello())
    for start, end in ((0, 24), (24, len(segment))):
        packet = frames.ipv4(CLIENT, SERVER, frames.TCP, segment[start:end], ident=c.port, offset=start,
                             more=end < len(segment))  # fmt: skip
        raw_packet(SERVER, packet)


def rewritten_ports(c: Chance) -> None:
    """RFC 3128: the first fragment names a neighbour's port, the second writes over it."""
    datagram = token_datagram(c, NEIGHBOUR)
    for offset, piece in ((0, datagram[:16]), (8, c.data)):
        raw_packet(
            NEIGHBOUR, frames.ipv4(CLIENT, NEIGHBOUR, frames.UDP, piece, ident=c.port, offset=offset, more=not offset)
        )


_BY_ANYBODY = (
    Attempt("IP options", "a token to a denied address behind 40 bytes of options", options,
            {Outcome.BLOCKED: "Options are skipped by the header's length."}),
    Attempt("IP options: many", "a token to a denied address behind 40 options of one byte", many_options,
            {Outcome.BLOCKED: "More options than anybody has use for make a packet malformed."}),
    Attempt("IP options: hello", "a denied name behind 40 bytes of options", options_hello,
            {Outcome.BLOCKED: "Options are skipped by the header's length."}),
)  # fmt: skip
_BY_RAW_SOCKETS = (
    Attempt("IP source route", "a token to a denied address by way of one that is not", source_route,
            {Outcome.BLOCKED: "The header's address is the first hop's: a packet with a source route is refused."}),
    Attempt("IPv6 routing header", "a token to a denied address by way of one that is not, with IPv6 segments",
            routing_header,
            {Outcome.BLOCKED: "The header's address is the first segment's: with segments left it is refused."}),
    Attempt("IPv6 extension headers", "a token behind eight extension headers", extension_headers,
            {Outcome.BLOCKED: "More extension headers than are read make a packet malformed."}),
    Attempt("fragments", "a datagram to a denied address in fragments of 16 bytes", fragments,
            {Outcome.BLOCKED: "The first fragment is judged, the others have no ports and follow the posture."}),
    Attempt("fragments of a hello", "a denied name in the second fragment", fragments_of_a_hello,
            {Outcome.BLOCKED: "Fragments without ports follow the posture, which is closed."}),
    Attempt("fragments: ports rewritten", "a token in a fragment that lies over the ports of the first",
            rewritten_ports, {Outcome.BLOCKED: "A later fragment at this offset is malformed (RFC 3128)."},
            whole=False),
)  # fmt: skip
ATTEMPTS = (*_BY_ANYBODY, *(replace(each, needs="CAP_NET_RAW") for each in _BY_RAW_SOCKETS))
