"""Packets that no socket of TCP or UDP makes: raw and packet sockets, other protocols, odd headers."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from engine.lab.topology import CLIENT, DENIED, DEVICE, SERVER, SERVER6
from engine.selftest import frames
from engine.selftest.attempt import PATIENCE, Attempt, Chance, Outcome
from engine.selftest.hello import client_hello

_PACKET_QDISC_BYPASS, _SOL_PACKET = 20, 263
_EXPERIMENTAL = 0x88B5
"""IEEE 802: for local experiments."""
SOURCE_PORT = 40000


def raw_packet(destination: str, packet: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(packet, (destination, 0))


def token_datagram(c: Chance, destination: str = DENIED, source: str = CLIENT) -> bytes:
    return frames.udp(source, destination, SOURCE_PORT, c.port, c.data)


def raw_udp(c: Chance) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw:
        raw.sendto(token_datagram(c), (DENIED, 0))


def raw_header(c: Chance) -> None:
    raw_packet(DENIED, frames.ipv4(CLIENT, DENIED, frames.UDP, token_datagram(c)))


def raw_other_source(c: Chance) -> None:
    raw_packet(DENIED, frames.ipv4("192.0.2.3", DENIED, frames.UDP, token_datagram(c, source="192.0.2.3")))


def raw_hello(c: Chance) -> None:
    """A hello without any connection around it."""
    segment = frames.tcp(CLIENT, SERVER, SOURCE_PORT, c.port, 1, 1, frames.ACK | frames.PSH, c.denied_hello())
    raw_packet(SERVER, frames.ipv4(CLIENT, SERVER, frames.TCP, segment))


def raw_reset(c: Chance) -> None:
    """Resets pass, for they tell the other end of a flow that was cut: may one carry something?"""
    segment = frames.tcp(CLIENT, DENIED, SOURCE_PORT, c.port, 1, 1, frames.RST | frames.ACK, c.data)
    raw_packet(DENIED, frames.ipv4(CLIENT, DENIED, frames.TCP, segment))


def raw_acknowledgement(c: Chance) -> None:
    """Acknowledgements without data pass where no socket of ours is known: do their numbers?"""
    numbers = [int.from_bytes(c.data[at : at + 4], "big") for at in range(0, len(c.data), 4)]
    for number in numbers:
        segment = frames.tcp(CLIENT, DENIED, SOURCE_PORT, c.port, number, number, frames.ACK)
        raw_packet(DENIED, frames.ipv4(CLIENT, DENIED, frames.TCP, segment))
    # In a header field that nobody reads, where the capture finds it whole.
    option = b"\x1e" + bytes([2 + len(c.data)]) + c.data
    option += bytes(-len(option) % 4)
    raw_packet(DENIED, frames.ipv4(CLIENT, DENIED, frames.TCP, segment, options=option))


def _mac(address: str) -> bytes:
    """The link address of a neighbour, from the kernel's table."""
    for line in Path("/proc/net/arp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[0] == address:
            return bytes.fromhex(fields[3].replace(":", ""))
    raise OSError(errno.EHOSTUNREACH, f"the link address of {address} is not known")


def _frame(kind: int, payload: bytes, tags: Sequence[int] = (), *, bypass: bool = False) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as packets:
        packets.bind((DEVICE, 0))
        if bypass:
            packets.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
        packets.send(frames.ethernet(_mac(SERVER), packets.getsockname()[4], kind, payload, tags))


def _packet(c: Chance) -> bytes:
    return frames.ipv4(CLIENT, DENIED, frames.UDP, token_datagram(c))


def packet_socket(c: Chance) -> None:
    _frame(0x0800, _packet(c))


def packet_bypass(c: Chance) -> None:
    _frame(0x0800, _packet(c), bypass=True)


def vlan(c: Chance) -> None:
    _frame(0x0800, _packet(c), (0x8100,))


def qinq(c: Chance) -> None:
    _frame(0x0800, _packet(c), (0x88A8, 0x8100))


def three_tags(c: Chance) -> None:
    _frame(0x0800, _packet(c), (0x88A8, 0x8100, 0x8100))


def other_tag(c: Chance) -> None:
    _frame(0x0800, _packet(c), (0x9100,))


def other_type(c: Chance) -> None:
    _frame(_EXPERIMENTAL, c.data)


def echo(c: Chance) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.sendto(frames.echo(c.data, c.port), (DENIED, 0))


def pinged(c: Chance) -> None:
    """After an echo request from there one of ours: no answer to it, but the same two hosts and no ports."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.settimeout(PATIENCE)
        while raw.recvfrom(2048)[1][0] != DENIED:
            pass
        raw.sendto(frames.echo(c.data, c.port), (DENIED, 0))


def ping(c: Chance) -> None:
    """A ping socket needs no privilege where net.ipv4.ping_group_range has the group."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as pings:
        pings.sendto(frames.echo(c.data, c.port), (DENIED, 0))


def echo_where_names_decide(c: Chance) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.sendto(frames.echo(c.data, c.port), (SERVER, 0))


def _protocol(number: int, destination: str, payload: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, number) as raw:
        raw.sendto(payload, (destination, 0))


def sctp(c: Chance) -> None:
    _protocol(frames.SCTP, DENIED, struct.pack("!HHII", SOURCE_PORT, c.port, 0, 0) + c.data)


def sctp_where_names_decide(c: Chance) -> None:
    _protocol(frames.SCTP, SERVER, struct.pack("!HHII", SOURCE_PORT, c.port, 0, 0) + c.data)


def tunnel(c: Chance) -> None:
    """IP in IP to where names decide, with a datagram for the denied address in it."""
    _protocol(frames.IPIP, SERVER, _packet(c))


def udp_lite(c: Chance) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, frames.UDP_LITE) as datagrams:
        datagrams.sendto(c.data, (DENIED, c.port))


def broken(c: Chance) -> None:
    """A header that is longer than what there is: some receivers read on."""
    packet = bytearray(_packet(c))
    packet[0] = 0x4F
    _frame(0x0800, bytes(packet[:20]) + c.data)


def _membership(c: Chance, group: str, hops: int) -> None:
    """IGMP to a group passes, for without it there is no multicast: what may it carry, and how far?"""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_IGMP) as raw:
        raw.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(CLIENT))
        raw.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, hops)
        raw.sendto(b"\x22\0\0\0\0\0\0\1" + c.data, (group, 0))


def membership(c: Chance) -> None:
    _membership(c, "224.0.0.22", 1)


def membership_afar(c: Chance) -> None:
    _membership(c, "239.1.2.3", 64)


def neighbour_discovery(c: Chance) -> None:
    """Neighbour discovery passes, for without it there is no network: what may it carry?"""
    target = socket.inet_pton(socket.AF_INET6, SERVER6)
    option = bytes([200, -(-(2 + len(c.data)) // 8)]) + c.data + bytes(-(2 + len(c.data)) % 8)
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw:
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 255)
        raw.sendto(struct.pack("!BBHI", 135, 0, 0, 0) + target + option, (SERVER6, 0))


def hello_beyond_the_window(c: Chance) -> None:
    """Link, network and transport headers as long as they can be, so that a copied window ends before the hello."""
    head = b"\x01" * 40
    hello = client_hello(c.denied_name)
    segment = frames.tcp(CLIENT, SERVER, SOURCE_PORT, c.port, 1, 1, frames.ACK | frames.PSH)
    segment = segment[:12] + b"\xf0" + segment[13:20] + b"\x01" * 40 + hello
    raw_packet(SERVER, frames.ipv4(CLIENT, SERVER, frames.TCP, segment, options=head))


def random_protocol(c: Chance) -> None:
    """Protocol 253 is for experiments (RFC 3692)."""
    _protocol(253, DENIED, os.urandom(4) + c.data)


_NO_IDENTITY = "It passes TC like any packet; without an identity, its destination and what it says are judged."
_BELOW = "It sends below TC: give no program CAP_NET_RAW."
_NOT_IP = "What is not IP is nothing that a policy can be asked about: it passes, counted."
_LINK = "It passes, counted, because the link needs it; it goes no further than the link."
_CONTROL = "Bare acknowledgements of nobody's connection pass, as answers to what came in."

_BY_ANYBODY = (
    Attempt("ICMP echo: ping socket", "a token to a denied address, without privilege", ping,
            {Outcome.BLOCKED: "A ping is a packet with a destination like others."}),
    Attempt("UDP-Lite", "a token to a denied address", udp_lite, {Outcome.BLOCKED: _NO_IDENTITY}),
)  # fmt: skip
_BY_RAW_SOCKETS = (
    Attempt("raw socket", "a datagram to a denied address", raw_udp, {Outcome.BLOCKED: _NO_IDENTITY}),
    Attempt("raw socket: own header", "a datagram to a denied address", raw_header, {Outcome.BLOCKED: _NO_IDENTITY}),
    Attempt("raw socket: other source", "a datagram from an address that is not ours", raw_other_source,
            {Outcome.BLOCKED: _NO_IDENTITY}),
    Attempt("raw socket: hello", "a denied name in a segment of no connection", raw_hello,
            {Outcome.BLOCKED: "A segment of a stream whose start was not seen is judged as late."}),
    Attempt("raw socket: reset", "a token in a reset to a denied address", raw_reset,
            {Outcome.BLOCKED: "A reset passes only without payload."}),
    Attempt("raw socket: acknowledgement", "a token in the header of an acknowledgement to a denied address",
            raw_acknowledgement, {Outcome.OPEN: _CONTROL}),
    Attempt("raw socket: long headers", "a denied name behind 40 bytes of options in each header",
            hello_beyond_the_window, {Outcome.BLOCKED: "Headers that the copied window does not hold are malformed."}),
    Attempt("packet socket", "a datagram to a denied address", packet_socket, {Outcome.BLOCKED: _NO_IDENTITY}),
    Attempt("packet socket past the qdisc", "a datagram to a denied address (PACKET_QDISC_BYPASS)", packet_bypass,
            {Outcome.OPEN: _BELOW}),
    Attempt("packet socket: VLAN", "a datagram to a denied address in a VLAN", vlan,
            {Outcome.BLOCKED: "Headers are read through two tags."}),
    Attempt("packet socket: QinQ", "a datagram to a denied address behind two tags", qinq,
            {Outcome.BLOCKED: "Headers are read through two tags."}),
    Attempt("packet socket: three tags", "a datagram to a denied address behind three tags", three_tags,
            {Outcome.BLOCKED: "A third tag is malformed."}),
    Attempt("packet socket: tag 0x9100", "a datagram to a denied address behind a tag of no standard's type", other_tag,
            {Outcome.OPEN: _NOT_IP}),
    Attempt("packet socket: other type", "a token in a frame that is not IP", other_type, {Outcome.OPEN: _NOT_IP}),
    Attempt("packet socket: broken header", "a token where a header should be", broken,
            {Outcome.BLOCKED: "Headers that contradict the packet's length are malformed."}),
    Attempt("ICMP echo", "a token to a denied address", echo, {Outcome.BLOCKED: _NO_IDENTITY}),
    Attempt("ICMP echo after a ping", "a token to a denied address that has just pinged", pinged,
            {Outcome.BLOCKED: "Our echo request answers none of theirs, and is judged."},
            called="icmp"),
    Attempt("ICMP echo where names decide", "a token to an address that is allowed by name", echo_where_names_decide,
            {Outcome.BLOCKED: "It has no name, and policy decides on that state."}),
    Attempt("SCTP", "a token to a denied address", sctp, {Outcome.BLOCKED: _NO_IDENTITY}),
    Attempt("SCTP where names decide", "a token to an address that is allowed by name", sctp_where_names_decide,
            {Outcome.BLOCKED: "It has no name, and policy decides on that state."}),
    Attempt("IP in IP", "a datagram to a denied address inside one that is not", tunnel,
            {Outcome.BLOCKED: "A tunnel has no name, and policy decides on that state."}),
    Attempt("another protocol", "a token to a denied address", random_protocol, {Outcome.BLOCKED: _NO_IDENTITY}),
    Attempt("IGMP", "a token in a membership report to a group of the link", membership, {Outcome.OPEN: _LINK}),
    Attempt("IGMP: more than one hop", "a token in a membership report that multicast routers would pass on",
            membership_afar,
            {Outcome.BLOCKED: "Membership reports have a time to live of 1 (RFC 3376 section 4)."}),
    Attempt("neighbour discovery", "a token in an option of a solicitation", neighbour_discovery,
            {Outcome.OPEN: _LINK}),
)  # fmt: skip
ATTEMPTS = (*_BY_ANYBODY, *(replace(each, needs="CAP_NET_RAW") for each in _BY_RAW_SOCKETS))
