"""Waiting for a condition, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PAUSE = 0.01
"""Seconds between two looks."""


def until(look: Callable[[], T], seconds: float = 60.0) -> T:
    """Return the first true answer of `look`, or its last one when none came within `seconds`."""
    deadline = time.monotonic() + seconds
    while not (answer := look()) and time.monotonic() < deadline:
        time.sleep(PAUSE)
    return answer
