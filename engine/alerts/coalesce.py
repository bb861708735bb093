"""The same again is counted, not told: a denied program in a loop must not flood the people who read alerts.

Pure: time goes in as a number of seconds, alerts come out.
"""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, replace

from engine.alerts.alert import Alert, Kind

# A person causes these, and wants an answer each time: the same mistake saved twice is told twice.
NEVER_COALESCED = frozenset({Kind.POLICY_BROKEN})


@dataclass
class _Window:
    end: float
    first: str
    last: Alert
    repeats: int = 0


class Coalescer:
    """The first is told at once; its repeats within `window` seconds come as one alert with a count.

    While it goes on, one alert a window. At most `keys` different ones are told apart at a time: the names
    in a violation are chosen by the program that is denied, so beyond that they are counted by rule alone.
    """

    def __init__(self, window: float, keys: int = 1024) -> None:
        self._window = window
        self._keys = keys
        self._windows: OrderedDict[Hashable, _Window] = OrderedDict()

    def offer(self, alert: Alert, now: float) -> Alert | None:
        """Return the alert if it is to be told now, None if it was counted. Ask `due` first."""
        if self._window <= 0 or alert.kind in NEVER_COALESCED:
            return alert
        key = _key(alert)
        if key not in self._windows and len(self._windows) >= self._keys:
            key = (alert.kind, alert.rule)
        window = self._windows.get(key)
        if window is None:
            self._windows[key] = _Window(now + self._window, alert.id, alert)
            return alert
        window.last = alert
        window.repeats += 1
        return None

    def next_due(self) -> float | None:
        """Return when `due` has something to do, None when there is no window open."""
        # Every window is equally long, so the order of opening is the order of ending.
        return next(iter(self._windows.values())).end if self._windows else None

    def due(self, now: float) -> list[Alert]:
        """Return the counts of the windows that have ended, oldest first."""
        told = []
        while self._windows:
            key, window = next(iter(self._windows.items()))
            if window.end > now:
                break
            del self._windows[key]
            if window.repeats:
                told.append(_counted(window))
                self._windows[key] = _Window(now + self._window, window.first, window.last)
        return told

    def flush(self) -> list[Alert]:
        """Return every count at once and close all windows."""
        told = [_counted(window) for window in self._windows.values() if window.repeats]
        self._windows.clear()
        return told


def _key(alert: Alert) -> Hashable:
    if alert.kind is Kind.VIOLATION:
        return (alert.kind, alert.rule, *(repr(alert.details.get(part)) for part in ("dest", "name", "exe", "source")))
    return (alert.kind, alert.rule, alert.summary)


def _counted(window: _Window) -> Alert:
    return replace(window.last, id=uuid.uuid4().hex, count=window.repeats, repeats=window.first)
