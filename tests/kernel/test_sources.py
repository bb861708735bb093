"""Sources with real traffic: verdicts, a scan and a flood that the kernel ends by itself, and how a block ends."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from engine.abi.numbers import Counter, Mode, Present
from engine.abi.records import VerdictEntry
from engine.abi.source import Cause, SourceCounter
from engine.policy.sources import FloodLimit, ScanLimit
from tests.kernel.lab import ALLOW, DENY, DEVICE, INSIDE, INSIDE6, OUTSIDE, OUTSIDE6, Lab, Watch, await_, key
from tests.kernel.sources import Desk
from tests.support import captures as build
from tests.support.netns import Agent, Wire

LONG = 3600.0
SUBNET6 = key("fd00:77::")


@pytest.fixture(scope="module")
def guarded(loaded_lab: Lab) -> str:
    return loaded_lab.guard_sources()


@pytest.fixture
def desk(watch: Watch, guarded: str) -> Iterator[Desk]:
    desk = Desk(watch)
    yield desk
    desk.look(Present(0), Mode.OBSERVE)
    desk.close()


def arriving(source: str, *, vlans: tuple[int, ...] = (), number: int = 1) -> bytes:
    payload = build.udp(number, 9, b"from outside")
    if ":" in source:
        return build.ethernet(build.ipv6(17, payload, src=source, dst=INSIDE6), vlans=vlans)
    return build.ethernet(build.ipv4(17, payload, src=source, dst=INSIDE), vlans=vlans)


def syn(source: str, dport: int, *, sport: int = 40000, flags: int = build.SYN, vlans: tuple[int, ...] = ()) -> bytes:
    segment = build.tcp(sport, dport, flags=flags)
    if ":" in source:
        return build.ethernet(build.ipv6(6, segment, src=source, dst=INSIDE6), vlans=vlans)
    return build.ethernet(build.ipv4(6, segment, src=source, dst=INSIDE), vlans=vlans)


def arrives(near: Wire, wire: Wire, frame: bytes) -> bool:
    wire.send(frame)
    return frame in near.until_mark(wire.mark())


def address_of(source: str) -> bytes:
    return key(source) if ":" not in source else key(source)[:8] + bytes(8)


# ---- verdicts


@pytest.mark.parametrize("vlans", [(), (5,)])
@pytest.mark.parametrize(
    ("prefix", "source", "dropped"),
    [
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7", "192.0.2.8", False),
        ("192.0.2.0/24", "192.0.2.255", True),
        ("192.0.2.0/24", "192.0.3.0", False),
        ("192.0.2.0/31", "192.0.2.1", True),
        ("192.0.2.0/31", "192.0.2.2", False),
        ("0.0.0.0/0", "203.0.113.9", True),
        ("0.0.0.0/0", "2001:db8::1", False),
        ("::/0", "203.0.113.9", False),
        ("::/0", "2001:db8::1", True),
        ("2001:db8::/32", "2001:db8:ffff::1", True),
        ("2001:db8::/32", "2001:db9::1", False),
        ("2001:db8::1", "2001:db8::1", True),
        ("2001:db8::/127", "2001:db8::2", False),
    ],
)
def test_a_denied_source_is_dropped_before_the_stack(
    desk: Desk, near: Wire, wire: Wire, vlans: tuple[int, ...], prefix: str, source: str, dropped: bool
) -> None:
    desk.say(deny=(prefix,))
    assert arrives(near, wire, arriving(source, vlans=vlans)) is not dropped
    assert desk.watch.counted() == ({Counter.DROPPED_SOURCE: 1} if dropped else {})


def test_while_observing_a_denied_source_only_counts(desk: Desk, near: Wire, wire: Wire) -> None:
    desk.say(deny=("192.0.2.7",))
    desk.look(mode=Mode.OBSERVE)
    assert arrives(near, wire, arriving("192.0.2.7"))
    assert desk.watch.counted() == {Counter.WOULD_DROP: 1}


def test_a_persons_word_about_a_source_is_stronger_and_outlives_generations(desk: Desk, near: Wire, wire: Wire) -> None:
    desk.word("192.0.2.7")
    desk.word("192.0.2.8", ALLOW)
    desk.say(deny=("192.0.2.8", "192.0.2.9"))
    desk.look(Present.SOURCE | Present.SET_SOURCE)
    assert [arrives(near, wire, arriving(f"192.0.2.{last}")) for last in (7, 8, 9)] == [False, True, False]
    desk.watch.flip()
    again = [arrives(near, wire, arriving(f"192.0.2.{last}", number=2)) for last in (7, 8, 9)]
    assert again == [False, True, True]


def test_a_persons_word_about_a_source_ends_with_its_time(desk: Desk, near: Wire, wire: Wire) -> None:
    desk.word("192.0.2.7", VerdictEntry(DENY.verdict, 1, expires=1))
    desk.say()
    desk.look(Present.SET_SOURCE)
    assert arrives(near, wire, arriving("192.0.2.7"))


# ---- scans


@pytest.mark.parametrize(("far", "near_end"), [(OUTSIDE, INSIDE), (OUTSIDE6, INSIDE6)])
def test_a_scan_is_blocked_at_once_and_told_once(
    desk: Desk, near: Wire, wire: Wire, server: Agent, far: str, near_end: str
) -> None:
    desk.say(scan=ScanLimit(20, LONG, LONG))
    # The far end walks through the ports of ours; what is blocked gets no answer any more.
    refused = server.do(
        "refused = 0\n"
        "for port in range(6000, 6060):\n"
        f"    s = tcp({near_end!r}); s.settimeout(0.05)\n"
        "    try:\n"
        f"        s.connect(({near_end!r}, port))\n"
        "    except ConnectionRefusedError:\n"
        "        refused += 1\n"
        "    except TimeoutError:\n"
        "        pass\n"
        "refused"
    )
    # Ports that share a bit count once, so that it may be a few later, but never earlier.
    assert 19 <= refused < 30
    [event] = desk.events()
    assert event.address == address_of(far)
    assert (event.blocked.cause, event.blocked.ports, event.blocked.observed) == (Cause.SCAN, 20, 0)
    assert event.ifindex == desk.ifindex
    assert desk.counted()[SourceCounter.BLOCKS] == 1
    assert desk.counted()[SourceCounter.DROPPED_BLOCKED] >= 30
    # Whatever the source sends, and nobody else.
    assert not arrives(near, wire, arriving(far))
    assert arrives(near, wire, arriving("192.0.2.7"))
    [alert] = desk.alerts
    assert (alert.rule, alert.details["cause"], alert.details["seconds"]) == ("scan_limit", "scan", LONG)
    [(_, entry)] = desk.diary.notes
    assert entry["source"] == alert.details["source"] == (far if ":" not in far else "fd00:77::/64")
    desk.sources.look()
    assert len(desk.alerts) == 1


@pytest.mark.parametrize("flags", [build.SYN, build.FIN, 0, build.FIN | build.PSH | 32, build.SYN | build.FIN])
def test_what_no_tcp_sends_is_a_scan_as_well(desk: Desk, near: Wire, wire: Wire, flags: int) -> None:
    desk.say(scan=ScanLimit(8, LONG, LONG))
    for port in range(7000, 7030):
        wire.send(syn("192.0.2.7", port, flags=flags, vlans=(5,)))
    assert not arrives(near, wire, arriving("192.0.2.7", vlans=(5,)))
    [event] = desk.events()
    assert event.blocked.cause == Cause.SCAN


@pytest.mark.parametrize("flags", [build.ACK, build.SYN | build.ACK, build.RST, build.RST | build.ACK])
def test_answers_and_ends_of_connections_are_no_scan(desk: Desk, near: Wire, wire: Wire, flags: int) -> None:
    desk.say(scan=ScanLimit(8, LONG, LONG), flood=FloodLimit(8, LONG, LONG))
    for port in range(7000, 7030):
        wire.send(syn("192.0.2.7", port, flags=flags))
    assert arrives(near, wire, arriving("192.0.2.7"))
    assert (desk.events(), desk.counted()) == ([], {})


def test_many_connections_to_one_port_are_no_scan(desk: Desk, near: Wire, wire: Wire) -> None:
    desk.say(scan=ScanLimit(4, LONG, LONG))
    for port in range(7000, 7040):
        wire.send(syn("192.0.2.7", 443, sport=port))
    assert arrives(near, wire, arriving("192.0.2.7"))
    entry = desk.maps.tracked(address_of("192.0.2.7"))
    assert entry is not None
    assert (entry.ports, entry.syns, entry.unanswered) == (1, 40, 40)


# ---- floods


@pytest.mark.parametrize("source", ["192.0.2.7", "2001:db8::7"])
def test_a_flood_is_blocked_and_others_are_not(desk: Desk, near: Wire, wire: Wire, source: str) -> None:
    other = "192.0.2.8" if ":" not in source else "2001:db8:0:1::7"
    desk.say(flood=FloodLimit(100, LONG, LONG))
    for number in range(300):
        wire.send(syn(source, 443, sport=1024 + number))
        wire.send(syn(other, 443, sport=1024 + number, flags=build.ACK))
    assert len([one for one in near.until_mark(wire.mark()) if one[-20:-16] == syn(source, 443)[-20:-16]]) <= 100
    [event] = desk.events()
    assert (event.address, event.blocked.cause, event.blocked.syns) == (address_of(source), Cause.FLOOD, 100)
    assert desk.counted() == {SourceCounter.BLOCKS: 1, SourceCounter.DROPPED_BLOCKED: 200}
    [(_, block)] = desk.maps.blocks()
    assert block.dropped == 200
    assert arrives(near, wire, arriving(other))


def test_a_sender_within_one_ipv6_subnet_is_one_sender(desk: Desk, near: Wire, wire: Wire) -> None:
    desk.say(flood=FloodLimit(50, LONG, LONG))
    for number in range(60):
        wire.send(syn(f"2001:db8::{number:x}:1", 443))
    assert not arrives(near, wire, arriving("2001:db8::ffff:ffff"))
    assert arrives(near, wire, arriving("2001:db8:0:1::1"))


def test_a_link_local_sender_is_blocked_alone_and_neighbours_are_still_found(
    desk: Desk, near: Wire, wire: Wire
) -> None:
    desk.say(flood=FloodLimit(5, LONG, LONG))
    for _ in range(9):
        wire.send(syn("fe80::7", 443))
    assert not arrives(near, wire, arriving("fe80::7"))
    assert arrives(near, wire, arriving("fe80::8"))
    solicitation = build.ipv6(58, bytes([135]) + bytes(23), src="fe80::7", dst=INSIDE6)
    assert not arrives(near, wire, build.ethernet(solicitation))
    assert arrives(near, wire, build.ethernet(solicitation[:7] + b"\xff" + solicitation[8:]))


def test_acknowledgements_show_which_syns_were_meant(desk: Desk, near: Wire, wire: Wire) -> None:
    desk.say(flood=FloodLimit(1000, LONG, LONG))
    for number in range(10):
        wire.send(syn("192.0.2.7", 443, sport=2000 + number))
    for number in range(4):
        wire.send(syn("192.0.2.7", 443, sport=2000 + number, flags=build.ACK))
    near.until_mark(wire.mark())
    entry = desk.maps.tracked(address_of("192.0.2.7"))
    assert entry is not None
    assert (entry.syns, entry.unanswered) == (10, 6)


def test_what_is_spread_over_time_is_no_flood(desk: Desk, near: Wire, wire: Wire) -> None:
    """A window of a nanosecond is over before the next frame comes."""
    desk.say(flood=FloodLimit(2, 1e-9, LONG), scan=ScanLimit(2, 1e-9, LONG))
    for port in range(50):
        wire.send(syn("192.0.2.7", 1000 + port))
    assert arrives(near, wire, arriving("192.0.2.7"))
    assert desk.events() == []


# ---- how a block ends, and whom it does not touch


def test_a_block_ends_by_itself_and_the_source_begins_anew(desk: Desk, near: Wire, wire: Wire) -> None:
    """Without an engine: nobody beats, nobody answers, and the kernel keeps to the times."""
    desk.say(flood=FloodLimit(5, LONG, 0.5))
    desk.look(heartbeat_max=1)
    for _ in range(9):
        wire.send(syn("192.0.2.7", 443))
    assert not arrives(near, wire, arriving("192.0.2.7"))
    await_(lambda: arrives(near, wire, arriving("192.0.2.7")), lambda: "it is still blocked")
    [(_, block)] = desk.maps.blocks()
    assert block.expires <= time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    assert desk.sources.standing() == []
    desk.say(flood=FloodLimit(5, LONG, LONG))
    for _ in range(4):
        assert arrives(near, wire, syn("192.0.2.7", 443))
    wire.send(syn("192.0.2.7", 443))
    assert not arrives(near, wire, arriving("192.0.2.7"))


def test_a_block_outlives_a_replacement_of_the_programs(lab: Lab) -> None:
    lab.load()
    lab.guard_sources()
    watch = Watch(lab)
    watch.reset()
    desk, wire, near = Desk(watch), Wire(lab.outside, "far"), Wire(lab.inside, DEVICE)
    desk.say(flood=FloodLimit(5, LONG, LONG))
    for _ in range(9):
        wire.send(syn("192.0.2.7", 443))
    assert not arrives(near, wire, arriving("192.0.2.7"))
    assert lab.load().taken_over
    assert not arrives(near, wire, arriving("192.0.2.7"))
    for opened in (near, wire, desk, watch):
        opened.close()


def test_a_person_ends_a_block(desk: Desk, near: Wire, wire: Wire) -> None:
    desk.say(flood=FloodLimit(5, LONG, LONG))
    for source in ("192.0.2.7", "2001:db8::7"):
        for _ in range(9):
            wire.send(syn(source, 443))
        assert not arrives(near, wire, arriving(source))
    assert [block["source"] for block in desk.sources.standing()] == ["2001:db8::/64", "192.0.2.7"]
    assert desk.sources.lift("192.0.2.0/24") == ["192.0.2.7"]
    assert desk.sources.lift("2001:db8::9999") == ["2001:db8::/64"]
    assert desk.sources.lift("0.0.0.0/0") == []
    for source in ("192.0.2.7", "2001:db8::7"):
        assert arrives(near, wire, arriving(source))


def test_who_is_allowed_is_neither_counted_nor_blocked(desk: Desk, near: Wire, wire: Wire) -> None:
    desk.say(allow=("192.0.2.7",), flood=FloodLimit(5, LONG, LONG), scan=ScanLimit(5, LONG, LONG))
    desk.word("192.0.2.8", ALLOW)
    desk.look(Present.SOURCE | Present.SET_SOURCE)
    for last in (7, 8):
        for port in range(20):
            wire.send(syn(f"192.0.2.{last}", 1000 + port))
        assert arrives(near, wire, arriving(f"192.0.2.{last}"))
        assert desk.maps.tracked(address_of(f"192.0.2.{last}")) is None
    assert desk.events() == []


@pytest.mark.parametrize(("port", "transport"), [(0, 0), (443, 6)])
def test_a_flood_in_the_name_of_the_uplink_does_not_cut_it(
    desk: Desk, near: Wire, wire: Wire, port: int, transport: int
) -> None:
    """Whoever forges the address of a never-deny service must not have it blocked."""
    desk.never_deny("192.0.2.7", port, transport)
    desk.say(flood=FloodLimit(5, LONG, LONG), scan=ScanLimit(5, LONG, LONG))
    desk.look(Present.SOURCE | Present.NEVER_DENY)
    for number in range(20):
        wire.send(syn("192.0.2.7", 443, sport=2000 + number))
    assert desk.events() == []
    # Where only a port is spared, a block by the others leaves that port open.
    for number in range(20):
        wire.send(syn("192.0.2.7", 3000 + number))
    answer = syn("192.0.2.7", 40000, sport=443, flags=build.SYN | build.ACK)
    assert arrives(near, wire, answer)
    assert arrives(near, wire, arriving("192.0.2.7")) is not bool(port)


def test_while_observing_a_block_is_only_told(desk: Desk, near: Wire, wire: Wire) -> None:
    desk.say(flood=FloodLimit(5, LONG, LONG))
    desk.look(mode=Mode.OBSERVE)
    for _ in range(30):
        wire.send(syn("192.0.2.7", 443))
    assert arrives(near, wire, arriving("192.0.2.7"))
    [event] = desk.events()
    assert event.blocked.observed == 1
    assert desk.counted() == {SourceCounter.BLOCKS: 1, SourceCounter.WOULD_BLOCK: 26}
    assert "would be blocked" in desk.alerts[0].summary
    # Enforcing begins, and what was only observed has to be earned again.
    desk.look()
    assert arrives(near, wire, arriving("192.0.2.7"))
    for _ in range(9):
        wire.send(syn("192.0.2.7", 443))
    assert not arrives(near, wire, arriving("192.0.2.7"))
    assert [event.blocked.observed for event in desk.events()] == [0]


def test_without_limits_nothing_is_tracked(desk: Desk, near: Wire, wire: Wire) -> None:
    desk.say(deny=("203.0.113.0/24",))
    for port in range(2000, 2050):
        wire.send(syn("192.0.2.99", port))
    assert arrives(near, wire, arriving("192.0.2.99"))
    assert desk.maps.tracked(address_of("192.0.2.99")) is None
    assert desk.flags()["syn"] >= 50


def test_a_block_whose_event_was_lost_is_told_all_the_same(desk: Desk, near: Wire, wire: Wire) -> None:
    desk.say(flood=FloodLimit(5, LONG, LONG))
    for _ in range(9):
        wire.send(syn("192.0.2.7", 443))
    near.until_mark(wire.mark())
    desk.watch.ring.drain(lambda _: None, 1 << 20)
    desk.sources.look()
    desk.sources.look()
    assert [alert.details["source"] for alert in desk.alerts] == ["192.0.2.7"]
