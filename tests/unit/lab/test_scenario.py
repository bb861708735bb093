"""Playing a scenario: nothing passes that was not seen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from engine.lab.errors import LabError
from engine.lab.lab import Lab
from engine.lab.scenario import Scenario, Sight, play
from engine.lab.scenarios import ALL


@dataclass
class StandIn:
    """A lab with an engine that lives or not."""

    lives: bool = True
    played: list[str] = field(default_factory=list)

    @property
    def gate(self) -> StandIn:
        return self


def lab(*, lives: bool = True) -> Lab:
    return cast("Lab", StandIn(lives))


def test_what_was_seen_as_expected_passes() -> None:
    def seen(_lab: Lab, saw: Sight) -> None:
        saw(True, "one")
        saw(True, "two")

    result = play(Scenario("name", "expected", seen), lab())
    assert (result.passed, result.observed, result.expected) == (True, "one; two", "expected")


def test_one_wrong_sight_fails_and_is_marked() -> None:
    def seen(_lab: Lab, saw: Sight) -> None:
        saw(True, "one")
        saw(False, "two")
        saw(True, "three")

    result = play(Scenario("name", "expected", seen), lab())
    assert (result.passed, result.observed) == (False, "one; (!) two; three")


def test_nothing_seen_is_nothing_proved() -> None:
    result = play(Scenario("name", "expected", lambda _lab, _saw: None), lab())
    assert (result.passed, result.observed) == (False, "nothing")


@pytest.mark.parametrize("error", [LabError("it broke"), ValueError("it broke")])
def test_what_breaks_off_fails_with_its_reason(error: Exception) -> None:
    def seen(_lab: Lab, saw: Sight) -> None:
        saw(True, "one")
        raise error

    result = play(Scenario("name", "expected", seen), lab())
    assert not result.passed
    assert "it broke" in result.observed


def test_without_an_engine_a_scenario_that_needs_it_is_not_played() -> None:
    def seen(_lab: Lab, saw: Sight) -> None:
        saw(True, "everything is refused: no wonder")

    result = play(Scenario("name", "expected", seen), lab(lives=False))
    assert (result.passed, result.observed) == (False, "(!) the engine is not running")
    assert play(Scenario("name", "expected", seen, enforcing=False), lab(lives=False)).passed


def test_an_interruption_is_no_scenario_s_to_keep() -> None:
    from engine.lab.interruption import Interruption

    def seen(_lab: Lab, _saw: Sight) -> None:
        raise Interruption(2)

    with pytest.raises(Interruption):
        play(Scenario("name", "expected", seen), lab())


def test_every_scenario_has_a_name_of_its_own_and_says_what_it_expects() -> None:
    names = [scenario.name for scenario in ALL]
    assert len(names) == len(set(names))
    assert all(scenario.expected for scenario in ALL)


def test_a_result_is_plain_data() -> None:
    from dataclasses import asdict

    result: dict[str, Any] = asdict(play(Scenario("name", "expected", lambda _lab, saw: saw(True, "seen")), lab()))
    milliseconds = result.pop("milliseconds")
    assert result == {"name": "name", "expected": "expected", "observed": "seen", "passed": True}
    assert isinstance(milliseconds, int)
