"""The gate's maps without a kernel: engine.ports.Gate over dictionaries, bounded and looked up as the kernel does it.

tests/conformance holds it and the real maps to one suite, so that what a test proves here is true there too.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

from engine.abi.numbers import PLANS, Counter
from engine.abi.records import (
    Config,
    ConnectKey,
    DestinationKey,
    FlowKey,
    Held,
    InboundFlow,
    KeptHello,
    NameKey,
    Plan,
    Process,
    SourceKey,
    StrategyKey,
    Tuple,
    VerdictEntry,
)
from engine.ports import MapFullError

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

SIZES = {
    "destinations": 262_144,
    "source_verdicts": 1_048_576,
    "name_verdicts": 524_288,
    "strategies": 16_384,
    "connect_verdicts": 262_144,
    "classes": 65_536,
    "flow_verdicts": 65_536,
    "inbound_flows": 65_536,
    "held": 16_384,
    "processes": 32_768,
}
"""Entries of each map, as bpf/include/abi.h has them."""
HELLOS = 4096


class _Hash(Generic[K, V]):
    """A hash map: full is full, but what is there can be replaced."""

    def __init__(self, name: str, size: int, identity: Callable[[K], Hashable] = lambda key: key) -> None:
        self.name = name
        self.size = size
        self._identity = identity
        self._entries: OrderedDict[Hashable, tuple[K, V]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: K, value: V) -> None:
        same = self._identity(key)
        if same not in self._entries and len(self._entries) >= self.size:
            self.make_room()
        self._entries[same] = key, value

    def make_room(self) -> None:
        raise MapFullError(self.name)

    def get(self, key: K) -> V | None:
        found = self._entries.get(self._identity(key))
        return None if found is None else found[1]

    def remove(self, key: K) -> bool:
        return self._entries.pop(self._identity(key), None) is not None

    def items(self) -> list[tuple[K, V]]:
        return list(self._entries.values())


class _Lru(_Hash[K, V]):
    """An LRU hash: the least recently used makes room. (The kernel's is only roughly that, per CPU.)"""

    def make_room(self) -> None:
        self._entries.popitem(last=False)

    def get(self, key: K) -> V | None:
        if self._identity(key) in self._entries:
            self._entries.move_to_end(self._identity(key))
        return super().get(key)


def masked(address: bytes, bits: int) -> bytes:
    """Return the address with everything behind its first `bits` zero: what a trie tells apart."""
    keep = ((1 << bits) - 1) << (128 - bits)
    return (int.from_bytes(address, "big") & keep).to_bytes(16, "big")


def _destination(key: DestinationKey) -> Hashable:
    return key._replace(address=masked(key.address, key.address_bits))


def _source(key: SourceKey) -> Hashable:
    return key._replace(address=masked(key.address, key.address_bits))


class SimulatedGate:
    """Implements engine.ports.Gate. `calls` is every write in order; `sizes` replaces entries of SIZES; `clock` is
    CLOCK_MONOTONIC in ns."""

    def __init__(self, sizes: Mapping[str, int] | None = None, clock: Callable[[], int] | None = None) -> None:
        size = {**SIZES, **(sizes or {})}
        self.clock = clock or (lambda: time.clock_gettime_ns(time.CLOCK_MONOTONIC))
        self.calls: list[tuple[str, object]] = []
        self.beaten = 0
        self._config = Config(0, 0, 0, 0, 0, 0)
        self._generation = 0
        self._plans = [Plan(0, (), ())] * PLANS
        self._taken = 0
        self.redirected = 0
        self.counted = dict.fromkeys(Counter, 0)
        self.destinations = _Hash[DestinationKey, VerdictEntry]("destinations", size["destinations"], _destination)
        self.sources = _Hash[SourceKey, VerdictEntry]("source_verdicts", size["source_verdicts"], _source)
        self.names = _Hash[NameKey, VerdictEntry]("name_verdicts", size["name_verdicts"])
        self.strategies = _Hash[StrategyKey, VerdictEntry]("strategies", size["strategies"])
        self.connects = _Hash[ConnectKey, VerdictEntry]("connect_verdicts", size["connect_verdicts"])
        self.classes = _Hash[ConnectKey, int]("classes", size["classes"])
        self.flows = _Lru[FlowKey, VerdictEntry]("flow_verdicts", size["flow_verdicts"])
        self.inbounds = _Lru[Tuple, InboundFlow]("inbound_flows", size["inbound_flows"])
        self.notes = _Lru[Tuple, Held]("held", size["held"])
        self.processes = _Lru[int, Process]("processes", size["processes"])
        self.hellos: dict[int, KeptHello] = {}

    # ---- engine.ports.Gate

    def config(self) -> Config:
        return self._config

    def set_config(self, config: Config) -> None:
        self.calls.append(("config", config))
        self._config = config

    def generation(self) -> int:
        return self._generation

    def set_generation(self, number: int) -> None:
        self.calls.append(("generation", number))
        self._generation = number

    def plan(self, generation: int) -> Plan:
        return self._plans[generation % PLANS]

    def set_plan(self, plan: Plan) -> None:
        self.calls.append(("plan", plan))
        self._plans[plan.generation % PLANS] = Plan.unpack(plan.pack())

    def beat(self) -> None:
        self.beaten = self.clock()

    def take(self, frames: int) -> None:
        self._taken = frames

    def hold_queue(self) -> tuple[int, int]:
        return self.redirected, self._taken

    def counters(self) -> dict[Counter, int]:
        return dict(self.counted)

    def put_connect(self, key: ConnectKey, entry: VerdictEntry) -> None:
        self._put(self.connects, "connect", key, entry)

    def put_class(self, key: ConnectKey, number: int) -> None:
        self._put(self.classes, "class", key, number)

    def put_name(self, key: NameKey, entry: VerdictEntry) -> None:
        self._put(self.names, "name", NameKey.unpack(key.pack()), entry)

    def put_flow(self, key: FlowKey, entry: VerdictEntry) -> None:
        self._put(self.flows, "flow", key, entry)

    def put_inbound(self, flow: Tuple, state: InboundFlow) -> None:
        self._put(self.inbounds, "inbound", flow, state)

    def put_destination(self, key: DestinationKey, entry: VerdictEntry) -> None:
        self._put(self.destinations, "destination", DestinationKey.unpack(key.pack()), entry)

    def put_strategy(self, key: StrategyKey, entry: VerdictEntry) -> None:
        self._put(self.strategies, "strategy", StrategyKey.unpack(key.pack()), entry)

    def put_sources(self, entries: Sequence[tuple[SourceKey, VerdictEntry]]) -> None:
        for key, entry in entries:
            self._put(self.sources, "source", SourceKey.unpack(key.pack()), entry)

    def _put(self, table: _Hash[K, V], what: str, key: K, value: V) -> None:
        table.put(key, value)
        self.calls.append((what, (key, value)))

    def remove_connect(self, key: ConnectKey) -> bool:
        return self.connects.remove(key)

    def remove_class(self, key: ConnectKey) -> bool:
        return self.classes.remove(key)

    def remove_name(self, key: NameKey) -> bool:
        return self.names.remove(key)

    def remove_flow(self, key: FlowKey) -> bool:
        return self.flows.remove(key)

    def remove_destination(self, key: DestinationKey) -> bool:
        return self.destinations.remove(key)

    def remove_strategy(self, key: StrategyKey) -> bool:
        return self.strategies.remove(key)

    def remove_source(self, key: SourceKey) -> bool:
        return self.sources.remove(key)

    def connect_entries(self) -> list[tuple[ConnectKey, VerdictEntry]]:
        return self.connects.items()

    def class_entries(self) -> list[tuple[ConnectKey, int]]:
        return self.classes.items()

    def name_entries(self) -> list[tuple[NameKey, VerdictEntry]]:
        return self.names.items()

    def destination_entries(self) -> list[tuple[DestinationKey, VerdictEntry]]:
        return self.destinations.items()

    def strategy_entries(self) -> list[tuple[StrategyKey, VerdictEntry]]:
        return self.strategies.items()

    def source_entries(self) -> list[tuple[SourceKey, VerdictEntry]]:
        return self.sources.items()

    def flow_entries(self) -> list[tuple[FlowKey, VerdictEntry]]:
        return self.flows.items()

    def inbound_entries(self) -> list[tuple[Tuple, InboundFlow]]:
        return self.inbounds.items()

    def fill(self) -> dict[str, tuple[int, int]]:
        tables: Iterable[_Hash[object, object]] = (
            self.destinations, self.sources, self.names, self.strategies, self.connects, self.classes, self.flows,
            self.inbounds, self.notes, self.processes,
        )  # type: ignore[assignment]  # fmt: skip
        return {table.name: (len(table), table.size) for table in tables}

    def held(self, flow: Tuple) -> Held | None:
        return self.notes.get(flow)

    def inbound(self, flow: Tuple) -> InboundFlow | None:
        return self.inbounds.get(flow)

    def kept_hello(self, cookie: int) -> KeptHello | None:
        kept = self.hellos.get(cookie % HELLOS)
        return kept if kept is not None and kept.content else None

    def process(self, tgid: int) -> Process | None:
        return self.processes.get(tgid)

    def put_process(self, tgid: int, process: Process) -> None:
        self._put(self.processes, "process", tgid, process)

    def remove_process(self, tgid: int) -> bool:
        return self.processes.remove(tgid)

    # ---- look-ups, as the programs make them

    def standing(self, entry: VerdictEntry | None) -> VerdictEntry | None:
        """Return the entry unless it has expired."""
        return None if entry is None or (entry.expires and self.clock() >= entry.expires) else entry

    def longest_destination(self, key: DestinationKey) -> VerdictEntry | None:
        """The trie's answer: of the prefixes that cover the address, the longest; whether it still stands or not."""
        covering = [
            (known.address_bits, entry)
            for known, entry in self.destinations.items()
            if known[:3] == key[:3] and masked(key.address, known.address_bits) == masked(known.address, known[4])
        ]
        return max(covering, key=lambda pair: pair[0], default=(0, None))[1]

    def longest_source(self, generation: int, address: bytes) -> VerdictEntry | None:
        covering = [
            (known.address_bits, entry)
            for known, entry in self.sources.items()
            if known.generation == generation
            and masked(address, known.address_bits) == masked(known.address, known.address_bits)
        ]
        return max(covering, key=lambda pair: pair[0], default=(0, None))[1]

    def longest_name(self, name_class: int, name: bytes) -> VerdictEntry | None:
        """`name`: reversed, with its NUL."""
        covering = [
            (len(known.reversed_name), entry)
            for known, entry in self.names.items()
            if known.name_class == name_class and name.startswith(known.reversed_name)
        ]
        return max(covering, key=lambda pair: pair[0], default=(0, None))[1]
