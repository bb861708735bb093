"""The gate as the engine sees it: typed entries in, typed entries out, over the pinned maps.

The only writer of these maps besides the programs themselves. It knows nothing of policies: what an entry means is
decided in engine.runtime.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from pathlib import Path

from engine.abi.numbers import Counter
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
from engine.kernel.maps import Map, PerCpuMap
from engine.ports import MapFullError

_ZERO = bytes(4)
_FULL = frozenset({errno.E2BIG, errno.ENOSPC, errno.ENOMEM})


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


class KernelGate:
    """Implements engine.ports.Gate."""

    def __init__(self, maps: Path) -> None:
        self._config = Map(maps / "config")
        self._generation = Map(maps / "generation")
        self._plans = Map(maps / "plans")
        self._heartbeat = Map(maps / "heartbeat")
        self._hold_queue = Map(maps / "hold_queue")
        self._counters = PerCpuMap(maps / "counters")
        self._processes = Map(maps / "processes")
        self._destinations = Map(maps / "destinations")
        self._sources = Map(maps / "source_verdicts")
        self._names = Map(maps / "name_verdicts")
        self._strategies = Map(maps / "strategies")
        self._connect = Map(maps / "connect_verdicts")
        self._classes = Map(maps / "classes")
        self._flows = Map(maps / "flow_verdicts")
        self._inbound = Map(maps / "inbound_flows")
        self._held = Map(maps / "held")
        self._hellos = Map(maps / "hellos")
        self._maps = {
            map_.name: map_
            for map_ in (
                self._destinations, self._sources, self._names, self._strategies, self._connect, self._classes,
                self._flows, self._inbound, self._held, self._processes,
            )
        }  # fmt: skip

    # ---- switches

    def config(self) -> Config:
        return Config.unpack(self._config.get(_ZERO) or bytes(self._config.value_size))

    def set_config(self, config: Config) -> None:
        self._config.put(_ZERO, config.pack())

    def generation(self) -> int:
        return int.from_bytes(self._generation.get(_ZERO) or b"", "little")

    def set_generation(self, number: int) -> None:
        """Put a generation in force: one write. Its plan must stand already."""
        self._generation.put(_ZERO, _u32(number))

    def set_plan(self, plan: Plan) -> None:
        self._plans.put(_u32(plan.generation % self._plans.max_entries), plan.pack())

    def plan(self, generation: int) -> Plan:
        """Return the plan in this generation's slot; its own `generation` says whether it is that one."""
        return Plan.unpack(self._plans.get(_u32(generation % self._plans.max_entries)) or b"")

    def beat(self) -> None:
        """Say that the engine is alive."""
        self._heartbeat.put(_ZERO, time.clock_gettime_ns(time.CLOCK_MONOTONIC).to_bytes(8, "little"))

    def take(self, frames: int) -> None:
        """Say that `frames` frames have been taken out of the hold queue since it was created."""
        self._hold_queue.put(_u32(1), frames.to_bytes(8, "little"))

    def hold_queue(self) -> tuple[int, int]:
        """Return (frames redirected, frames taken)."""
        redirected, taken = (self._hold_queue.get(_u32(index)) or b"" for index in (0, 1))
        return int.from_bytes(redirected, "little"), int.from_bytes(taken, "little")

    def counters(self) -> dict[Counter, int]:
        return dict(zip(Counter, self._counters.sums(), strict=True))

    # ---- verdicts

    @staticmethod
    def _put(map_: Map, key: bytes, value: bytes) -> None:
        try:
            map_.put(key, value)
        except OSError as error:
            if error.errno in _FULL:
                raise MapFullError(map_.name) from error
            raise

    def put_connect(self, key: ConnectKey, entry: VerdictEntry) -> None:
        self._put(self._connect, key.pack(), entry.pack())

    def put_class(self, key: ConnectKey, number: int) -> None:
        self._put(self._classes, key.pack(), _u32(number))

    def put_name(self, key: NameKey, entry: VerdictEntry) -> None:
        self._put(self._names, key.pack(), entry.pack())

    def put_flow(self, key: FlowKey, entry: VerdictEntry) -> None:
        self._put(self._flows, key.pack(), entry.pack_of_flow())

    def put_inbound(self, flow: Tuple, state: InboundFlow) -> None:
        self._put(self._inbound, flow.pack(), state.pack())

    def put_destination(self, key: DestinationKey, entry: VerdictEntry) -> None:
        self._put(self._destinations, key.pack(), entry.pack())

    def put_strategy(self, key: StrategyKey, entry: VerdictEntry) -> None:
        self._put(self._strategies, key.pack(), entry.pack())

    def put_sources(self, entries: Sequence[tuple[SourceKey, VerdictEntry]]) -> None:
        packed = [(key.pack(), entry.pack()) for key, entry in entries]
        try:
            self._sources.put_all(packed)
        except OSError as error:
            if error.errno in _FULL:
                raise MapFullError(self._sources.name) from error
            raise

    def remove_connect(self, key: ConnectKey) -> bool:
        return self._connect.remove(key.pack())

    def remove_class(self, key: ConnectKey) -> bool:
        return self._classes.remove(key.pack())

    def remove_name(self, key: NameKey) -> bool:
        return self._names.remove(key.pack())

    def remove_flow(self, key: FlowKey) -> bool:
        return self._flows.remove(key.pack())

    def remove_destination(self, key: DestinationKey) -> bool:
        return self._destinations.remove(key.pack())

    def remove_strategy(self, key: StrategyKey) -> bool:
        return self._strategies.remove(key.pack())

    def remove_source(self, key: SourceKey) -> bool:
        return self._sources.remove(key.pack())

    # ---- what stands

    def connect_entries(self) -> list[tuple[ConnectKey, VerdictEntry]]:
        return [(ConnectKey.unpack(key), VerdictEntry.unpack(value)) for key, value in self._connect.items()]

    def class_entries(self) -> list[tuple[ConnectKey, int]]:
        return [(ConnectKey.unpack(key), int.from_bytes(value, "little")) for key, value in self._classes.items()]

    def name_entries(self) -> list[tuple[NameKey, VerdictEntry]]:
        return [(NameKey.unpack(key), VerdictEntry.unpack(value)) for key, value in self._names.items()]

    def destination_entries(self) -> list[tuple[DestinationKey, VerdictEntry]]:
        return [(DestinationKey.unpack(key), VerdictEntry.unpack(value)) for key, value in self._destinations.items()]

    def strategy_entries(self) -> list[tuple[StrategyKey, VerdictEntry]]:
        return [(StrategyKey.unpack(key), VerdictEntry.unpack(value)) for key, value in self._strategies.items()]

    def source_entries(self) -> list[tuple[SourceKey, VerdictEntry]]:
        return [(SourceKey.unpack(key), VerdictEntry.unpack(value)) for key, value in self._sources.items()]

    def flow_entries(self) -> list[tuple[FlowKey, VerdictEntry]]:
        return [(FlowKey.unpack(key), VerdictEntry.unpack_of_flow(value)) for key, value in self._flows.items()]

    def inbound_entries(self) -> list[tuple[Tuple, InboundFlow]]:
        return [(Tuple.unpack(key), InboundFlow.unpack(value)) for key, value in self._inbound.items()]

    def fill(self) -> dict[str, tuple[int, int]]:
        """Return {map: (entries, most)}. Walks the keys: for `status`, not for the packet path."""
        return {name: (sum(1 for _ in map_.walk()), map_.max_entries) for name, map_ in self._maps.items()}

    # ---- flows and processes

    def held(self, flow: Tuple) -> Held | None:
        """Return what the gate noted of the held frame of this flow."""
        value = self._held.get(flow.pack())
        return None if value is None else Held.unpack(value)

    def inbound(self, flow: Tuple) -> InboundFlow | None:
        """Return what is known of a flow by the tuple of the packets that come in."""
        value = self._inbound.get(flow.pack())
        return None if value is None else InboundFlow.unpack(value)

    def kept_hello(self, cookie: int) -> KeptHello | None:
        """Return what is kept where a socket's hello would be: it may be another one's. None: nothing."""
        value = self._hellos.get(_u32(cookie % self._hellos.max_entries))
        kept = None if value is None else KeptHello.unpack(value)
        return kept if kept is not None and kept.content else None

    def process(self, tgid: int) -> Process | None:
        value = self._processes.get(_u32(tgid))
        return None if value is None else Process.unpack(value)

    def put_process(self, tgid: int, process: Process) -> None:
        self._put(self._processes, _u32(tgid), process.pack())

    def remove_process(self, tgid: int) -> bool:
        return self._processes.remove(_u32(tgid))

    def close(self) -> None:
        for map_ in (
            self._config, self._generation, self._plans, self._heartbeat, self._hold_queue, self._counters,
            self._hellos, *self._maps.values(),
        ):  # fmt: skip
            map_.close()
