"""The kernel's maps keep what engine.ports.Gate promises."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.abi.records import KEPT_HELLO, DestinationKey, KeptHello, NameKey, SourceKey, VerdictEntry
from engine.kernel.gate import KernelGate
from engine.kernel.maps import Map
from tests.conformance.gate import HELLOS, ROOM, GateSuite, Keep
from tests.kernel.lab import Lab


class KernelTries:
    """A look-up from user space is the programs' own: the longest prefix."""

    def __init__(self, maps: Path) -> None:
        self._destinations, self._sources, self._names = (
            Map(maps / name) for name in ("destinations", "source_verdicts", "name_verdicts")
        )

    @staticmethod
    def _entry(value: bytes | None) -> VerdictEntry | None:
        return None if value is None else VerdictEntry.unpack(value)

    def longest_destination(self, key: DestinationKey) -> VerdictEntry | None:
        return self._entry(self._destinations.get(key.pack()))

    def longest_source(self, generation: int, address: bytes) -> VerdictEntry | None:
        return self._entry(self._sources.get(SourceKey(generation, address).pack()))

    def longest_name(self, name_class: int, name: bytes) -> VerdictEntry | None:
        return self._entry(self._names.get(NameKey(name_class, name).pack()))

    def close(self) -> None:
        for one in (self._destinations, self._sources, self._names):
            one.close()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    lab = Lab()
    names = ("CONNECT_VERDICTS", "CLASSES", "NAME_VERDICTS", "DESTINATIONS", "STRATEGIES", "SOURCES")
    try:
        lab.load(mode="observe", sizes={f"{name}_MAX": ROOM for name in names} | {"FLOW_VERDICTS_MAX": 1024})
        yield lab
    finally:
        lab.close()


class TestKernelGate(GateSuite):
    @pytest.fixture
    def gate(self, lab: Lab) -> Iterator[KernelGate]:
        gate = KernelGate(lab.pins.maps)
        for kind in ("connect", "class", "name", "destination", "strategy", "source", "flow"):
            for key, _ in getattr(gate, f"{kind}_entries")():
                getattr(gate, f"remove_{kind}")(key)
        yield gate
        gate.close()

    @pytest.fixture
    def keep(self, lab: Lab) -> Iterator[Keep]:
        hellos, written = Map(lab.pins.maps / "hellos"), set()
        assert hellos.max_entries == HELLOS

        def keep(cookie: int, hello: KeptHello) -> None:
            written.add((cookie % HELLOS).to_bytes(4, "little"))
            hellos.put((cookie % HELLOS).to_bytes(4, "little"), hello.pack())

        yield keep
        for place in written:
            hellos.put(place, bytes(KEPT_HELLO.size))
        hellos.close()

    @pytest.fixture
    def tries(self, lab: Lab) -> Iterator[KernelTries]:
        tries = KernelTries(lab.pins.maps)
        yield tries
        tries.close()
