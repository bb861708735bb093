"""Fan-out: every sink gets everything in order, none waits for another, a fault in one is its own."""

from __future__ import annotations

import asyncio

from engine.alerts.alert import Alert, Kind, Severity
from engine.alerts.dispatcher import Dispatcher
from engine.alerts.sink import Courier, UndeliverableError


def alert(summary: str, kind: Kind = Kind.POLICY_BROKEN) -> Alert:
    return Alert(1, kind, Severity.WARNING, summary, rule="r")


class Memory:
    """A sink that keeps what it gets, once its gate is open."""

    def __init__(self, name: str, *, gate: asyncio.Event | None = None, faults: tuple[Exception, ...] = ()) -> None:
        self.name = name
        self.got: list[Alert] = []
        self.closed = False
        self._arrived = asyncio.Event()
        self._gate = gate
        self._faults = list(faults)

    async def deliver(self, alert: Alert) -> None:
        if self._gate is not None:
            await self._gate.wait()
        if self._faults:
            raise self._faults.pop(0)
        self.got.append(alert)
        self._arrived.set()

    async def close(self) -> None:
        self.closed = True

    async def holds(self, count: int) -> None:
        while len(self.got) < count:
            self._arrived.clear()
            await self._arrived.wait()


def test_a_sink_that_stands_still_delays_no_other_and_order_is_kept() -> None:
    async def main() -> None:
        gate = asyncio.Event()
        slow, quick = Memory("slow", gate=gate), Memory("quick")
        dispatcher = Dispatcher([slow, quick], window=0)
        dispatcher.submit(alert("before the start"))
        dispatcher.start()
        for number in range(20):
            dispatcher.submit(alert(str(number)))
        expected = ["before the start", *map(str, range(20))]
        await quick.holds(len(expected))
        assert slow.got == []
        gate.set()
        await dispatcher.close(30)
        assert [one.summary for one in quick.got] == [one.summary for one in slow.got] == expected
        assert slow.closed
        assert quick.closed

    asyncio.run(main())


def test_a_fault_in_a_sink_is_counted_and_the_next_alert_says_so() -> None:
    async def main() -> None:
        sink = Memory("m", faults=(RuntimeError("a bug"), UndeliverableError("no")))
        dispatcher = Dispatcher([sink], window=0)
        dispatcher.start()
        for number in range(4):
            dispatcher.submit(alert(str(number)))
        await dispatcher.close(30)
        assert [(one.summary, one.lost_before) for one in sink.got] == [("2", 2), ("3", 0)]
        (statistics,) = dispatcher.statistics()
        assert (statistics.sent, statistics.failed, statistics.last_error) == (2, 2, "no")

    asyncio.run(main())


def test_what_is_not_told_when_time_is_up_is_counted_as_dropped_and_nothing_hangs() -> None:
    async def main() -> None:
        sink = Memory("m", gate=asyncio.Event())
        dispatcher = Dispatcher([sink], window=0)
        dispatcher.start()
        for number in range(3):
            dispatcher.submit(alert(str(number)))
        await dispatcher.close(0)
        dispatcher.submit(alert("after the end"))
        await dispatcher.close(0)
        (statistics,) = dispatcher.statistics()
        assert (statistics.sent, statistics.dropped, statistics.queued) == (0, 4, 0)
        assert sink.closed

    asyncio.run(main())


def test_a_window_ends_by_itself_and_tells_its_count() -> None:
    async def main() -> None:
        sink = Memory("m")
        dispatcher = Dispatcher([sink], window=0.02)
        dispatcher.start()
        for _ in range(50):
            dispatcher.submit(alert("same", Kind.VIOLATION))
        await sink.holds(2)
        assert [one.count for one in sink.got] == [1, 49]
        await dispatcher.close(30)

    asyncio.run(main())


def test_closing_tells_the_counts_that_are_pending() -> None:
    async def main() -> None:
        sink = Memory("m")
        dispatcher = Dispatcher([sink], window=3600)
        dispatcher.start()
        for _ in range(5):
            dispatcher.submit(alert("same", Kind.VIOLATION))
        await dispatcher.close(30)
        assert [one.count for one in sink.got] == [1, 4]

    asyncio.run(main())


def test_no_sink_at_all_is_no_trouble() -> None:
    async def main() -> None:
        dispatcher = Dispatcher([])
        dispatcher.start()
        dispatcher.submit(alert("x"))
        await dispatcher.close(0)
        assert dispatcher.statistics() == ()

    asyncio.run(main())


def test_the_courier_raises_what_its_call_raised_and_goes_on() -> None:
    async def main() -> None:
        courier = Courier("test")

        def fail() -> int:
            raise KeyError("x")

        first = await asyncio.gather(courier.run(fail), return_exceptions=True)
        assert isinstance(first[0], KeyError)
        assert await courier.run(lambda: 5) == 5
        courier.close()

    asyncio.run(main())
