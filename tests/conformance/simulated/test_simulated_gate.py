"""The simulated maps keep what engine.ports.Gate promises."""

from __future__ import annotations

import pytest

from engine.abi.records import KeptHello
from tests.conformance.gate import HELLOS, SIZES, GateSuite, Keep
from tests.support.simulator import SimulatedGate


class TestSimulatedGate(GateSuite):
    @pytest.fixture
    def gate(self) -> SimulatedGate:
        return SimulatedGate(SIZES | {"flow_verdicts": 64})

    @pytest.fixture
    def keep(self, gate: SimulatedGate) -> Keep:
        def keep(cookie: int, hello: KeptHello) -> None:
            gate.hellos[cookie % HELLOS] = hello

        return keep

    @pytest.fixture
    def tries(self, gate: SimulatedGate) -> SimulatedGate:
        return gate
