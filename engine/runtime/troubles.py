"""What is wrong at the moment, and who is told: `status`, the sinks, the log."""

from __future__ import annotations

import time
from collections.abc import Callable

from engine.alerts.alert import Alert, Kind, Severity
from engine.alerts.dispatcher import Dispatcher
from engine.runtime.journal import Journal


class Troubles:
    """Problems by key: told once when they begin, shown by `status` until they are over."""

    def __init__(self, alerts: Dispatcher, journal: Journal, generation: Callable[[], int]) -> None:
        self._alerts = alerts
        self._journal = journal
        self._generation = generation
        self._standing: dict[str, str] = {}

    @property
    def standing(self) -> list[str]:
        return list(self._standing.values())

    def begin(self, key: str, text: str, kind: Kind) -> None:
        """Something is wrong. Told again only when the text changes."""
        if self._standing.get(key) != text:
            self._standing[key] = text
            self.alert(kind, Severity.CRITICAL, text)

    def over(self, key: str) -> None:
        self._standing.pop(key, None)

    def loss(self, count: int, reason: str) -> None:
        """Something was lost for good: counted in the log, so that a reader knows what it does not show."""
        self._journal.note("gap", count=count, reason=reason)
        self.alert(Kind.LOSS, Severity.WARNING, f"{count} lost: {reason}")

    def alert(self, kind: Kind, severity: Severity, summary: str) -> None:
        self._alerts.submit(Alert(time.time_ns(), kind, severity, summary, generation=self._generation()))
        self._journal.note("alert", kind=kind.value, severity=severity.value, summary=summary)
