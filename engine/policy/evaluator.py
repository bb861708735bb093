"""The seam between the decision and whoever evaluates Rego: one Protocol, two implementations, one suite for both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from engine.policy.bundle import Bundle
from engine.policy.frames import Part
from engine.policy.rule import Rule


@dataclass(frozen=True, slots=True)
class Question:
    """One rule with its filtered input: for each fact of its scope a value that msgspec encodes (plain, or the
    dataclass of engine/model/facts.py). `only_target`: whether the rule applies at all, its body not evaluated."""

    rule: str
    input: Mapping[str, Any]
    only_target: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What one rule said. `target` is None when the rule has none, and a false one means that the body was not
    evaluated. `ttl` in seconds. A non-empty `error` means that there is no answer: the posture decides."""

    deny: tuple[str, ...] = ()
    reject: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    target: bool | None = None
    ttl: float | None = None
    error: str = ""


SILENT = {target: Answer(target=target) for target in (None, True, False)}
"""By its target: what most rules say to most flows. Always these very values: thousands are remembered, and who looks
for them need not compare."""


class Evaluator(Protocol):
    """Evaluates the rules of one bundle at a time.

    `load` raises EvaluatorError when the bundle cannot be taken; the one loaded before may then be gone, so a
    candidate is loaded into an evaluator of its own. `evaluate` never raises: what fails is a failed answer, and the
    answers stand in the order of the questions.
    """

    name: str

    async def expect(self, parts: Sequence[Part]) -> None:
        """Get ready for a load that will look much like this one, as far as that helps. Raises nothing."""

    async def load(self, bundle: Bundle, rules: Sequence[Rule], parts: Sequence[Part] | None = None) -> None:
        """`parts`: the policy divided so that each rule stands with all that it can reach; without them it is one."""

    def rouse(self, rules: Sequence[str]) -> None:
        """Be told that questions about these rules are likely to come within a millisecond. Raises nothing."""

    async def evaluate(self, questions: Sequence[Question]) -> Sequence[Answer]: ...

    async def close(self) -> None: ...


def shared(answer: Answer) -> Answer:
    """Return the answer, or the one of SILENT that is equal to it."""
    silent = SILENT[answer.target]
    return silent if answer == silent else answer


def failed(questions: Sequence[Question], error: str) -> list[Answer]:
    """Return one failed answer for each question."""
    return [Answer(error=error) for _ in questions]
