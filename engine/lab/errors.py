"""The lab's errors."""

from __future__ import annotations

from engine.errors import EXIT_FINDING, SallyportError


class LabError(SallyportError):
    """The lab cannot be built, or a part of it does not do what it must do for a scenario to mean anything."""

    exit_code = EXIT_FINDING
