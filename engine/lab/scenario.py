"""A scenario: what is expected, and what was seen when it was played."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import SallyportError

if TYPE_CHECKING:
    from engine.lab.lab import Lab

WRONG = "(!) "
"""Stands in front of everything seen that is not as expected."""


class Sight:
    """Collects what is seen. Nothing seen is nothing proved."""

    def __init__(self) -> None:
        self._words: list[str] = []
        self._right: list[bool] = []

    def __call__(self, right: bool, words: str) -> None:
        """Note what was seen, and whether it is as expected."""
        self._words.append(words if right else WRONG + words)
        self._right.append(bool(right))

    @property
    def passed(self) -> bool:
        return bool(self._right) and all(self._right)

    @property
    def words(self) -> str:
        return "; ".join(self._words) or "nothing"


@dataclass(frozen=True)
class Scenario:
    """`play` looks at the lab and notes what it sees. `enforcing`: an engine must be running when it begins."""

    name: str
    expected: str
    play: Callable[[Lab, Sight], None]
    enforcing: bool = True


@dataclass(frozen=True)
class Result:
    name: str
    expected: str
    observed: str
    passed: bool
    milliseconds: int


def play(scenario: Scenario, lab: Lab) -> Result:
    """Play one scenario. What breaks off is a failed scenario, with the reason as what was observed."""
    began = time.monotonic()
    saw = Sight()
    try:
        if scenario.enforcing and not lab.gate.lives:
            saw(False, "the engine is not running")
        else:
            scenario.play(lab, saw)
    except SallyportError as error:
        saw(False, error.message)
    except Exception as error:  # noqa: BLE001 - a surprise in one scenario must not hide the others
        saw(False, f"{type(error).__name__}: {error}")
    return Result(scenario.name, scenario.expected, saw.words, saw.passed, round(1000 * (time.monotonic() - began)))
