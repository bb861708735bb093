"""A run from beginning to end: build, play, verify, take away."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.lab.gate import Gate
from engine.lab.interruption import interruptible
from engine.lab.lab import open_lab
from engine.lab.scenario import Result, Scenario, play


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


def run_lab(
    scenarios: Sequence[Scenario],
    state_dir: Path | None,
    *,
    begun: Callable[[str], None],
    told: Callable[[Result], None],
) -> Played:
    """Build a lab, play the scenarios in order, verify the log, take everything away.

    `begun` hears the run's name before anything is made, `told` each result as soon as there is one.
    Interruption at SIGINT, SIGTERM or SIGHUP, once everything is taken away.
    """
    began = time.monotonic()
    results = []
    with interruptible(), open_lab(state_dir, begun) as lab:
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
