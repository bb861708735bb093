"""The evaluators by the names that the command line and the configuration use."""

from __future__ import annotations

from collections.abc import Callable

from engine.errors import UsageError
from engine.policy.evaluator import Evaluator

NAMES = ("embedded", "opa")


def factory(name: str) -> Callable[[], Evaluator]:
    """Return what makes a fresh evaluator of this name, for `prepare`. Raises UsageError for another name.

    Each is imported when it is asked for: the OPA client brings aiohttp, which costs 20 MiB.
    """
    if name == "embedded":
        from engine.policy.embedded import EmbeddedEvaluator  # noqa: PLC0415

        return EmbeddedEvaluator
    if name == "opa":
        from engine.policy.opa import OpaEvaluator  # noqa: PLC0415

        return OpaEvaluator
    raise UsageError(f"there is no evaluator named {name}", hint=f"use one of: {', '.join(NAMES)}")
