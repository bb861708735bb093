"""The program that judges by source, frame by frame (BPF_PROG_TEST_RUN): what it reads, and the longest prefix."""

from __future__ import annotations

import ipaddress
import random
import struct
from collections.abc import Iterator

import pytest

from engine.abi.numbers import Counter, KernelVerdict, Mode, Present
from engine.abi.records import VerdictEntry
from engine.abi.source import SourceCounter
from engine.policy.sources import FloodLimit, ScanLimit
from tests.kernel.lab import ALLOW, Watch
from tests.kernel.sources import Action, Desk, Network
from tests.support import captures as build

SOURCE, SOURCE6 = "192.0.2.10", "2001:db8::10"
SYN = build.tcp(40000, 443, flags=build.SYN)
NOP = b"\1\1\1\1"


def header(following: int, size: int = 8) -> bytes:
    return bytes([following, size // 8 - 1]) + bytes(size - 2)


def fragment(following: int, offset: int, more: bool) -> bytes:
    return struct.pack("!BxHI", following, offset | more, 7)


TCP_FRAMES = {
    "IPv4": build.ethernet(build.ipv4(6, SYN)),
    "IPv4 with options": build.ethernet(build.ipv4(6, SYN, options=NOP * 10)),
    "IPv4, first fragment": build.ethernet(build.ipv4(6, SYN, more=True)),
    "IPv4, TCP with options": build.ethernet(build.ipv4(6, build.tcp(40000, 443, flags=build.SYN, options=NOP * 10))),
    "IPv4, total length 0 (BIG TCP)": build.ethernet(build.ipv4(6, SYN, total=0)),
    "IPv6": build.ethernet(build.ipv6(6, SYN)),
    "IPv6 with extension headers": build.ethernet(build.ipv6(0, header(60) + header(43, 24) + header(6) + SYN)),
    "IPv6 with six extension headers": build.ethernet(build.ipv6(0, header(60) * 5 + header(6) + SYN)),
    "IPv6 with a long extension header": build.ethernet(build.ipv6(60, header(6, 256) + SYN)),
    "IPv6 with an authentication header": build.ethernet(build.ipv6(51, b"\6\4" + bytes(22) + SYN)),
    "IPv6, atomic fragment": build.ethernet(build.ipv6(44, fragment(6, 0, False) + SYN)),
    "one tag": build.ethernet(build.ipv4(6, SYN), vlans=(5,)),
    "two tags": build.ethernet(build.ipv6(6, SYN), vlans=(5, 6)),
}
SOURCE_ONLY = {
    "IPv4, later fragment": build.ethernet(build.ipv4(6, SYN, offset=800)),
    "IPv4, later fragment behind a tag": build.ethernet(build.ipv4(6, SYN, offset=8, more=True), vlans=(7,)),
    "IPv6, later fragment": build.ethernet(build.ipv6(44, fragment(6, 800, False) + SYN)),
    "another transport": build.ethernet(build.ipv4(132, SYN)),
    "UDP": build.ethernet(build.ipv4(17, build.udp(1, 2, b"x"))),
}
UNREADABLE = {
    "IPv4 header of 16 bytes": build.ethernet(b"\x44" + build.ipv4(6, SYN)[1:]),
    "IPv4 with another version": build.ethernet(b"\x65" + build.ipv4(6, SYN)[1:], ethertype=0x0800),
    "IPv4 total shorter than its header": build.ethernet(build.ipv4(6, SYN, total=19)),
    "IPv4 options beyond the frame": build.ethernet(b"\x4f" + build.ipv4(6, SYN)[1:21]),
    "TCP header only in the padding": build.ethernet(build.ipv4(6, SYN, total=28)),
    "TCP data offset of 16": build.ethernet(build.ipv4(6, SYN[:12] + b"\x40" + SYN[13:])),
    "TCP cut short": build.ethernet(build.ipv4(6, SYN[:19])),
    "UDP cut short": build.ethernet(build.ipv4(17, b"1234567")),
    "IPv6 with another version": build.ethernet(b"\x45" + build.ipv6(6, SYN)[1:], ethertype=0x86DD),
    "IPv6 with seven extension headers": build.ethernet(build.ipv6(0, header(60) * 6 + header(6) + SYN)),
    "IPv6 extension beyond the frame": build.ethernet(build.ipv6(60, b"\6\xff" + SYN)),
    "IPv6 TCP cut short": build.ethernet(build.ipv6(6, SYN[:19])),
}


@pytest.fixture
def desk(watch: Watch) -> Iterator[Desk]:
    desk = Desk(watch)
    yield desk
    desk.close()


@pytest.mark.parametrize("what", TCP_FRAMES)
def test_a_syn_is_found_behind_whatever_stands_before_it(desk: Desk, what: str) -> None:
    desk.say(flood=FloodLimit(1, 1, 60))
    assert desk.run(TCP_FRAMES[what]) is Action.PASS
    assert desk.flags() == {"syn": 1}
    [event] = desk.events()
    assert (event.blocked.syns, event.blocked.unanswered) == (1, 1)
    assert desk.run(TCP_FRAMES[what]) is Action.DROP
    assert desk.counted() == {SourceCounter.BLOCKS: 1, SourceCounter.DROPPED_BLOCKED: 1}


@pytest.mark.parametrize("what", [*SOURCE_ONLY, *UNREADABLE])
def test_what_shows_no_tcp_counts_for_its_source_alone(desk: Desk, what: str) -> None:
    frame = (SOURCE_ONLY | UNREADABLE)[what]
    desk.say(scan=ScanLimit(1, 1, 60), flood=FloodLimit(1, 1, 60))
    assert desk.run(frame) is Action.PASS
    assert (desk.flags(), desk.events()) == ({}, [])
    assert desk.counted() == ({SourceCounter.UNREADABLE: 1} if what in UNREADABLE else {})
    desk.say(deny=(SOURCE, SOURCE6))
    assert desk.run(frame) is Action.DROP
    assert desk.dropped() == 1


@pytest.mark.parametrize("what", TCP_FRAMES)
def test_a_frame_cut_anywhere_is_never_misread(desk: Desk, what: str) -> None:
    frame = TCP_FRAMES[what]
    desk.say(deny=("0.0.0.0/0", "::/96", "2001:db8::/32"))
    start = 14 + {"one tag": 4, "two tags": 8}.get(what, 0)
    address = start + (20 if frame[start] >> 4 == 4 else 40)
    readable = frame.rindex(SYN[:12]) + 20
    for length in range(14, len(frame)):  # the kernel takes no frame shorter than an Ethernet header
        wanted = Action.DROP if length >= address else Action.PASS
        assert desk.run(frame[:length]) is wanted, length
    assert desk.flags().get("syn", 0) == len(frame) - readable


def test_what_is_no_ip_is_not_looked_at(desk: Desk) -> None:
    desk.say(deny=("0.0.0.0/0",))
    before = desk.frames()
    for ethertype in (0x0806, 0x88CC, 0x8847):
        assert desk.run(build.ethernet(bytes(40), ethertype=ethertype)) is Action.PASS
    assert desk.run(build.ethernet(build.ipv4(6, SYN), vlans=(1, 2, 3))) is Action.PASS
    assert desk.frames() == before


def test_every_flag_is_counted_for_itself(desk: Desk) -> None:
    desk.say()
    chance = random.Random(11)
    wanted = dict.fromkeys(("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"), 0)
    for _ in range(500):
        flags = chance.randrange(256)
        for at, name in enumerate(wanted):
            wanted[name] += flags >> at & 1
        assert desk.run(build.tcp_frame(flags=flags)) is Action.PASS
    assert desk.flags() == wanted


def test_the_longest_prefix_decides_wherever_it_stands(desk: Desk) -> None:
    """Against a list of prefixes read by hand: hosts and the common lengths in the hash, the rest in the trie."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)

    def prefix(bits: int) -> ipaddress.IPv4Network:
        return ipaddress.IPv4Network((0x0A00_0000 | chance.randrange(1 << 16), bits), strict=False)

    def prefix6(bits: int) -> ipaddress.IPv6Network:
        return ipaddress.IPv6Network(((0x20010DB8 << 96) | chance.randrange(1 << 16) << 60, bits), strict=False)

    lengths, lengths6 = (32, 32, 30, 30, 28, 28, 24, 20, 16, 8), (128, 64, 64, 62, 56, 48, 32)
    spoken: dict[Network, bool] = {prefix(chance.choice(lengths)): chance.random() < 0.5 for _ in range(9000)}
    spoken |= {prefix6(chance.choice(lengths6)): chance.random() < 0.5 for _ in range(4000)}
    deny = tuple(str(one) for one, denied in spoken.items() if denied)
    allow = tuple(str(one) for one, denied in spoken.items() if not denied)
    desk.say(deny=deny, allow=allow)
    plan = desk.maps.plan(desk.watch.generation)
    assert len(plan.hashed[0]) == 3
    assert len(plan.hashed[1]) >= 1
    assert all(plan.longest)
    for _ in range(700):
        four = ipaddress.IPv4Address(0x0A00_0000 | chance.randrange(1 << 16))
        six = ipaddress.IPv6Address((0x20010DB8 << 96) | chance.randrange(1 << 16) << 60 | chance.randrange(2))
        for frame, covering in (
            (build.ipv4(17, build.udp(1, 2, b""), src=str(four)), [prefix_of(four, bits) for bits in range(33)]),
            (build.ipv6(17, build.udp(1, 2, b""), src=str(six)), [prefix_of(six, bits) for bits in range(129)]),
        ):
            said = [spoken[one] for one in covering if one in spoken]
            wanted = Action.DROP if said and said[-1] else Action.PASS
            assert desk.run(build.ethernet(frame)) is wanted, covering[-1]


def prefix_of(address: ipaddress.IPv4Address | ipaddress.IPv6Address, bits: int) -> Network:
    return ipaddress.ip_network((address, bits), strict=False)


def test_an_allow_beats_a_deny_of_the_same_prefix(desk: Desk) -> None:
    desk.say(deny=("192.0.2.0/24", SOURCE), allow=("192.0.2.0/24",))
    assert desk.run(build.ethernet(build.ipv4(17, build.udp(1, 2, b""), src="192.0.2.11"))) is Action.PASS
    assert desk.run(build.ethernet(build.ipv4(17, build.udp(1, 2, b""), src=SOURCE))) is Action.DROP


@pytest.mark.parametrize("source", [SOURCE, SOURCE6])
def test_never_deny_comes_before_every_word(desk: Desk, source: str) -> None:
    def frame(sport: int, dport: int) -> bytes:
        make = build.ipv6 if ":" in source else build.ipv4
        return build.ethernet(make(17, build.udp(sport, dport, b"x"), src=source))

    desk.never_deny(source, 53, 17)
    desk.word(source)
    desk.say(deny=(source,))
    for present in (Present.SOURCE, Present.SET_SOURCE):
        desk.look(present)
        assert desk.run(frame(53, 40000)) is Action.DROP
        desk.look(present | Present.NEVER_DENY)
        # The resolver's answer, and an administrator who speaks to our port.
        assert desk.run(frame(53, 40000)) is Action.PASS
        assert desk.run(frame(40000, 53)) is Action.PASS
        assert desk.run(frame(5353, 40000)) is Action.DROP
    assert desk.counted() == {SourceCounter.SPARED: 4}


def test_a_persons_word_comes_before_the_policys(desk: Desk) -> None:
    def frame(last: int) -> bytes:
        return build.ethernet(build.ipv4(17, build.udp(1, 2, b""), src=f"192.0.2.{last}"))

    desk.say(deny=("192.0.2.8", "192.0.2.9"), allow=("192.0.2.7",))
    desk.word("192.0.2.7")
    desk.word("192.0.2.8", ALLOW)
    desk.word("192.0.2.9", VerdictEntry(KernelVerdict.ALLOW, 5, expires=1))  # over long ago
    desk.look(Present.SOURCE | Present.SET_SOURCE)
    assert [desk.run(frame(last)) for last in (7, 8, 9)] == [Action.DROP, Action.PASS, Action.DROP]


def test_while_observing_and_in_a_panic_nothing_is_dropped(desk: Desk) -> None:
    desk.say(deny=(SOURCE,))
    frame = build.ethernet(build.ipv4(6, SYN, src=SOURCE))
    desk.look(mode=Mode.OBSERVE)
    assert desk.run(frame) is Action.PASS
    assert desk.watch.counted() == {Counter.WOULD_DROP: 1}
    desk.look(mode=Mode.PANIC)
    assert desk.run(frame) is Action.PASS
    assert desk.watch.counted() == {Counter.WOULD_DROP: 1}


def test_another_generation_is_another_list(desk: Desk) -> None:
    desk.say(deny=(SOURCE,))
    frame = build.ethernet(build.ipv4(6, SYN, src=SOURCE))
    assert desk.run(frame) is Action.DROP
    desk.watch.flip()
    assert desk.run(frame) is Action.PASS
    desk.say(deny=("192.0.2.0/24",))
    assert desk.run(frame) is Action.DROP


def test_an_ipv6_prefix_means_no_ipv4_source(desk: Desk) -> None:
    """In the trie ::/0 holds every IPv4 address as well, because of how those are spelled there."""
    desk.say(deny=("::/0", "198.51.100.0/24"))
    assert desk.run(build.ethernet(build.ipv4(17, build.udp(1, 2, b""), src=SOURCE))) is Action.PASS
    assert desk.run(build.ethernet(build.ipv6(17, build.udp(1, 2, b""), src=SOURCE6))) is Action.DROP
