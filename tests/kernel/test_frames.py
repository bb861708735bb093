"""Frames as they may stand on the wire: options, extension headers, tags, fragments; and the sources' gate."""

from __future__ import annotations

import struct

import pytest

from engine.abi.numbers import Counter, FlowFlag, KernelVerdict, Mode, PostureBit, Present
from engine.abi.records import SourceKey, VerdictEntry
from tests.kernel.lab import ALLOW, DENY, INSIDE, INSIDE6, OUTSIDE, OUTSIDE6, UDP, Lab, Watch, key
from tests.support import captures as build
from tests.support.netns import Wire

SYN = build.tcp(40000, 443, flags=build.SYN)
QUESTION = build.udp(40000, 53, b"question")
NOP = b"\1\1\1\1"
OUTSIDERS = {4: {"src": INSIDE, "dst": OUTSIDE}, 6: {"src": INSIDE6, "dst": OUTSIDE6}}
INSIDERS = {4: {"src": OUTSIDE, "dst": INSIDE}, 6: {"src": OUTSIDE6, "dst": INSIDE6}}


def header(following: int, size: int = 8) -> bytes:
    return bytes([following, size // 8 - 1]) + bytes(size - 2)


def fragment(following: int, offset: int, more: bool) -> bytes:
    return struct.pack("!BxHI", following, offset | more, 7)


FRAMES = {
    "IPv4": build.ethernet(build.ipv4(6, SYN, **OUTSIDERS[4])),
    "IPv4 with options": build.ethernet(build.ipv4(6, SYN, options=NOP * 10, **OUTSIDERS[4])),
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


# ---- sources


@pytest.fixture(scope="module")
def guarded(loaded_lab: Lab) -> str:
    return loaded_lab.guard_sources()


def sources(watch: Watch, generation: int, *prefixes: tuple[str, int], entry: VerdictEntry = DENY) -> None:
    watch.gate.put_sources([(SourceKey(generation, key(address), bits), entry) for address, bits in prefixes])


def arriving(source: str, *, vlans: tuple[int, ...] = (), number: int = 1) -> bytes:
    payload = build.udp(number, 9, b"from outside")
    if ":" in source:
        return build.ethernet(build.ipv6(17, payload, src=source, dst=INSIDE6), vlans=vlans)
    return build.ethernet(build.ipv4(17, payload, src=source, dst=INSIDE), vlans=vlans)


@pytest.mark.parametrize("vlans", [(), (5,)])
@pytest.mark.parametrize(
    ("prefix", "source", "dropped"),
    [
        (("192.0.2.7", 128), "192.0.2.7", True),
        (("192.0.2.7", 128), "192.0.2.8", False),
        (("192.0.2.0", 96 + 24), "192.0.2.255", True),
        (("192.0.2.0", 96 + 24), "192.0.3.0", False),
        (("192.0.2.0", 96 + 31), "192.0.2.1", True),
        (("192.0.2.0", 96 + 31), "192.0.2.2", False),
        (("0.0.0.0", 96), "203.0.113.9", True),  # noqa: S104
        (("0.0.0.0", 96), "2001:db8::1", False),  # noqa: S104
        (("2001:db8::", 32), "2001:db8:ffff::1", True),
        (("2001:db8::", 32), "2001:db9::1", False),
        (("2001:db8::1", 128), "2001:db8::1", True),
        (("2001:db8::1", 127), "2001:db8::2", False),
    ],
)
@pytest.mark.usefixtures("guarded")
def test_a_denied_source_is_dropped_before_the_stack(
    watch: Watch, near: Wire, wire: Wire, vlans: tuple[int, ...], prefix: tuple[str, int], source: str, dropped: bool
) -> None:
    sources(watch, watch.generation, prefix)
    watch.configure(present=Present.SOURCE)
    frame = arriving(source, vlans=vlans)
    wire.send(frame)
    assert (frame in near.until_mark(wire.mark())) is not dropped
    assert watch.counted() == ({Counter.DROPPED_SOURCE: 1} if dropped else {})


@pytest.mark.usefixtures("guarded")
def test_while_observing_a_denied_source_only_counts(watch: Watch, near: Wire, wire: Wire) -> None:
    sources(watch, watch.generation, ("192.0.2.7", 128))
    watch.configure(present=Present.SOURCE, mode=Mode.OBSERVE)
    frame = arriving("192.0.2.7")
    wire.send(frame)
    assert frame in near.until_mark(wire.mark())
    assert watch.counted() == {Counter.WOULD_DROP: 1}


@pytest.mark.usefixtures("guarded")
def test_a_persons_word_about_a_source_is_stronger_and_outlives_generations(
    watch: Watch, near: Wire, wire: Wire
) -> None:
    sources(watch, 0, ("192.0.2.7", 128))
    sources(watch, 0, ("192.0.2.8", 128), entry=ALLOW)
    sources(watch, watch.generation, ("192.0.2.8", 128), ("192.0.2.9", 128))
    watch.configure(present=Present.SOURCE | Present.SET_SOURCE)
    for source in (7, 8, 9):
        wire.send(arriving(f"192.0.2.{source}"))
    seen = near.until_mark(wire.mark())
    assert [arriving(f"192.0.2.{source}") in seen for source in (7, 8, 9)] == [False, True, False]
    watch.flip()
    for source in (7, 8, 9):
        wire.send(arriving(f"192.0.2.{source}", number=2))
    seen = near.until_mark(wire.mark())
    assert [arriving(f"192.0.2.{source}", number=2) in seen for source in (7, 8, 9)] == [False, True, True]


@pytest.mark.usefixtures("guarded")
def test_a_source_verdict_ends_with_its_time(watch: Watch, near: Wire, wire: Wire) -> None:
    sources(watch, watch.generation, ("192.0.2.7", 128), entry=VerdictEntry(KernelVerdict.DENY, 1, expires=1))
    watch.configure(present=Present.SOURCE)
    wire.send(arriving("192.0.2.7"))
    assert arriving("192.0.2.7") in near.until_mark(wire.mark())
