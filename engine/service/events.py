"""Reading the event ring beside everything else that the engine does."""

from __future__ import annotations

import asyncio
import time
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

    def wake(self) -> None:
        """Read what there is. Called again while it is still at it, this does nothing: a ring that is never empty is
        read by one slice a turn, however many have seen that there is something."""
        if not self._due:
            self._read()

    def catch_up(self) -> None:
        """Hand over everything that is in the ring by now, and come back then."""
        self._ring.drain(self._handle, self._ring.most)

    def end(self) -> None:
        """Read no more. What comes from here on stays in the ring."""
        self._ended = True

    def _read(self) -> None:
        self._due = not self._ended and self._slice()
        if self._due:
            asyncio.get_running_loop().call_soon(self._read)

    def _slice(self) -> bool:
        """Hand over a slice. True when there may be more."""
        until = self._clock() + _SLICE
        while self._ring.drain(self._handle, _AT_ONCE) == _AT_ONCE:
            if self._clock() >= until:
                return True
        return False
