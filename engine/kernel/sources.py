"""The maps of bpf/source.c: a policy's prefixes, the limits, what is counted and who is blocked.

A person's word on a source (generation 0) is not here: it stands in `source_verdicts`, which engine.kernel.gate writes.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable, Sequence
from pathlib import Path

from engine.abi.numbers import PLANS
from engine.abi.records import SourceKey
from engine.abi.source import (
    TCP_FLAG_COUNTS,
    TCP_FLAGS,
    Blocked,
    PrefixKey,
    SourceCounter,
    SourceEntry,
    SourcePlan,
    Tracked,
)
from engine.kernel import libbpf
from engine.kernel.maps import Map, PerCpuMap
from engine.ports import MapFullError

_FULL = frozenset({errno.E2BIG, errno.ENOSPC, errno.ENOMEM})
_SLICE = 4096


class KernelSources:
    """Implements engine.runtime.sources.SourceMaps. `put` and `keep` take long with long lists, and may run in a thread
    of their own beside everything else."""

    def __init__(self, maps: Path) -> None:
        self._plans = Map(maps / "source_plans")
        self._prefixes = Map(maps / "source_prefixes")
        self._trie = Map(maps / "source_trie")
        self._tracked = Map(maps / "tracked")
        self._blocked = Map(maps / "blocked")
        self._counters = PerCpuMap(maps / "source_counters")
        self._flags = _FlagCounts(maps / "tcp_flags")

    def set_plan(self, plan: SourcePlan) -> None:
        self._plans.put(_u32(plan.generation % PLANS), plan.pack())

    def plan(self, generation: int) -> SourcePlan:
        """Return the plan in this generation's slot; its own `generation` says whether it is that one."""
        return SourcePlan.unpack(self._plans.get(_u32(generation % PLANS)) or b"")

    def put_hashed(self, entries: Sequence[tuple[PrefixKey, SourceEntry]]) -> None:
        """Write prefixes of lengths that have their place in the hash. MapFullError when there is no room."""
        _put(self._prefixes, [(key.pack(), entry.pack()) for key, entry in entries])

    def put_trie(self, entries: Sequence[tuple[SourceKey, SourceEntry]]) -> None:
        _put(self._trie, [(key.pack(), entry.pack()) for key, entry in entries])

    def keep(self, generations: frozenset[int]) -> int:
        """Remove the prefixes of every other generation. Return how many."""
        removed = _sweep(self._prefixes, lambda key: PrefixKey.unpack(key).generation not in generations)
        return removed + _sweep(self._trie, lambda key: SourceKey.unpack(key).generation not in generations)

    def blocks(self) -> list[tuple[bytes, Blocked]]:
        """Return (address, block) of every source that was blocked and not forgotten since, expired or not."""
        return [(key, Blocked.unpack(value)) for key, value in self._blocked.items()]

    def tracked(self, address: bytes) -> Tracked | None:
        value = self._tracked.get(address)
        return None if value is None else Tracked.unpack(value)

    def lift(self, address: bytes) -> bool:
        """End a block, and forget what the source was counted for. False when there was none."""
        self._tracked.remove(address)
        return self._blocked.remove(address)

    def flags(self) -> dict[str, int]:
        """Return how many TCP segments had each flag since the maps were made: never less than before."""
        return dict(zip(TCP_FLAGS, self._flags.totals(), strict=True))

    def counters(self) -> dict[SourceCounter, int]:
        return dict(zip(SourceCounter, self._counters.sums(), strict=True))

    def fill(self) -> dict[str, tuple[int, int]]:
        """Return {map: (entries, most)} of the tables that evict. Walks the keys."""
        return {map_.name: (sum(1 for _ in map_.walk()), map_.max_entries) for map_ in (self._tracked, self._blocked)}

    def room(self) -> tuple[int, int]:
        """Return how many prefixes fit into the hash and into the trie."""
        return self._prefixes.max_entries, self._trie.max_entries

    def close(self) -> None:
        for map_ in (
            self._plans, self._prefixes, self._trie, self._tracked, self._blocked, self._counters, self._flags,
        ):  # fmt: skip
            map_.close()


class _FlagCounts(PerCpuMap):
    """One value of eight counts for every CPU."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._counts = ctypes.create_string_buffer(self.value_size * self._cpus)

    def totals(self) -> list[int]:
        libbpf.map_lookup(self.fd, bytes(4), self._counts)
        each = list(TCP_FLAG_COUNTS.iter_unpack(self._counts))
        return [sum(counts[flag] for counts in each) for flag in range(len(TCP_FLAGS))]


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


def _put(map_: Map, entries: Sequence[tuple[bytes, bytes]]) -> None:
    try:
        for at in range(0, len(entries), _SLICE):
            map_.put_all(entries[at : at + _SLICE])
    except OSError as error:
        if error.errno in _FULL:
            raise MapFullError(map_.name) from error
        raise


def _sweep(map_: Map, gone: Callable[[bytes], bool]) -> int:
    """Remove keys while walking: the next one is asked for before this one goes, so that the walk keeps its place and
    a million keys need no room here."""
    removed = 0
    keys = map_.walk()
    key = next(keys, None)
    while key is not None:
        following = next(keys, None)
        if gone(key):
            removed += map_.remove(key)
        key = following
    return removed
