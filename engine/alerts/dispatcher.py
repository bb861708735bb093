"""From the engine to every sink: in order, bounded, and never in the way of a verdict."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.alerts.alert import Alert
from engine.alerts.coalesce import Coalescer
from engine.alerts.sink import Sink, UndeliverableError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SinkStatistics:
    """`sent`: taken by the receiver. `failed`: refused for good. `dropped`: the queue was full, or time was
    up at the end. `queued`: still to be told, the one under way included. `last_error`: why the last
    refused one was."""

    name: str
    sent: int
    failed: int
    dropped: int
    queued: int
    last_error: str


class Lane:
    """One sink with its queue. A full queue drops the newest: the oldest shows how it began, and the one at
    the head may have reached the receiver already."""

    def __init__(self, sink: Sink, bound: int) -> None:
        self.sink = sink
        self._bound = bound
        self._queue: deque[Alert] = deque()
        self._filled = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._sent = self._failed = self._dropped = 0
        self._untold = 0
        self._last_error = ""

    def offer(self, alert: Alert) -> None:
        if len(self._queue) >= self._bound:
            self._dropped += 1
            self._untold += 1
            return
        self._queue.append(alert)
        self._empty.clear()
        self._filled.set()

    async def run(self) -> None:
        while True:
            await self._filled.wait()
            while self._queue:
                await self._tell(self._queue[0])
                self._queue.popleft()
            self._filled.clear()
            self._empty.set()

    async def _tell(self, alert: Alert) -> None:
        lost = self._untold
        try:
            await self.sink.deliver(replace(alert, lost_before=lost))
        except UndeliverableError as error:
            self._refused(error.message)
        except Exception as error:  # a sink with a fault of its own must not end the lane
            log.exception("the alert sink %s failed", self.sink.name)
            self._refused(f"{type(error).__name__}: {error}")
        else:
            self._sent += 1
            self._untold -= lost

    def _refused(self, why: str) -> None:
        self._failed += 1
        self._untold += 1
        self._last_error = why

    async def drained(self) -> None:
        await self._empty.wait()

    def give_up(self) -> None:
        """Count what is left as dropped."""
        self._dropped += len(self._queue)
        self._queue.clear()

    def statistics(self) -> SinkStatistics:
        return SinkStatistics(
            self.sink.name, self._sent, self._failed, self._dropped, len(self._queue), self._last_error
        )


class Dispatcher:
    """Fans alerts out to the sinks. Each sink has its own queue, so a slow one delays no other.

    All methods belong to the event loop's thread. `queue` bounds each sink's queue, in alerts; `window` is
    the coalescing window in seconds (0: everything is told).
    """

    def __init__(self, sinks: Sequence[Sink], *, queue: int = 1024, window: float = 60.0) -> None:
        self._lanes = [Lane(sink, queue) for sink in sinks]
        self._coalescer = Coalescer(window)
        self._tasks: list[asyncio.Task[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def start(self) -> None:
        """Begin to deliver. What was submitted before waits in the queues."""
        self._tasks = [
            asyncio.get_running_loop().create_task(lane.run(), name=f"alerts-{lane.sink.name}") for lane in self._lanes
        ]

    def submit(self, alert: Alert) -> None:
        """Take an alert. Returns at once, whatever state the sinks are in."""
        loop = asyncio.get_running_loop()
        self._settle(loop.time())
        told = self._coalescer.offer(alert, loop.time())
        if told is not None:
            self._fan_out(told)
        self._arm(loop)
        if self._closed:
            self._give_up()

    async def close(self, drain_timeout: float) -> None:
        """Tell what is pending for at most `drain_timeout` seconds, count the rest as dropped, close the
        sinks."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for alert in self._coalescer.flush():
            self._fan_out(alert)
        if self._tasks and self._lanes:
            drains = [asyncio.ensure_future(lane.drained()) for lane in self._lanes]
            _, late = await asyncio.wait(drains, timeout=drain_timeout)
            for task in (*late, *self._tasks):
                task.cancel()
            await asyncio.gather(*drains, *self._tasks, return_exceptions=True)
        self._give_up()
        for lane in self._lanes:
            await lane.sink.close()

    def statistics(self) -> tuple[SinkStatistics, ...]:
        return tuple(lane.statistics() for lane in self._lanes)

    def _fan_out(self, alert: Alert) -> None:
        for lane in self._lanes:
            lane.offer(alert)

    def _give_up(self) -> None:
        for lane in self._lanes:
            lane.give_up()

    def _settle(self, now: float) -> None:
        for alert in self._coalescer.due(now):
            self._fan_out(alert)

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        due = self._coalescer.next_due()
        if self._timer is None and due is not None and not self._closed:
            self._timer = loop.call_at(due, self._wake)

    def _wake(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        self._settle(loop.time())
        self._arm(loop)
