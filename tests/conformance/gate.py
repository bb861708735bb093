"""What engine.ports.Gate promises: one suite for the simulated maps and for the kernel's own."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Protocol

import pytest

from engine.abi.numbers import (
    HELLO_KEPT,
    PLANS,
    Counter,
    DestinationClass,
    KernelVerdict,
    Mode,
    NameClass,
    StrategyKind,
)
from engine.abi.records import (
    Config,
    ConnectKey,
    DestinationKey,
    FlowKey,
    KeptHello,
    NameKey,
    Plan,
    Process,
    SourceKey,
    StrategyKey,
    Tuple,
    VerdictEntry,
)
from engine.ports import Gate, MapFullError

ROOM = 8
"""Entries of each map under test, so that full is soon reached."""
SIZES = {
    "connect_verdicts": ROOM, "classes": ROOM, "name_verdicts": ROOM, "destinations": ROOM, "strategies": ROOM,
    "source_verdicts": ROOM,
}  # fmt: skip
ALLOW, DENY = VerdictEntry(KernelVerdict.ALLOW, 1), VerdictEntry(KernelVerdict.DENY, 2, 10**15, 1)
FLOW = Tuple(bytes(15) + b"\1", bytes(15) + b"\2", 40_000, 443, 6)


HELLOS = 4096
"""How many hellos the gate keeps: cookies that are as far apart share a place."""
Keep = Callable[[int, KeptHello], None]


class Tries(Protocol):
    """Look-ups as the programs make them: the longest prefix."""

    def longest_destination(self, key: DestinationKey) -> VerdictEntry | None: ...
    def longest_source(self, generation: int, address: bytes) -> VerdictEntry | None: ...
    def longest_name(self, name_class: int, name: bytes) -> VerdictEntry | None: ...


class Table:
    """One map: its operations, and keys to try them with."""

    def __init__(
        self, name: str, kind: str, key: Callable[[int], Any], values: tuple[Any, Any] = (ALLOW, DENY)
    ) -> None:
        self.name, self.kind, self.key, self.values = name, kind, key, values

    def put(self, gate: Gate, key: Any, value: Any) -> None:
        if self.kind == "source":
            gate.put_sources([(key, value)])
        else:
            getattr(gate, f"put_{self.kind}")(key, value)

    def remove(self, gate: Gate, key: Any) -> bool:
        return bool(getattr(gate, f"remove_{self.kind}")(key))

    def entries(self, gate: Gate) -> dict[Any, Any]:
        return dict(getattr(gate, f"{self.kind}_entries")())


def address(number: int) -> bytes:
    return number.to_bytes(16, "big")


BOUNDED = [
    Table("connect_verdicts", "connect", lambda n: ConnectKey(1, 15, 6, 443, address(n), 5, 3, n)),
    Table("classes", "class", lambda n: ConnectKey(1, 2, exe=n), (16, 17)),
    Table("name_verdicts", "name", lambda n: NameKey(NameClass.FIRST_FREE, b"elpmaxe.%d\0" % n)),
    Table("destinations", "destination", lambda n: DestinationKey(DestinationClass.SET, 6, n, address(n << 8), 120)),
    Table("strategies", "strategy", lambda n: StrategyKey(StrategyKind.CGROUP, n << 40)),
    Table("source_verdicts", "source", lambda n: SourceKey(1, address(n << 64), 64)),
]
FLOWS = Table("flow_verdicts", "flow", lambda n: FlowKey(FLOW, 1, 0, n))
tables = pytest.mark.parametrize("table", [*BOUNDED, FLOWS], ids=lambda table: table.name)
bounded = pytest.mark.parametrize("table", BOUNDED, ids=lambda table: table.name)


class GateSuite:
    """A subclass gives the fixtures `gate` (maps of SIZES, empty), `tries`, and `keep`: keep a hello as the gate's
    program does, for a socket's cookie."""

    @tables
    def test_what_was_put_is_listed_until_it_is_removed(self, gate: Gate, table: Table) -> None:
        first, second = table.key(1), table.key(2)
        assert table.entries(gate) == {}
        table.put(gate, first, table.values[0])
        table.put(gate, second, table.values[1])
        assert table.entries(gate) == {first: table.values[0], second: table.values[1]}
        assert gate.fill()[table.name][0] == 2
        assert table.remove(gate, first)
        assert not table.remove(gate, first)
        assert table.entries(gate) == {second: table.values[1]}

    @tables
    def test_a_second_put_takes_the_place_of_the_first(self, gate: Gate, table: Table) -> None:
        for value in table.values:
            table.put(gate, table.key(1), value)
        assert table.entries(gate) == {table.key(1): table.values[1]}

    @bounded
    def test_a_full_map_says_so_and_keeps_what_it_has(self, gate: Gate, table: Table) -> None:
        for number in range(ROOM):
            table.put(gate, table.key(number + 1), table.values[0])
        with pytest.raises(MapFullError) as caught:
            table.put(gate, table.key(99), table.values[0])
        assert caught.value.map_name == table.name
        assert len(table.entries(gate)) == ROOM
        assert gate.fill()[table.name] == (ROOM, ROOM)
        # What stands can be replaced, and what goes makes room.
        table.put(gate, table.key(1), table.values[1])
        assert table.entries(gate)[table.key(1)] == table.values[1]
        assert table.remove(gate, table.key(2))
        table.put(gate, table.key(99), table.values[0])
        assert len(table.entries(gate)) == ROOM

    def test_many_sources_at_once_up_to_the_last_that_fits(self, gate: Gate) -> None:
        entries = [(SourceKey(1, address(number << 64), 64), DENY) for number in range(ROOM)]
        gate.put_sources([])
        gate.put_sources(entries)
        assert dict(gate.source_entries()) == dict(entries)
        with pytest.raises(MapFullError):
            gate.put_sources([*entries, (SourceKey(2, address(1), 128), DENY)])

    def test_flow_verdicts_make_room_for_themselves(self, gate: Gate) -> None:
        _, most = gate.fill()["flow_verdicts"]
        for number in range(most + ROOM):
            gate.put_flow(FLOWS.key(number), ALLOW)
        assert 0 < gate.fill()["flow_verdicts"][0] <= most
        assert FLOWS.key(most + ROOM - 1) in FLOWS.entries(gate)

    @pytest.mark.parametrize("judged", [None, 0, 1, 1 << 31, 0xFFFFFFFF])
    def test_a_flow_verdict_says_how_far_the_stream_was_read(self, gate: Gate, judged: int | None) -> None:
        key = FLOWS.key(1)
        gate.put_flow(key, ALLOW._replace(judged=judged))
        assert gate.flow_entries() == [(key, ALLOW._replace(judged=judged))]
        gate.put_flow(key, ALLOW)
        assert gate.flow_entries() == [(key, ALLOW)]

    def test_a_hello_is_kept_until_another_one_takes_its_place(self, gate: Gate, keep: Keep) -> None:
        hello = KeptHello(FLOW, 0xFFFFFFF0, bytes(range(200)))
        longest = KeptHello(FLOW.reversed(), 7, b"\x16" * HELLO_KEPT)
        cookie = (1 << 50) + 3
        assert gate.kept_hello(cookie) is None
        keep(cookie, hello)
        assert gate.kept_hello(cookie) == hello
        assert gate.kept_hello(cookie + 1) is None
        keep(cookie + HELLOS, longest)
        assert gate.kept_hello(cookie) == gate.kept_hello(cookie + HELLOS) == longest
        keep(cookie, hello)
        assert gate.kept_hello(cookie) == hello

    def test_a_hello_that_is_being_written_is_none(self, gate: Gate, keep: Keep) -> None:
        keep(9, KeptHello(FLOW, 1, b""))
        assert gate.kept_hello(9) is None

    def test_a_plan_stands_until_its_slot_is_needed(self, gate: Gate) -> None:
        plans = [Plan(number, (15, 3), (number % 16,)) for number in range(1, PLANS + 1)]
        for plan in plans:
            gate.set_plan(plan)
        assert [gate.plan(plan.generation) for plan in plans] == plans
        gate.set_plan(Plan(PLANS + 1, (), ()))
        assert gate.plan(1) == gate.plan(PLANS + 1) == Plan(PLANS + 1, (), ())
        assert gate.plan(2) == plans[1]

    def test_the_generation_is_one_number(self, gate: Gate) -> None:
        for number in (7, 0, 0xFFFFFFFF, 1):
            gate.set_generation(number)
            assert gate.generation() == number

    def test_the_configuration_is_one_record(self, gate: Gate) -> None:
        for config in (Config(Mode.ENFORCE, 7, 0x7F, 0x1F, 4096, 2 * 10**9), Config(Mode.OBSERVE, 0, 0, 0, 0, 0)):
            gate.set_config(config)
            assert gate.config() == config

    def test_the_hold_queue_counts_what_was_taken(self, gate: Gate) -> None:
        redirected, _ = gate.hold_queue()
        gate.take(1 << 40)
        assert gate.hold_queue() == (redirected, 1 << 40)
        gate.take(redirected)

    def test_every_counter_has_a_value(self, gate: Gate) -> None:
        assert list(gate.counters()) == list(Counter)
        assert all(value >= 0 for value in gate.counters().values())

    def test_processes_are_known_until_they_end(self, gate: Gate) -> None:
        tgid = (1 << 31) - 3  # beyond every process that lives
        assert gate.process(tgid) is None
        gate.put_process(tgid, Process(1 << 50, 0))
        gate.put_process(tgid, Process(1 << 51, 9))
        assert gate.process(tgid) == Process(1 << 51, 9)
        assert gate.remove_process(tgid)
        assert not gate.remove_process(tgid)
        assert gate.process(tgid) is None

    def test_of_a_flow_that_was_never_held_there_is_no_note(self, gate: Gate) -> None:
        assert gate.held(FLOW) is None

    def test_every_map_says_how_full_it_is(self, gate: Gate) -> None:
        fill = gate.fill()
        assert set(fill) == {*SIZES, "flow_verdicts", "inbound_flows", "held", "processes"}
        assert {name: most for name, (_, most) in fill.items() if name in SIZES} == SIZES

    # ---- tries

    def test_bits_behind_the_prefix_make_no_difference(self, gate: Gate) -> None:
        for table, one, other in (
            (BOUNDED[3], DestinationKey(2, 6, 0, address(0x1234), 120), DestinationKey(2, 6, 0, address(0x1299), 120)),
            (BOUNDED[5], SourceKey(1, address(0x1234), 120), SourceKey(1, address(0x1299), 120)),
        ):
            table.put(gate, one, ALLOW)
            table.put(gate, other, DENY)
            assert list(table.entries(gate).values()) == [DENY]
            assert table.remove(gate, one)
            assert table.entries(gate) == {}

    @pytest.mark.parametrize("seed", range(20))
    def test_the_longest_prefix_answers(self, gate: Gate, tries: Tries, seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(ROOM):
            bits = chance.choice([0, 96, 104, 120, 127, 128])
            number = VerdictEntry(KernelVerdict.DENY, chance.randint(1, 1 << 20))
            where = address((0xFFFF << 32) | chance.randrange(4))
            gate.put_destination(DestinationKey(2, chance.choice([0, 6]), 0, where, bits), number)
            gate.put_sources([(SourceKey(chance.choice([0, 1]), where, bits), number)])
        destinations, sources = gate.destination_entries(), gate.source_entries()

        def longest(matching: list[tuple[int, VerdictEntry]]) -> int | None:
            return max(matching, key=lambda pair: pair[0])[1].id if matching else None

        def covers(prefix: bytes, bits: int, what: bytes) -> bool:
            shift = 128 - bits
            return int.from_bytes(prefix, "big") >> shift == int.from_bytes(what, "big") >> shift

        for last in range(5):
            what = address((0xFFFF << 32) | last)
            for transport in (0, 6, 17):
                found = tries.longest_destination(DestinationKey(2, transport, 0, what))
                assert (found.id if found else None) == longest(
                    [
                        (known.address_bits, entry)
                        for known, entry in destinations
                        if known.transport == transport and covers(known.address, known.address_bits, what)
                    ]
                )
            for generation in (0, 1, 2):
                found = tries.longest_source(generation, what)
                assert (found.id if found else None) == longest(
                    [
                        (known.address_bits, entry)
                        for known, entry in sources
                        if known.generation == generation and covers(known.address, known.address_bits, what)
                    ]
                )

    def test_names_match_exactly_or_below_a_suffix(self, gate: Gate, tries: Tries) -> None:
        for number, (name_class, name) in enumerate(
            ((1, b"elpmaxe.\0"), (1, b"elpmaxe."), (1, b"elpmaxe.a."), (1, b"elpmaxe.a.b\0"), (16, b"elpmaxe.a.c\0"))
        ):
            gate.put_name(NameKey(name_class, name), VerdictEntry(KernelVerdict.DENY, number + 1))

        def answer(name: str, name_class: int = 1) -> int:
            found = tries.longest_name(name_class, name.encode()[::-1] + b"\0")
            return found.id if found else 0

        assert [answer(name) for name in ("example", "b.example", "b.a.example", "c.a.example", "x.b.a.example")] == [
            0, 2, 4, 3, 3,
        ]  # fmt: skip
        assert (answer("c.a.example", 16), answer("b.a.example", 16), answer("xexample")) == (5, 0, 0)

    def test_the_longest_name_fits_and_a_longer_one_is_refused(self, gate: Gate, tries: Tries) -> None:
        name = b"n" * 199 + b"\0"
        gate.put_name(NameKey(16, name), ALLOW)
        assert gate.name_entries() == [(NameKey(16, name), ALLOW)]
        assert tries.longest_name(16, name) == ALLOW
        with pytest.raises(ValueError, match="too long"):
            gate.put_name(NameKey(16, b"n" + name), ALLOW)
