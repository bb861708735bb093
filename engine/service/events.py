"""Reading the event ring beside everything else that the engine does."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from engine.kernel.ring import Ring

_AT_ONCE = 32
_SLICE = 0.002
"""Seconds of one turn of the event loop. A judgement takes about half of it, and each of its steps waits for a turn:
with slices of 256 records a flood that met a standing deny kept a hundred held flows waiting for minutes."""


class EventReader:
    """Hands each record of the ring to `handle`, oldest first, a slice in each turn of the event loop."""

    def __init__(
        self, ring: Ring, handle: Callable[[bytes], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ring = ring
        self._handle = handle
        self._clock = clock
        self._due = False
        self._ended = False
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()
        """What is to be done, each behind the end that the ring had."""

    def wake(self) -> None:
        """Read what there is. Called again while it is still at it, this does nothing: a ring that is never empty is
        read by one slice a turn, however many have seen that there is something."""
        if not self._due:
            self._read()

    def after(self, work: Callable[[], None]) -> None:
        """Do a thing once all that is in the ring by now has been handed over: at once, where that is little."""
        self._waiting.append((self._ring.end(), work))
        self.wake()

    def end(self, *, rest: bool) -> None:
        """Read no more: what comes from here on stays in the ring. `rest`: but first what is there by now."""
        if rest:
            self._ring.drain(self._handle, self._ring.most)
            self._go_on()
        self._ended = True

    def _read(self) -> None:
        if self._ended:
            return
        more = self._slice()
        self._go_on()
        # What is still being waited for may stand behind a record that is being written at this moment.
        self._due = more or bool(self._waiting)
        if self._due:
            asyncio.get_running_loop().call_soon(self._read)

    def _go_on(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._ring.position():
            self._waiting.popleft()[1]()

    def _slice(self) -> bool:
        """Hand over a slice. True when there may be more."""
        until = self._clock() + _SLICE
        while self._ring.drain(self._handle, _AT_ONCE) == _AT_ONCE:
            if self._clock() >= until:
                return True
        return False
