"""The kernel's packet parser against the engine's: the same packet, or the kernel is the stricter one."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.protocols import link as link_layer
from engine.protocols.packet import Fragment, Packet, parse
from tests.support import captures as build

from .conftest import CPacket, Parsers

OK, NOT_IP, LINK_CONTROL, FRAGMENT, MALFORMED = range(5)
WINDOW = 128

UDP = build.udp(5000, 53, b"question")
TCP = build.tcp(5000, 443, b"hello")


def extension(following: int, size: int = 8) -> bytes:
    return bytes([following, size // 8 - 1]) + bytes(size - 2)


def fragment(following: int, offset: int, more: bool = False) -> bytes:
    return struct.pack("!BxHI", following, offset | more, 7)


def hops(limit: int, packet: bytes) -> bytes:
    return packet[:7] + bytes([limit]) + packet[8:]


FRAMES = (
    build.ethernet(build.ipv4(6, TCP)),
    build.ethernet(build.ipv4(17, UDP)),
    build.ethernet(build.ipv6(6, TCP)),
    build.ethernet(build.ipv6(17, UDP)),
    build.ethernet(build.ipv4(6, TCP), vlans=(7,)),
    build.ethernet(build.ipv6(6, TCP), vlans=(7, 8)),
    build.ethernet(build.ipv6(0, extension(60) + extension(43, 24) + extension(6) + TCP)),
    build.ethernet(build.ipv6(51, bytes([6, 4]) + bytes(22) + TCP)),
    build.ethernet(build.ipv6(44, fragment(6, 0) + TCP)),
    build.ethernet(build.ipv6(44, fragment(6, 0, more=True) + TCP)),
    build.ethernet(build.ipv6(44, fragment(17, 800) + UDP)),
    build.ethernet(hops(255, build.ipv6(58, b"\x87\0\0\0" + bytes(20)))),
    build.ethernet(build.ipv6(58, b"\x80\0\0\0" + bytes(4))),
    build.ethernet(build.ipv4(1, b"\x08\0\0\0" + bytes(4))),
    build.ethernet(build.ipv4(2, bytes(8), dst="224.0.0.22")),
    build.ethernet(build.ipv4(132, bytes(12))),
)
DAMAGE = st.lists(st.tuples(st.integers(0, 80), st.integers(1, 255)), max_size=4)


def agree(parsers: Parsers, frame: bytes, link: int = 14) -> CPacket:
    """Hold the kernel's reading to the engine's."""
    ours = parsers.packet(frame, link)
    theirs = parse(frame, link_layer.ETHERNET if link else link_layer.RAW)
    if ours.status == OK and isinstance(theirs, Packet):
        assert (ours.flow.src, ours.flow.dst) == (theirs.source_key, theirs.dest_key)
        assert (ours.flow.sport, ours.flow.dport) == (theirs.sport, theirs.dport)
        assert ours.flow.transport == theirs.protocol
        assert ours.payload == theirs.payload_offset
        assert ours.payload + ours.length == theirs.payload_end
        assert not theirs.missing
        assert ours.tcp_flags == theirs.flags
        assert ours.seq == theirs.seq
    elif ours.status == OK:
        # The first piece has the ports that it is judged by; the engine puts the pieces together.
        assert isinstance(theirs, Fragment)
        assert theirs.offset == 0
        assert theirs.more
        assert (ours.flow.src, ours.flow.dst) == (theirs.source_key, theirs.dest_key)
    elif ours.status == FRAGMENT:
        assert isinstance(theirs, Fragment)
        assert theirs.offset >= 64
        assert (ours.flow.src, ours.flow.dst) == (theirs.source_key, theirs.dest_key)
    elif ours.status == LINK_CONTROL:
        assert isinstance(theirs, Packet | Fragment)
        assert theirs.protocol in {2, 58}
    elif ours.status == NOT_IP:
        assert ethertype(frame) not in {link_layer.IPV4, link_layer.IPV6}
    return ours


def ethertype(frame: bytes) -> int:
    at = 12
    while frame[at : at + 2] in {b"\x81\0", b"\x88\xa8"}:
        at += 4
    return int.from_bytes(frame[at : at + 2], "big")


@pytest.mark.parametrize("frame", FRAMES, ids=range(len(FRAMES)))
def test_good_frames_are_read_alike(parsers: Parsers, frame: bytes) -> None:
    assert agree(parsers, frame).status != MALFORMED


@given(st.sampled_from(FRAMES), DAMAGE)
@settings(max_examples=1500)
def test_damaged_frames(parsers: Parsers, frame: bytes, damage: list[tuple[int, int]]) -> None:
    damaged = bytearray(frame)
    for place, flip in damage:
        damaged[place % len(damaged)] ^= flip
    agree(parsers, bytes(damaged))


@given(st.sampled_from((0x0800, 0x86DD, 0x8100, 0x88A8, 0x0806)), st.binary(max_size=200))
@settings(max_examples=400)
def test_any_bytes(parsers: Parsers, kind: int, rest: bytes) -> None:
    agree(parsers, bytes(12) + kind.to_bytes(2, "big") + rest)


@pytest.mark.parametrize("frame", FRAMES, ids=range(len(FRAMES)))
def test_every_truncation_is_malformed(parsers: Parsers, frame: bytes) -> None:
    """The headers promise more than there is: never half a header, and never ports out of nothing."""
    ethernet_end = 14 + 4 * (frame.count(b"\x81\0", 12, 20) + frame.count(b"\x88\xa8", 12, 20))
    for length in range(ethernet_end, len(frame)):
        assert parsers.packet(frame[:length]).status == MALFORMED, length


@pytest.mark.parametrize(
    ("what", "frame"),
    [
        ("IPv4 of version 6", build.ethernet(b"\x65" + build.ipv4(6, TCP)[1:])),
        ("IPv6 of version 4", build.ethernet(b"\x40" + build.ipv6(6, TCP)[1:])),
        ("a tiny second fragment", build.ethernet(build.ipv4(6, TCP, offset=8))),
        ("a second fragment inside the header", build.ethernet(build.ipv4(6, TCP, offset=56))),
        ("a tiny second fragment of IPv6", build.ethernet(build.ipv6(44, fragment(6, 56) + TCP))),
        ("three tags", build.ethernet(build.ipv4(6, TCP), vlans=(1, 2, 3))),
        ("an endless chain of headers", build.ethernet(build.ipv6(0, extension(0) * 7 + TCP))),
        ("a chain out of the window", build.ethernet(build.ipv6(0, extension(6, 96) + TCP))),
        ("an option whose length is not there", build.ethernet(build.ipv4(6, TCP, options=b"\x01\x01\x01\x07"))),
        ("a TCP header of 16 bytes", build.ethernet(build.ipv4(6, TCP[:12] + b"\x40" + TCP[13:]))),
        ("a UDP datagram of 7 bytes", build.ethernet(build.ipv4(17, UDP[:4] + b"\0\x07" + UDP[6:]))),
    ],
)
def test_what_can_only_be_meant_to_deceive(parsers: Parsers, what: str, frame: bytes) -> None:
    assert parsers.packet(frame).status == MALFORMED, what


def test_a_device_without_a_link_header(parsers: Parsers) -> None:
    for packet in (build.ipv4(6, TCP), build.ipv6(17, UDP)):
        assert agree(parsers, packet, link=0).status == OK
    assert parsers.packet(b"\x15" + bytes(40), link=0).status == NOT_IP


def test_a_super_packet_runs_to_the_end_of_the_frame(parsers: Parsers) -> None:
    """Segmentation offload beyond 64 KiB writes a length of 0 (BIG TCP)."""
    big = TCP + bytes(70_000)
    four = bytearray(build.ipv4(6, b""))
    four[2:4] = b"\0\0"
    six = bytearray(build.ipv6(6, b""))
    six[4:6] = b"\0\0"
    for header in (four, six):
        assert agree(parsers, build.ethernet(bytes(header) + big)).length == 5 + 70_000


@pytest.mark.parametrize(
    ("what", "packet", "status"),
    [
        ("a neighbour solicitation", hops(255, build.ipv6(58, b"\x87" + bytes(23))), LINK_CONTROL),
        ("one that a router may have passed on", build.ipv6(58, b"\x87" + bytes(23)), OK),
        ("a multicast report", hops(1, build.ipv6(58, b"\x8f" + bytes(23), dst="ff02::16")), LINK_CONTROL),
        ("one to a host", hops(1, build.ipv6(58, b"\x8f" + bytes(23))), OK),
        ("an echo request", hops(255, build.ipv6(58, b"\x80" + bytes(23))), OK),
        ("a group report", build.ipv4(2, bytes(8), dst="224.0.0.22", ttl=1), LINK_CONTROL),
        ("a group report that goes on", build.ipv4(2, bytes(8), dst="224.0.0.22"), OK),
        ("a multicast report that goes on", hops(64, build.ipv6(58, b"\x8f" + bytes(23), dst="ff02::16")), OK),
        ("one to a host", build.ipv4(2, bytes(8)), OK),
        ("IGMP over IPv6", build.ipv6(2, bytes(8), dst="ff02::16"), OK),
    ],
)
def test_link_control_is_only_what_stays_on_the_link(parsers: Parsers, what: str, packet: bytes, status: int) -> None:
    """What passes without a verdict must not reach a host beyond the next router, or it carries data out."""
    assert agree(parsers, build.ethernet(packet)).status == status, what
