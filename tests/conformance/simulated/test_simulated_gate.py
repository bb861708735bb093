"""The simulated maps keep what engine.ports.Gate promises."""

from __future__ import annotations

import pytest

from tests.conformance.gate import SIZES, GateSuite
from tests.support.simulator import SimulatedGate


class TestSimulatedGate(GateSuite):
    @pytest.fixture
    def gate(self) -> SimulatedGate:
        return SimulatedGate(SIZES | {"flow_verdicts": 64})

    @pytest.fixture
    def tries(self, gate: SimulatedGate) -> SimulatedGate:
        return gate
