"""The posture table: complete, closed where the judged party could choose, and readable at start."""

from __future__ import annotations

import pytest

from engine.model.posture import TABLE, Condition, Posture, Stance


def test_the_table_states_every_condition_and_only_a_full_disk_is_open() -> None:
    posture = Posture.default()
    assert set(TABLE) == set(Condition)
    assert {condition for condition in Condition if posture[condition].passes} == {Condition.DISK_FULL}


def test_a_posture_that_leaves_a_condition_out_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="map_full"):
        Posture({condition: Stance.OPEN for condition in Condition if condition is not Condition.MAP_FULL})


def test_a_change_touches_its_condition_alone_and_not_the_original() -> None:
    before = Posture.default()
    after = before.with_changes({Condition.FRAGMENT: Stance.OPEN})
    assert after[Condition.FRAGMENT] is Stance.OPEN
    assert before[Condition.FRAGMENT] is Stance.CLOSED
    assert after.with_changes({Condition.FRAGMENT: Stance.CLOSED}) == before


def test_the_printed_table_has_a_line_for_each_condition_and_marks_what_is_not_default() -> None:
    text = Posture.default().with_changes({Condition.ENGINE_ABSENT: Stance.OPEN}).text()
    lines = text.splitlines()[1:]
    assert [line.split()[0] for line in lines] == [condition.value for condition in Condition]
    assert [line.split()[0] for line in lines if "*" in line.split()[1]] == ["engine_absent"]
    assert Posture.default().document()["disk_full"] == "open"
