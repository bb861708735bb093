"""How full the kernel's maps are, and who hears of it: before they are full, once."""

from __future__ import annotations

from collections.abc import Mapping

from engine.alerts.alert import Kind
from engine.ports import MapFullError
from engine.runtime.troubles import Troubles

ALARM, CALM = 0.8, 0.7
"""Told above the one, and again only after it fell below the other: a map that hovers there is told of once."""
EVICTING = frozenset({"flow_verdicts", "inbound_flows", "held", "processes", "tracked", "blocked"})
"""Maps that make room by themselves: full is how they are."""


class Gauge:
    def __init__(self, troubles: Troubles) -> None:
        self._troubles = troubles

    def read(self, fill: Mapping[str, tuple[int, int]]) -> None:
        """Take what each map holds and how much it may hold."""
        for name, (entries, most) in fill.items():
            if name in EVICTING:
                continue
            if entries >= ALARM * most:
                self._troubles.begin(_filling(name), f"the map {name} is over {ALARM:.0%} full", Kind.MAP_FULL)
            elif entries < CALM * most:
                self._troubles.over(_filling(name))
                self._troubles.over(_full(name))

    def refused(self, error: MapFullError) -> None:
        """An entry found no room."""
        self._troubles.begin(_full(error.map_name), error.message, Kind.MAP_FULL)


def _filling(name: str) -> str:
    return f"map {name} filling"


def _full(name: str) -> str:
    return f"map {name} full"
