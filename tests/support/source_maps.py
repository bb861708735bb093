"""The maps of bpf/source.c without a kernel: engine.runtime.sources.SourceMaps over dictionaries."""

from __future__ import annotations

from collections.abc import Sequence

from engine.abi.numbers import PLANS
from engine.abi.records import SourceKey
from engine.abi.source import TCP_FLAGS, Blocked, PrefixKey, SourceCounter, SourceEntry, SourcePlan
from engine.ports import MapFullError


class SimulatedSources:
    """`calls` gets every write in order; `room`: prefixes that each of the two tables takes."""

    def __init__(self, calls: list[tuple[str, object]], room: int = 1 << 20) -> None:
        self.calls = calls
        self._room = room
        self.hashed: dict[PrefixKey, SourceEntry] = {}
        self.trie: dict[SourceKey, SourceEntry] = {}
        self.blocked: dict[bytes, Blocked] = {}
        self.counted = dict.fromkeys(SourceCounter, 0)
        self._plans = [SourcePlan(0)] * PLANS

    def plan(self, generation: int) -> SourcePlan:
        return self._plans[generation % PLANS]

    def set_plan(self, plan: SourcePlan) -> None:
        self.calls.append(("source plan", plan))
        self._plans[plan.generation % PLANS] = SourcePlan.unpack(plan.pack())

    def put_hashed(self, entries: Sequence[tuple[PrefixKey, SourceEntry]]) -> None:
        for key, entry in entries:
            if key not in self.hashed and len(self.hashed) >= self._room:
                raise MapFullError("source_prefixes")
            self.hashed[key] = entry
            self.calls.append(("source", key))

    def put_trie(self, entries: Sequence[tuple[SourceKey, SourceEntry]]) -> None:
        for key, entry in entries:
            if key not in self.trie and len(self.trie) >= self._room:
                raise MapFullError("source_trie")
            self.trie[key] = entry
            self.calls.append(("source", key))

    def keep(self, generations: frozenset[int]) -> int:
        before = len(self.hashed) + len(self.trie)
        self.hashed = {key: entry for key, entry in self.hashed.items() if key.generation in generations}
        self.trie = {key: entry for key, entry in self.trie.items() if key.generation in generations}
        return before - len(self.hashed) - len(self.trie)

    def blocks(self) -> list[tuple[bytes, Blocked]]:
        return list(self.blocked.items())

    def lift(self, address: bytes) -> bool:
        return self.blocked.pop(address, None) is not None

    def flags(self) -> dict[str, int]:
        return dict.fromkeys(TCP_FLAGS, 0)

    def fill(self) -> dict[str, tuple[int, int]]:
        return {"blocked": (len(self.blocked), 16384)}

    def room(self) -> tuple[int, int]:
        return self._room, self._room

    def counters(self) -> dict[SourceCounter, int]:
        return dict(self.counted)
