"""A flood of events leaves every other work of the engine its turn, and ends when the engine does."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from engine.service.events import EventReader

TURNS = 50


class Flood:
    """A ring that is never empty for long: each record that is taken brings another one. Each takes a millisecond."""

    fd = -1
    most = 1000

    def __init__(self, records: int, *, endless: bool) -> None:
        self.records = deque(range(records))
        self._endless = endless
        self._last = records
        self._handed = 0
        self.now = 0.0

    def position(self) -> int:
        return self._handed

    def end(self) -> int:
        return self._handed + len(self.records)

    def drain(self, handle: Callable[[bytes], None], limit: int) -> int:
        there = min(limit, len(self.records))
        for _ in range(there):
            self.now += 0.001
            self._handed += 1
            handle(self.records.popleft().to_bytes(4, "big"))
            if self._endless:
                self.records.append(self._last)
                self._last += 1
        return there

    def close(self) -> None:
        pass


def reading(ring: Flood) -> tuple[EventReader, list[bytes]]:
    taken: list[bytes] = []
    return EventReader(ring, taken.append, clock=lambda: ring.now), taken


def test_one_slice_a_turn_however_often_it_is_woken() -> None:
    async def main() -> None:
        ring = Flood(500, endless=True)
        reader, taken = reading(ring)
        reader.wake()
        slice_ = len(taken)
        for _ in range(TURNS):
            reader.wake()
            await asyncio.sleep(0)
        reader.end(rest=False)
        assert 0 < slice_ < 100
        assert len(taken) <= (TURNS + 1) * slice_

    asyncio.run(main())


def test_goes_on_by_itself_until_the_ring_is_empty_and_can_be_woken_again() -> None:
    async def main() -> None:
        ring = Flood(500, endless=False)
        reader, taken = reading(ring)
        reader.wake()
        for _ in range(500):
            await asyncio.sleep(0)
        assert taken == [number.to_bytes(4, "big") for number in range(500)]
        ring.records.append(7)
        reader.wake()
        assert len(taken) == 501

    asyncio.run(main())


def test_what_rests_on_an_event_is_done_behind_it_and_not_behind_later_ones() -> None:
    async def main() -> None:
        ring = Flood(500, endless=True)
        reader, taken = reading(ring)
        done: list[int] = []
        reader.after(lambda: done.append(len(taken)))
        for _ in range(TURNS):
            await asyncio.sleep(0)
        reader.end(rest=False)
        assert done
        assert 500 <= done[0] < 600

    asyncio.run(main())


def test_behind_an_empty_ring_a_thing_is_done_at_once_and_in_order() -> None:
    ring = Flood(3, endless=False)
    reader, taken = reading(ring)
    done: list[tuple[int, int]] = []
    reader.after(lambda: done.append((1, len(taken))))
    reader.after(lambda: done.append((2, len(taken))))
    assert done == [(1, 3), (2, 3)]


def test_the_rest_is_what_is_there_and_not_what_comes_meanwhile() -> None:
    ring = Flood(500, endless=True)
    reader, taken = reading(ring)
    reader.end(rest=True)
    assert taken == [number.to_bytes(4, "big") for number in range(500)]


def test_what_comes_after_the_end_stays_in_the_ring() -> None:
    async def main() -> None:
        ring = Flood(500, endless=True)
        reader, taken = reading(ring)
        reader.wake()
        reader.end(rest=False)
        before = len(taken)
        reader.wake()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(taken) == before
        assert len(ring.records) == 500

    asyncio.run(main())
