"""A run from beginning to end: build, play, verify, take away."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from engine.lab.gate import Gate
from engine.lab.lab import open_lab
from engine.lab.scenario import Result, Scenario, play

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Played:
    """A whole run. `verify`: the report of `sallyport audit verify --json`."""

    results: tuple[Result, ...]
    verify: dict[str, Any]
    seconds: float

    @property
    def passed(self) -> bool:
        """Nothing played is nothing passed."""
        return bool(self.results) and all(each.passed for each in self.results) and bool(self.verify.get("ok"))


class Interruption(BaseException):
    """A signal asked the run to end. `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run_lab(scenarios: Sequence[Scenario], state_dir: Path | None, told: Callable[[Result], None]) -> Played:
    """Build a lab, play the scenarios in order and `told` each result, verify the log, take everything away.

    Interruption at SIGINT, SIGTERM or SIGHUP, once everything is taken away.
    """
    began = time.monotonic()
    results = []
    with _interruptible(), open_lab(state_dir) as lab:
        for scenario in scenarios:
            results.append(play(scenario, lab))
            told(results[-1])
        lab.gate.close()
        verify = _verified(lab.gate)
    return Played(tuple(results), verify, time.monotonic() - began)


def _verified(gate: Gate) -> dict[str, Any]:
    done = gate.sallyport("audit", "verify", "--json")
    try:
        document: dict[str, Any] = json.loads(done.out)
    except ValueError:
        return {"ok": False, "error": done.last_words}
    return document


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turn the first signal into an Interruption, and ignore those that come while everything is taken away."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise Interruption(number)

    before = {each: signal.signal(each, interrupt) for each in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
