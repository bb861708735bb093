"""What the policy answered, and how far that answer reaches."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Verdict(str, Enum):
    """`undecided` is an answer at connect only: nothing denies yet, and the first payload could still turn it."""

    ALLOW = "allow"
    DENY = "deny"
    REJECT = "reject"
    UNDECIDED = "undecided"

    @property
    def passes(self) -> bool:
        return self in (Verdict.ALLOW, Verdict.UNDECIDED)


class Stage(str, Enum):
    """When a flow is judged: at its first packet, or at its first payload (TCP, QUIC)."""

    CONNECT = "connect"
    PAYLOAD = "payload"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why: the rule's folder name (or "default", or "posture") and the message it gave."""

    rule: str
    message: str


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict with the facts it was decided from.

    `scope`: the facts that the verdict depends on; it serves every flow that agrees on them and no other.
    `ttl`: seconds it may stand, None without bound, 0 for this flow only. `failed`: an evaluator gave no usable
    answer and the posture decided: never cached, always alarmed.
    """

    verdict: Verdict
    scope: frozenset[str]
    reasons: tuple[Reason, ...] = ()
    ttl: float | None = None
    failed: bool = False

    @property
    def unanswered(self) -> bool:
        """Did nothing but the posture speak, because an evaluator gave no usable answer?"""
        return self.failed and all(reason.rule == "posture" for reason in self.reasons)
