"""What every sink is, and the thread that keeps its blocking calls away from the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from engine.alerts.alert import Alert
from engine.errors import SallyportError

_T = TypeVar("_T")


class UndeliverableError(SallyportError):
    """The receiver said that it will never take this alert: trying again is no use."""


class Sink(Protocol):
    """`deliver` returns once the alert is told and raises UndeliverableError when it never will be; until
    then it tries. It is called with one alert at a time, and may be cancelled."""

    name: str

    async def deliver(self, alert: Alert) -> None: ...

    async def close(self) -> None: ...


class Courier:
    """One daemon thread that makes blocking calls, one after the other.

    Not an executor: the interpreter waits at exit for executor threads, so a receiver that hangs would keep
    the engine from ending. The thread starts with the first call.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def run(self, call: Callable[[], _T]) -> _T:
        """Make the call in the thread and return what it returned. A cancelled call that has begun runs
        on."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        outcome: Future[_T] = Future()
        self._calls.put((call, outcome))
        return await asyncio.wrap_future(outcome)

    def close(self) -> None:
        """End the thread after the call it is in."""
        self._calls.put(None)

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            call, outcome = item
            if not outcome.set_running_or_notify_cancel():
                continue
            try:
                result = call()
            except BaseException as error:  # noqa: BLE001 - it is raised again where the call was asked for
                self._settle(outcome.set_exception, error)
            else:
                self._settle(outcome.set_result, result)

    @staticmethod
    def _settle(settle: Callable[[Any], None], value: object) -> None:
        # The loop that waited may be closed by now; nobody is left to be told.
        with contextlib.suppress(RuntimeError):
            settle(value)
