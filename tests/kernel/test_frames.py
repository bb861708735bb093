"""Frames as they may stand on the wire: options, extension headers, tags, fragments; and the sources' gate."""

from __future__ import annotations

import struct

import pytest

from engine.abi.numbers import Counter, FlowFlag, Mode, PostureBit
from tests.kernel.lab import DENY, INSIDE, INSIDE6, OUTSIDE, OUTSIDE6, UDP, Watch, key
from tests.support import captures as build
from tests.support.netns import Wire

SYN = build.tcp(40000, 443, flags=build.SYN)
QUESTION = build.udp(40000, 53, b"question")
NOP, ALERT = b"\1\1\1\1", b"\x94\4\0\0"
OUTSIDERS = {4: {"src": INSIDE, "dst": OUTSIDE}, 6: {"src": INSIDE6, "dst": OUTSIDE6}}
INSIDERS = {4: {"src": OUTSIDE, "dst": INSIDE}, 6: {"src": OUTSIDE6, "dst": INSIDE6}}


def header(following: int, size: int = 8) -> bytes:
    return bytes([following, size // 8 - 1]) + bytes(size - 2)


def fragment(following: int, offset: int, more: bool) -> bytes:
    return struct.pack("!BxHI", following, offset | more, 7)


FRAMES = {
    "IPv4": build.ethernet(build.ipv4(6, SYN, **OUTSIDERS[4])),
    "IPv4 with options": build.ethernet(build.ipv4(6, SYN, options=ALERT * 10, **OUTSIDERS[4])),
    "IPv6": build.ethernet(build.ipv6(6, SYN, **OUTSIDERS[6])),
    "IPv6 with extension headers": build.ethernet(
        build.ipv6(0, header(60) + header(43, 24) + header(6) + SYN, **OUTSIDERS[6])
    ),
    "IPv6, atomic fragment": build.ethernet(build.ipv6(44, fragment(6, 0, False) + SYN, **OUTSIDERS[6])),
    "one tag": build.ethernet(build.ipv4(6, SYN, **OUTSIDERS[4]), vlans=(5,)),
    "two tags": build.ethernet(build.ipv6(6, SYN, **OUTSIDERS[6]), vlans=(5, 6)),
    "TCP with options": build.ethernet(
        build.ipv4(6, build.tcp(40000, 443, flags=build.SYN, options=NOP * 10), **OUTSIDERS[4])
    ),
    "UDP": build.ethernet(build.ipv4(17, QUESTION, **OUTSIDERS[4])),
    "another transport": build.ethernet(build.ipv4(132, bytes(12), **OUTSIDERS[4])),
    "echo request": build.ethernet(build.ipv4(1, b"\x08" + bytes(15), **OUTSIDERS[4])),
}


@pytest.mark.parametrize("what", FRAMES)
def test_a_frame_is_held_and_released_as_it_was(watch: Watch, near: Wire, wire: Wire, what: str) -> None:
    frame = FRAMES[what]
    near.send(frame)
    held = watch.held()
    assert held.note.flags & FlowFlag.NO_STORAGE
    assert frame not in wire.until_mark(near.mark())
    watch.release(held)
    wire.until(lambda seen: seen == frame)


@pytest.mark.parametrize("what", FRAMES)
def test_a_denied_destination_is_found_behind_whatever_headers(watch: Watch, near: Wire, wire: Wire, what: str) -> None:
    frame = FRAMES[what]
    near.send(frame)
    flow = watch.held().flow
    watch.dest(OUTSIDE if flow.dst == key(OUTSIDE) else OUTSIDE6, flow.dport, DENY, flow.transport)
    near.send(frame)
    assert frame not in wire.until_mark(near.mark())
    assert watch.counted()[Counter.DROPPED_DEST] == 1
    assert watch.nothing_held()


MALFORMED = {
    "a header that is cut": build.ethernet(build.ipv4(6, SYN, total=200, **OUTSIDERS[4])),
    "a header of 16 bytes": build.ethernet(b"\x44" + build.ipv4(6, SYN, **OUTSIDERS[4])[1:]),
    "three tags": build.ethernet(build.ipv4(6, SYN, **OUTSIDERS[4]), vlans=(1, 2, 3)),
    "a fragment over the transport header": build.ethernet(build.ipv4(6, SYN, offset=8, **OUTSIDERS[4])),
    "an endless chain": build.ethernet(build.ipv6(0, header(0) * 9 + SYN, **OUTSIDERS[6])),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_packet_follows_its_posture(watch: Watch, near: Wire, wire: Wire, what: str) -> None:
    near.send(MALFORMED[what])
    assert MALFORMED[what] not in wire.until_mark(near.mark())
    assert watch.counted() == {Counter.DROPPED_MALFORMED: 1}
    watch.configure(open=PostureBit.MALFORMED)
    near.send(MALFORMED[what])
    assert MALFORMED[what] in wire.until_mark(near.mark())
    assert watch.counted()[Counter.PASSED_POSTURE] == 1
    assert watch.nothing_held()


@pytest.mark.parametrize(
    "frame",
    [
        build.ethernet(build.ipv4(17, bytes(64), offset=800, **OUTSIDERS[4])),
        build.ethernet(build.ipv6(44, fragment(17, 800, False) + bytes(64), **OUTSIDERS[6])),
    ],
    ids=["IPv4", "IPv6"],
)
def test_a_later_fragment_follows_its_posture(watch: Watch, near: Wire, wire: Wire, frame: bytes) -> None:
    near.send(frame)
    assert frame not in wire.until_mark(near.mark())
    assert watch.counted() == {Counter.DROPPED_FRAGMENT: 1}
    watch.configure(open=PostureBit.FRAGMENT)
    near.send(frame)
    assert frame in wire.until_mark(near.mark())
    assert watch.counted()[Counter.PASSED_FRAGMENT] == 1
    watch.configure(mode=Mode.OBSERVE)
    near.send(frame)
    assert frame in wire.until_mark(near.mark())


def test_a_first_fragment_is_judged_by_its_ports(watch: Watch, near: Wire, wire: Wire) -> None:
    frame = build.ethernet(build.ipv4(17, QUESTION + bytes(120), more=True, **OUTSIDERS[4]))
    watch.dest(OUTSIDE, 53, DENY, UDP)
    near.send(frame)
    assert frame not in wire.until_mark(near.mark())
    assert watch.counted()[Counter.DROPPED_DEST] == 1


def test_what_is_no_ip_passes_and_is_counted(watch: Watch, near: Wire, wire: Wire) -> None:
    arp = build.ethernet(b"\0\1\x08\0\6\4\0\1" + bytes(20), ethertype=0x0806)
    before = watch.gate.counters()[Counter.PASSED_NOT_IP]
    near.send(arp)
    assert any(frame[: len(arp)] == arp for frame in wire.until_mark(near.mark()))
    assert watch.gate.counters()[Counter.PASSED_NOT_IP] > before


def test_a_super_packet_is_held_whole(watch: Watch, near: Wire) -> None:
    frame = build.ethernet(build.ipv4(17, build.udp(40000, 53, bytes(1400)), **OUTSIDERS[4]))
    near.send(frame)
    assert len(watch.held().packet.payload) == 1400
