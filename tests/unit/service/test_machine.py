"""What the gate is told of the hold queue, where a kernel hands over more frames than went in."""

from __future__ import annotations

from types import SimpleNamespace

from engine.kernel.hold import HoldCounts
from engine.service.machine import Machine


def test_no_more_leaves_the_hold_queue_than_went_in() -> None:
    queue = [10, 10]
    machine = Machine.__new__(Machine)
    machine._taken_before = 10
    machine.hold = SimpleNamespace(counts=HoldCounts())  # type: ignore[assignment]
    machine.gate = SimpleNamespace(  # type: ignore[assignment]
        hold_queue=lambda: tuple(queue), take=lambda taken: queue.__setitem__(1, taken)
    )
    queue[0] += 1  # one buffer, which comes as three frames
    machine.hold.counts.taken += 3
    machine.took()
    assert queue == [11, 11]
    queue[0] += 2
    machine.hold.counts.taken += 1
    machine.took()
    assert queue == [13, 12]
    machine.hold.counts.lost += 1
    machine.took()
    assert queue == [13, 13]
