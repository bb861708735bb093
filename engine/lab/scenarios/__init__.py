"""Every scenario, in the order in which they are played: each leaves the lab as the next one needs it."""

from __future__ import annotations

from engine.lab.scenario import Scenario
from engine.lab.scenarios import addresses, answered, changes, evidence, failure, inbound, names, places

ALL: tuple[Scenario, ...] = (
    *names.BARE,
    *failure.START,
    *names.SCENARIOS,
    *addresses.SCENARIOS,
    *changes.SCENARIOS,
    *inbound.SCENARIOS,
    *answered.SCENARIOS,
    *places.SCENARIOS,
    *failure.SCENARIOS,
    *evidence.SCENARIOS,
)
