"""What a person is told: one frozen value, the same for every sink."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from typing import Any


class Kind(str, Enum):
    """violation: the policy denied something. policy_broken: a candidate was refused, the running
    generation stays. evaluator_failed: no usable answer. posture: a condition of the posture table holds.
    loss: events or entries were lost, and counted. map_full: a kernel map is filling up, or refused an entry.
    interface: a guarded interface came, went, or cannot be guarded."""

    VIOLATION = "violation"
    POLICY_BROKEN = "policy_broken"
    EVALUATOR_FAILED = "evaluator_failed"
    POSTURE = "posture"
    LOSS = "loss"
    MAP_FULL = "map_full"
    INTERFACE = "interface"


class Severity(str, Enum):
    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


def _new_id() -> str:
    return uuid.uuid4().hex


@dataclass(frozen=True)
class Alert:
    """One thing to tell.

    `time`: nanoseconds since 1970 (UTC). `summary`: one sentence. `details`: values that JSON can hold; for
    a violation `dest`, `name` and `exe` say what makes it the same one again. `rule`: the folder name, or
    empty. `count`: how many times it happened; more than one in the alert that closes a window of repeats,
    and then `repeats` is the id of the alert that told the first. `lost_before`: alerts that this sink
    could not be given since the last one it took. `id` stays the same however often delivery is tried.
    """

    time: int
    kind: Kind
    severity: Severity
    summary: str
    details: Mapping[str, Any] = field(default_factory=dict)
    rule: str = ""
    generation: int = 0
    count: int = 1
    repeats: str = ""
    lost_before: int = 0
    id: str = field(default_factory=_new_id)

    def timestamp(self) -> str:
        """Return `time` as RFC 3339 in UTC with all nine digits: a JSON number of nanoseconds loses its
        last ones."""
        seconds, nanoseconds = divmod(self.time, 1_000_000_000)
        whole = datetime.fromtimestamp(seconds, tz=timezone.utc)
        return f"{whole:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"

    def document(self) -> dict[str, Any]:
        """Return JSON-ready values, in the shape that the Standard Webhooks specification recommends."""
        return {
            "type": f"sallyport.{self.kind.value}",
            "timestamp": self.timestamp(),
            "data": {
                "id": self.id,
                "kind": self.kind.value,
                "severity": self.severity.value,
                "summary": _plain(self.summary),
                "rule": _plain(self.rule),
                "generation": self.generation,
                "count": self.count,
                "repeats": self.repeats,
                "lost_before": self.lost_before,
                "details": _plain(self.details),
            },
        }


def _plain(value: Any) -> Any:
    """Paths and names are bytes that other people chose. What is no Unicode text (surrogateescape) is
    written as \\xNN or \\uNNNN, because JSON parsers differ on lone surrogates and some refuse the whole
    document."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, Mapping):
        return {_plain(str(key)): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(inner) for inner in value]
    return _plain(str(value))
