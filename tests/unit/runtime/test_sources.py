"""The engine's part in judging sources: where a prefix stands, what goes with its generation, who hears of a block."""

from __future__ import annotations

import asyncio
import ipaddress
import threading
from typing import Any, cast

import pytest

from engine.abi.numbers import KernelVerdict
from engine.abi.records import SourceKey
from engine.abi.source import SOURCE_EVENT, Blocked, Cause, Limits, PrefixKey, SourceCounter, SourceEntry
from engine.alerts.alert import Alert, Kind
from engine.errors import UsageError
from engine.policy.sources import FloodLimit, Network, Prefixes, ScanLimit, SourceRules
from engine.ports import MapFullError
from engine.runtime.sources import Sources, layout
from tests.support.rig import Diary
from tests.support.source_maps import SimulatedSources

MAPPED = bytes(10) + b"\xff\xff"
SECOND = 10**9
SCAN = Blocked(5 * SECOND, 15 * SECOND, 3, 9, 20, 8, Cause.SCAN, 0)
FLOOD = Blocked(6 * SECOND, 66 * SECOND, 0, 1000, 0, 999, Cause.FLOOD, 1)
ONE, OTHER = MAPPED + bytes([192, 0, 2, 7]), bytes.fromhex("20010db8") + bytes(12)


def nets(*items: Network | str) -> Prefixes:
    return Prefixes.of(items)


class Desk:
    def __init__(self, room: int = 1 << 20, *, taken_over: bool = False) -> None:
        self.calls: list[tuple[str, object]] = []
        self.maps = SimulatedSources(self.calls, room)
        self.alerts: list[Alert] = []
        self.diary = Diary()
        self.now = 10 * SECOND
        self.taken_over = taken_over
        self.restart()

    def restart(self) -> None:
        self.sources = Sources(
            self.maps, cast("Any", self.diary), self.alerts.append, lambda index: f"eth{index}",
            taken_over=self.taken_over, clock=lambda: self.now,
        )  # fmt: skip

    def block(self, address: bytes, block: Blocked, *, event: bool = True) -> None:
        """As the kernel does it."""
        self.maps.blocked[address] = block
        self.maps.counted[SourceCounter.BLOCKS] += 1
        if event:
            assert self.sources.record(SOURCE_EVENT.pack(block.since, 32, address, *block, 3, 7))


@pytest.fixture
def desk() -> Desk:
    return Desk()


# ---- prefixes


def test_hosts_and_common_lengths_are_hashed_and_the_rest_is_in_the_trie() -> None:
    many = tuple(ipaddress.IPv4Network((number << 8, 24)) for number in range(1024))
    plan = layout(7, SourceRules(nets(*many, "198.51.100.7", "203.0.113.0/25", "2001:db8::/32", "2001:db8::1")))
    assert plan.hashed == ((128, 120), (128,))
    assert plan.longest == (96 + 25 + 1, 32 + 1)
    assert layout(7, SourceRules(nets(*many[1:]))).hashed == ((), ())


def test_of_many_common_lengths_the_most_common_are_hashed() -> None:
    lengths = {16: 1100, 20: 1300, 24: 1200, 28: 1400}
    networks = tuple(
        ipaddress.IPv4Network((number << (32 - bits), bits))
        for bits, count in lengths.items()
        for number in range(count)
    )
    assert layout(1, SourceRules(nets(*networks))).hashed[0] == (124, 120, 116)
    assert layout(1, SourceRules(nets(*networks), nets("192.0.2.1"))).hashed[0] == (128, 124, 116)


def test_what_is_said_is_written_before_the_plan_and_an_allow_over_a_deny(desk: Desk) -> None:
    rules = SourceRules(nets("192.0.2.7", "192.0.2.0/24"), nets("192.0.2.7"), ScanLimit(9, 2, 3), FloodLimit(5, 1, 4))
    asyncio.run(desk.sources.prepare(3, rules))
    assert desk.maps.hashed == {PrefixKey(3, 128, ONE): SourceEntry(KernelVerdict.ALLOW, 128)}
    assert desk.maps.trie == {SourceKey(3, MAPPED + bytes([192, 0, 2, 0]), 120): SourceEntry(KernelVerdict.DENY, 120)}
    assert [name for name, _ in desk.calls] == ["source", "source", "source", "source plan"]
    assert desk.maps.plan(3).limits == Limits(9, 5, 2 * SECOND, 3 * SECOND, SECOND, 4 * SECOND)


def test_generations_before_the_one_in_force_go_and_a_candidate_stays(desk: Desk) -> None:
    async def scene() -> None:
        for number in (1, 2, 3):
            await desk.sources.prepare(number, SourceRules(nets(f"192.0.2.{number}", "10.0.0.0/8")))
        assert await desk.sources.retire(2) == 2
        assert {key.generation for key in (*desk.maps.hashed, *desk.maps.trie)} == {2, 3}

    asyncio.run(scene())


def test_what_finds_no_room_leaves_nothing_and_what_is_in_force_stays() -> None:
    async def scene() -> None:
        desk = Desk(room=3)
        await desk.sources.prepare(1, SourceRules(nets("192.0.2.1")))
        with pytest.raises(MapFullError, match="source_prefixes"):
            await desk.sources.prepare(2, SourceRules(nets("192.0.2.2", "192.0.2.3", "192.0.2.4")))
        assert [key.generation for key in desk.maps.hashed] == [1]
        assert desk.maps.plan(2).generation != 2

    asyncio.run(scene())


def test_what_stands_since_the_engine_before_is_not_written_again_and_the_rest_goes() -> None:
    async def scene() -> None:
        desk = Desk(taken_over=True)
        rules = SourceRules(nets("192.0.2.1"))
        for number in (4, 5):
            await desk.sources.prepare(number, rules)
        desk.restart()
        desk.calls.clear()
        await desk.sources.prepare(5, rules, standing=True)
        assert desk.calls == []
        await desk.sources.retire(5)
        assert [key.generation for key in desk.maps.hashed] == [5]
        await desk.sources.prepare(6, rules, standing=True)  # it does not stand
        assert desk.calls

    asyncio.run(scene())


def test_a_long_list_is_written_by_a_thread(desk: Desk) -> None:
    """The loop must beat meanwhile, or the gate counts the engine as absent."""
    threads: set[int] = set()
    put = desk.maps.put_hashed
    desk.maps.put_hashed = lambda entries: (threads.add(threading.get_ident()), put(entries))[1]  # type: ignore[method-assign]
    many = tuple(ipaddress.ip_network(number) for number in range(1 << 24, (1 << 24) + 5000))
    asyncio.run(desk.sources.prepare(1, SourceRules(nets(*many))))
    assert len(desk.maps.hashed) == 5000
    assert threads
    assert threading.get_ident() not in threads


def test_how_full_the_tables_are_is_told_without_a_walk(desk: Desk) -> None:
    async def scene() -> None:
        await desk.sources.prepare(1, SourceRules(nets("192.0.2.7", "192.0.2.0/24"), nets("2001:db8::/32")))
        await desk.sources.prepare(2, SourceRules(nets("192.0.2.8")))
        assert desk.sources.fill() == {
            "source_prefixes": (2, 1 << 20), "source_trie": (2, 1 << 20), "blocked": (0, 16384),
        }  # fmt: skip
        await desk.sources.retire(2)
        assert desk.sources.fill()["source_prefixes"] == (1, 1 << 20)

    asyncio.run(scene())


# ---- blocks


def test_a_block_is_told_and_written_down_once(desk: Desk) -> None:
    desk.block(ONE, SCAN)
    desk.sources.look()
    desk.sources.look()
    [alert] = desk.alerts
    assert (alert.kind, alert.rule, alert.generation) == (Kind.VIOLATION, "scan_limit", 7)
    assert alert.summary == "192.0.2.7 is blocked for 10 s: scan (20 ports)"
    [(kind, entry)] = desk.diary.notes
    assert kind == "alert"
    assert {key: entry[key] for key in ("source", "cause", "ports", "syns", "unanswered", "seconds", "interface")} == {
        "source": "192.0.2.7", "cause": "scan", "ports": 20, "syns": 9, "unanswered": 8, "seconds": 10.0,
        "interface": "eth3",
    }  # fmt: skip
    # The same source again, later.
    desk.block(ONE, SCAN._replace(since=20 * SECOND, expires=30 * SECOND))
    assert len(desk.alerts) == 2


def test_other_records_are_left_to_others(desk: Desk) -> None:
    assert not desk.sources.record(SOURCE_EVENT.pack(1, 6, ONE, *SCAN, 3, 7))


def test_a_block_without_its_event_is_found_in_the_table(desk: Desk) -> None:
    desk.block(OTHER, FLOOD, event=False)
    desk.sources.look()
    [alert] = desk.alerts
    assert alert.summary == "2001:db8::/64 would be blocked for 60 s: flood (1000 SYNs, 999 of them unanswered)"
    assert alert.details["observed"] is True


def test_blocks_of_the_engine_before_are_not_told_again_but_those_it_missed_are(desk: Desk) -> None:
    desk.block(ONE, SCAN)
    desk.restart()
    desk.block(OTHER, FLOOD)
    desk.sources.look()
    assert [alert.details["source"] for alert in desk.alerts] == ["192.0.2.7", "2001:db8::/64"]


def test_blocks_in_force_are_shown_and_listed(desk: Desk) -> None:
    desk.block(ONE, SCAN)
    desk.block(OTHER, FLOOD)
    assert [(block["source"], block["seconds_left"], block["dropped"]) for block in desk.sources.standing()] == [
        ("2001:db8::/64", 56.0, 0),
        ("192.0.2.7", 5.0, 3),
    ]
    assert [(entry["word"], entry["facts"]) for entry in desk.sources.listing()] == [
        ("observe", {"source": "2001:db8::/64"}),
        ("deny", {"source": "192.0.2.7"}),
    ]
    desk.now = 15 * SECOND
    assert [block["source"] for block in desk.sources.standing()] == ["2001:db8::/64"]
    status = desk.sources.status()
    assert (status["blocked"], status["counters"]["blocks"], status["tcp_flags"]["syn"]) == (1, 2, 0)


@pytest.mark.parametrize(
    ("text", "lifted"),
    [
        ("192.0.2.7", ["192.0.2.7"]),
        ("192.0.2.0/24", ["192.0.2.7"]),
        ("192.0.2.8", []),
        ("2001:db8::ffff", ["2001:db8::/64"]),
        ("2001:db8:0:1::/64", []),
        ("fe80::1", ["fe80::1"]),
        ("fe80::2", []),
        ("::/0", ["2001:db8::/64", "fe80::1"]),
    ],
)
def test_a_block_is_lifted_by_any_prefix_that_holds_it(desk: Desk, text: str, lifted: list[str]) -> None:
    desk.block(ONE, SCAN)
    desk.block(OTHER, FLOOD)
    desk.block(b"\xfe\x80" + bytes(13) + b"\1", FLOOD)
    assert desk.sources.lift(text) == lifted
    assert len(desk.sources.standing()) == 3 - len(lifted)


def test_a_block_that_is_over_is_none_to_lift(desk: Desk) -> None:
    desk.block(ONE, SCAN)
    desk.now = 16 * SECOND
    assert desk.sources.lift("192.0.2.7") == []
    with pytest.raises(UsageError, match="no address"):
        desk.sources.lift("example.org")
