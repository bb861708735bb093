"""A map that fills up is told of once, and once again only after it fell."""

from __future__ import annotations

import pytest

from engine.alerts.alert import Kind
from engine.ports import MapFullError
from engine.runtime.gauge import Gauge
from engine.runtime.troubles import Troubles

MOST = 100


class Told:
    """What a person gets to hear: `said`, in order; `standing`, what `status` shows."""

    def __init__(self) -> None:
        self.said: list[tuple[Kind, str]] = []
        self.troubles = Troubles(self, self, lambda: 1)  # type: ignore[arg-type]
        self.gauge = Gauge(self.troubles)

    def submit(self, alert: object) -> None:
        self.said.append((alert.kind, alert.summary))  # type: ignore[attr-defined]

    def note(self, kind: str, /, **detail: object) -> None:
        """The journal hears the same."""

    def reads(self, *entries: int, name: str = "connect_verdicts") -> int:
        """Look at the map once for each; return how many alerts came of it."""
        before = len(self.said)
        for each in entries:
            self.gauge.read({name: (each, MOST)})
        return len(self.said) - before


@pytest.fixture
def told() -> Told:
    return Told()


def test_eighty_per_cent_is_told_once(told: Told) -> None:
    assert told.reads(0, 79) == 0
    assert told.reads(80, 81, 99, 100) == 1
    assert told.said == [(Kind.MAP_FULL, "the map connect_verdicts is over 80% full")]
    assert told.troubles.standing == ["the map connect_verdicts is over 80% full"]


def test_hovering_there_is_not_told_again(told: Told) -> None:
    assert told.reads(80, 79, 80, 70, 80) == 1
    assert told.troubles.standing != []


def test_after_it_fell_it_is_told_again(told: Told) -> None:
    assert told.reads(80, 69) == 1
    assert told.troubles.standing == []
    assert told.reads(79, 80) == 1


def test_a_refused_entry_is_told_once_until_it_fell(told: Told) -> None:
    for _ in range(3):
        told.gauge.refused(MapFullError("connect_verdicts"))
    assert told.reads(100) == 1
    told.gauge.refused(MapFullError("connect_verdicts"))
    assert [summary for _, summary in told.said] == [
        "The kernel map connect_verdicts is full", "the map connect_verdicts is over 80% full",
    ]  # fmt: skip
    assert told.reads(10) == 0
    assert told.troubles.standing == []
    told.gauge.refused(MapFullError("connect_verdicts"))
    assert len(told.said) == 3


def test_each_map_is_told_of_for_itself(told: Told) -> None:
    assert told.reads(90) + told.reads(90, name="name_verdicts") == 2


@pytest.mark.parametrize("name", ["flow_verdicts", "held", "processes"])
def test_maps_that_make_room_by_themselves_are_not_told_of(told: Told, name: str) -> None:
    assert told.reads(100, name=name) == 0
