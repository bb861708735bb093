"""What the selftest's rig makes of the hold queue's counters."""

from __future__ import annotations

import pytest

from engine.selftest.rig import drained


def counter(number: int) -> bytes:
    return number.to_bytes(8, "little", signed=True)


@pytest.mark.parametrize(
    ("redirected", "taken", "all_taken"),
    [(0, 0, True), (7, 6, False), (7, 7, True), (7, 9, True), (256, 255, False), (255, 256, True), (0, -1, False)],
)
def test_all_is_taken_when_at_least_as_much_came_out_as_went_in(redirected: int, taken: int, all_taken: bool) -> None:
    assert drained(counter(redirected), counter(taken)) is all_taken


def test_a_queue_that_cannot_be_read_is_not_taken_for_an_empty_one() -> None:
    assert not drained(None, None)
