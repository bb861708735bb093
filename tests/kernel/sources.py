"""Sources under test: the engine's own writer over the pinned maps, and the program run frame by frame."""

from __future__ import annotations

import asyncio
import ctypes
import ipaddress
import os
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, cast

from engine.abi.numbers import Counter, DestinationClass, Mode, Present
from engine.abi.records import DestinationKey, SourceKey, VerdictEntry
from engine.abi.source import EVENT_BLOCKED, SourceCounter, SourceEvent
from engine.alerts.alert import Alert
from engine.kernel import libbpf
from engine.kernel.maps import Map
from engine.kernel.sources import KernelSources
from engine.policy.sources import Prefixes, SourceRules
from engine.runtime.identify import network_bits
from engine.runtime.sources import Sources
from tests.kernel.lab import ALLOW, DENY, DEVICE, Watch
from tests.support.rig import Diary

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Action(IntEnum):
    """XDP_* of linux/bpf.h."""

    ABORTED = 0
    DROP = 1
    PASS = 2


class _TestRun(ctypes.Structure):
    """struct bpf_test_run_opts (libbpf 1.0)."""

    _fields_ = (
        ("sz", ctypes.c_size_t), ("data_in", ctypes.c_void_p), ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32), ("data_size_out", ctypes.c_uint32), ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p), ("ctx_size_in", ctypes.c_uint32), ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32), ("repeat", ctypes.c_int), ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32), ("cpu", ctypes.c_uint32), ("batch_size", ctypes.c_uint32),
    )  # fmt: skip


def run(program: int, frame: bytes) -> Action:
    """Run an XDP program once on a frame (BPF_PROG_TEST_RUN); return what it says."""
    given, taken = ctypes.create_string_buffer(frame, len(frame)), ctypes.create_string_buffer(1 << 16)
    options = _TestRun(
        sz=ctypes.sizeof(_TestRun), data_in=ctypes.addressof(given), data_size_in=len(frame),
        data_out=ctypes.addressof(taken), data_size_out=len(taken), repeat=1,
    )  # fmt: skip
    library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    if library.bpf_prog_test_run_opts(program, ctypes.byref(options)) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return Action(options.retval)


@dataclass
class Desk:
    """Sources as the engine keeps them, for the generation of a watch."""

    watch: Watch
    program: int = -1
    maps: KernelSources = field(init=False)
    alerts: list[Alert] = field(default_factory=list)
    diary: Diary = field(default_factory=Diary)
    sources: Sources = field(init=False)

    def __post_init__(self) -> None:
        pins = self.watch.lab.pins
        self.program = libbpf.obj_get(pins.programs / "gate_source")
        self.maps = KernelSources(pins.maps)
        self.maps.keep(frozenset())
        for name in ("blocked", "tracked"):
            table = Map(pins.maps / name)
            for address in list(table.walk()):
                table.remove(address)
            table.close()
        self.sources = Sources(self.maps, cast("Any", self.diary), self.alerts.append, str)
        self._before = self.maps.counters()
        self._flags = self.maps.flags()

    def close(self) -> None:
        self.maps.close()
        os.close(self.program)

    @property
    def ifindex(self) -> int:
        assert self.watch.lab.loaded is not None
        return self.watch.lab.loaded.interfaces[DEVICE]

    def say(self, *, deny: tuple[str, ...] = (), allow: tuple[str, ...] = (), **limits: Any) -> None:
        """Let the policy in force say this of sources."""
        rules = SourceRules(Prefixes.of(deny), Prefixes.of(allow), **limits)
        asyncio.run(self.sources.prepare(self.watch.generation, rules))
        self.look()

    def look(self, present: Present = Present.SOURCE, mode: Mode = Mode.ENFORCE, **changes: int) -> None:
        self.watch.configure(present=present, mode=mode, **changes)

    def word(self, prefix: str, entry: VerdictEntry = DENY) -> None:
        """A person's word on a source."""
        network = ipaddress.ip_network(prefix)
        address, bits = network_bits(network)
        self.watch.gate.put_sources([(SourceKey(0, address, bits), entry)])

    def never_deny(self, prefix: str, port: int = 0, transport: int = 0) -> None:
        network = ipaddress.ip_network(prefix)
        address, bits = network_bits(network)
        self.watch.gate.put_destination(
            DestinationKey(DestinationClass.NEVER_DENY, transport, port, address, bits), ALLOW
        )

    def run(self, frame: bytes) -> Action:
        return run(self.program, frame)

    def counted(self) -> dict[SourceCounter, int]:
        """What the program counted since the desk was opened, without zeros and without all the frames it saw."""
        now = self.maps.counters()
        return {
            counter: now[counter] - self._before[counter]
            for counter in now
            if now[counter] != self._before[counter] and counter is not SourceCounter.FRAMES
        }

    def frames(self) -> int:
        return self.maps.counters()[SourceCounter.FRAMES] - self._before[SourceCounter.FRAMES]

    def flags(self) -> dict[str, int]:
        now = self.maps.flags()
        return {flag: now[flag] - self._flags[flag] for flag in now if now[flag] != self._flags[flag]}

    def dropped(self) -> int:
        return self.watch.counted().get(Counter.DROPPED_SOURCE, 0)

    def events(self) -> list[SourceEvent]:
        """Take the blocks that the ring tells of, and hand them to the engine's own reader."""
        records: list[bytes] = []
        self.watch.ring.drain(records.append, 1 << 20)
        ours = [record for record in records if int.from_bytes(record[8:12], "little") == EVENT_BLOCKED]
        assert all(self.sources.record(record) for record in ours)
        return [SourceEvent.unpack(record) for record in ours]
