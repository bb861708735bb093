"""UDP: every way to name a destination, and QUIC, where the name stands in datagrams that are sealed."""

from __future__ import annotations

import os
import secrets
import socket
import struct
from contextlib import suppress

from engine.kernel import syscalls
from engine.lab.topology import DENIED, DENIED6, NEIGHBOUR, SERVER
from engine.protocols.quic import V1
from engine.selftest.attempt import Attempt, Chance, Outcome
from engine.selftest.hello import crypto, handshake, initial, scrambled
from engine.selftest.policy import ALLOWED_NAME

_SOL_UDP, _UDP_SEGMENT = 17, 103
_QUIC_BYTES = 1200
_DRAFT_29 = 0xFF00001D


def udp(family: int = socket.AF_INET) -> socket.socket:
    return socket.socket(family, socket.SOCK_DGRAM)


def sendto(c: Chance) -> None:
    with udp() as datagrams:
        datagrams.sendto(c.data, (DENIED, c.port))


def sendto6(c: Chance) -> None:
    with udp(socket.AF_INET6) as datagrams:
        datagrams.sendto(c.data, (DENIED6, c.port))


def sendmsg(c: Chance) -> None:
    with udp() as datagrams:
        datagrams.sendmsg([c.data], [], 0, (DENIED, c.port))


def sendmmsg(c: Chance) -> None:
    """One call, two datagrams: where the first may go, the second may not."""
    kept: list[bytearray] = []

    def at(buffer: bytearray) -> int:
        kept.append(buffer)
        return syscalls.address(buffer)

    def header(address: str, data: bytes) -> bytes:
        to = struct.pack("=H", socket.AF_INET) + struct.pack("!H", c.port) + socket.inet_aton(address) + bytes(8)
        vector = struct.pack("=QQ", at(bytearray(data)), len(data))
        # struct msghdr and the length that sendmmsg(2) writes behind it.
        return struct.pack("=QI4xQQQQI4xI4x", at(bytearray(to)), len(to), at(bytearray(vector)), 1, 0, 0, 0, 0)

    both = bytearray(header(NEIGHBOUR, b"harmless") + header(DENIED, c.data))
    with udp() as datagrams:
        syscalls.call(syscalls.number("sendmmsg"), datagrams.fileno(), syscalls.address(both), 2, 0)


def connected(c: Chance) -> None:
    with udp() as datagrams:
        datagrams.connect((DENIED, c.port))
        datagrams.send(c.data)


def connected_elsewhere(c: Chance) -> None:
    with udp() as datagrams:
        datagrams.connect((NEIGHBOUR, c.port))
        datagrams.send(b"harmless")
        datagrams.sendto(c.data, (DENIED, c.port))


def mapped(c: Chance) -> None:
    with udp(socket.AF_INET6) as datagrams:
        datagrams.sendto(c.data, (f"::ffff:{DENIED}", c.port))


def segmented(c: Chance) -> None:
    with udp() as datagrams:
        datagrams.setsockopt(_SOL_UDP, _UDP_SEGMENT, len(c.data))
        datagrams.sendto(c.data * 3, (DENIED, c.port))


def fragmented(c: Chance) -> None:
    with udp() as datagrams:
        # Without it the kernel sets "don't fragment" once it knows the path, and refuses.
        datagrams.setsockopt(socket.IPPROTO_IP, 10, 0)
        datagrams.sendto(bytes(4000) + c.data, (DENIED, c.port))


def port_again(c: Chance) -> None:
    """A second socket with the port of one whose flow may go out."""
    with udp() as first:
        first.sendto(b"harmless", (NEIGHBOUR, c.port))
        source = first.getsockname()[1]
    with udp() as second:
        second.bind(("", source))
        second.sendto(c.data, (DENIED, c.port))


def _allowed_flow(c: Chance, datagrams: socket.socket) -> None:
    """Make this socket one whose flow is allowed by its name."""
    hello = handshake(ALLOWED_NAME.encode())
    datagrams.connect((SERVER, c.port))
    datagrams.send(initial(crypto(0, hello), secrets.token_bytes(8)))
    # The verdict stands once the hello is through; asking for the error of a datagram that was refused tells it too.
    datagrams.settimeout(0.3)
    with suppress(TimeoutError):
        datagrams.recv(1)


def _denied_initial(c: Chance, version: int = V1) -> bytes:
    return initial(crypto(0, handshake(c.denied_name)), secrets.token_bytes(8), token=c.data, version=version)


def flow_again(c: Chance) -> None:
    """A second socket with the port and the destination of one whose flow was allowed by its name."""
    with udp() as first:
        _allowed_flow(c, first)
        source = first.getsockname()[1]
    with udp() as second:
        second.bind(("", source))
        second.sendto(c.data, (SERVER, c.port))


def quic(c: Chance) -> None:
    with udp() as datagrams:
        datagrams.sendto(_denied_initial(c), (SERVER, c.port))


def quic_scrambled(c: Chance) -> None:
    hello = handshake(c.denied_name)
    with udp() as datagrams:
        for each in scrambled(hello, secrets.token_bytes(8), c.data, range(7, len(hello), 7)):
            datagrams.sendto(each, (SERVER, c.port))


def quic_second(c: Chance) -> None:
    with udp() as datagrams:
        _allowed_flow(c, datagrams)
        datagrams.send(_denied_initial(c))


def quic_draft(c: Chance) -> None:
    with udp() as datagrams:
        _allowed_flow(c, datagrams)
        datagrams.send(_denied_initial(c, _DRAFT_29))


def quic_behind_segment(c: Chance) -> None:
    with udp() as datagrams:
        _allowed_flow(c, datagrams)
        datagrams.setsockopt(_SOL_UDP, _UDP_SEGMENT, _QUIC_BYTES)
        short = bytes([0x40]) + os.urandom(_QUIC_BYTES - 1)
        datagrams.send(short + _denied_initial(c))


def quic_behind_zero_rtt(c: Chance) -> None:
    """RFC 9000 section 12.2 lets packets share a datagram, and does not say that the Initial comes first."""
    with udp() as datagrams:
        _allowed_flow(c, datagrams)
        early = b"\xd0" + (1).to_bytes(4, "big") + b"\x08" + secrets.token_bytes(8) + b"\0\x14" + os.urandom(20)
        datagrams.send(early + _denied_initial(c))


_BY_PACKET = "The gate judges the packet that leaves, whatever call made it."

ATTEMPTS = (
    Attempt("UDP: sendto", "a token to a denied address", sendto, {Outcome.BLOCKED: _BY_PACKET}),
    Attempt("UDP: sendto over IPv6", "a token to a denied address", sendto6, {Outcome.BLOCKED: _BY_PACKET}),
    Attempt("UDP: sendmsg", "a token to a denied address", sendmsg, {Outcome.BLOCKED: _BY_PACKET}),
    Attempt(
        "UDP: sendmmsg", "a token to a denied address, behind a harmless datagram in one call", sendmmsg,
        {Outcome.BLOCKED: "Each datagram of the call leaves as a packet of its own."}, whole=False,
    ),
    Attempt("UDP: connected", "a token to a denied address", connected, {Outcome.BLOCKED: _BY_PACKET}),
    Attempt(
        "UDP: connected elsewhere", "a token to a denied address from a socket connected to another",
        connected_elsewhere, {Outcome.BLOCKED: "The packet's own destination counts, not the socket's."}, whole=False,
    ),
    Attempt("UDP: v4-mapped", "a token to a denied address through an IPv6 socket", mapped,
            {Outcome.BLOCKED: "It leaves as IPv4, and every key holds IPv4 in the mapped form."}),
    Attempt("UDP: segmentation offload", "three tokens to a denied address in one buffer", segmented,
            {Outcome.BLOCKED: "All segments of a buffer have one destination."}),
    Attempt("UDP: larger than the wire", "a token to a denied address in the last fragment", fragmented,
            {Outcome.BLOCKED: "The first fragment is judged, the others have no ports and follow the posture."}),
    Attempt("UDP: source port again", "a token to a denied address from a port that was allowed elsewhere", port_again,
            {Outcome.BLOCKED: "A flow is its whole tuple and the socket's cookie."}, whole=False),
    Attempt("UDP: flow again", "a token over the tuple of a flow that was allowed by name", flow_again,
            {Outcome.BLOCKED: "A flow's key has the socket's cookie: the next socket with this port is asked anew."},
            whole=False),
    Attempt("QUIC", "a denied name", quic, {Outcome.BLOCKED: "Initials are opened in the engine while they are held."}),
    Attempt("QUIC: scrambled", "a denied name over CRYPTO frames and datagrams out of order", quic_scrambled,
            {Outcome.BLOCKED: "CRYPTO frames are put in order over all datagrams of the first flight."}),
    Attempt("QUIC: second connection", "a denied name on a flow that an allowed one opened", quic_second,
            {Outcome.BLOCKED: "Each datagram that begins with an Initial is judged, on an allowed flow too."},
            whole=False),
    Attempt("QUIC: second connection, a draft's", "a denied name in an Initial of draft 29, on an allowed flow",
            quic_draft,
            {Outcome.BLOCKED: "Each datagram that begins with a long header is judged, on an allowed flow too."},
            whole=False),
    Attempt("QUIC: second segment", "a denied name in the second segment of a buffer, on an allowed flow",
            quic_behind_segment,
            {Outcome.BLOCKED: "Each segment of a buffer is looked at, on an allowed flow too."}, whole=False),
    Attempt("QUIC: behind 0-RTT", "a denied name behind a 0-RTT packet in one datagram, on an allowed flow",
            quic_behind_zero_rtt,
            {Outcome.BLOCKED: "A datagram that begins with any long header is judged."}, whole=False),
)  # fmt: skip
