"""The judge: asks the rules that a flow needs, remembers their answers, and decides.

One judge serves one generation: its memory dies with it. An answer is remembered under the rule and the facts that
the rule declared, never under more or less, so that two programs never share an answer that read the program.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from engine.errors import EvaluatorError
from engine.model.decision import Decision, Stage, Verdict
from engine.model.facts import Direction, Facts, Host, Transport
from engine.policy.decide import asks, decide
from engine.policy.evaluator import SILENT, Answer, Evaluator, Question
from engine.policy.rule import Rule

MEMORY = 16_384
"""Remembered answers; about 0.5 KiB each with their key where no two flows share a fact, so 8 MiB at most."""


_NUMBERS = 65_536
"""Different facts that are known at a time."""
_SILENCES = 1024
"""Decisions without a rule that speaks: one for each set of targets that flows fall under."""
_ROUSED = 16
"""Rules that an evaluator is roused for: as many as it gets to see in the time that there is."""
_NUMBER_BITS = 48
"""Of a number that is never given twice: a million new facts a second for eight years."""
UNSETTLED = 5.0
"""Seconds for which datagrams stay refused on account of what may be known soon: names that the next answer may add to,
a program that has not been looked up."""


class Judge:
    """`default`, `inbound`: what holds where no rule speaks, for what leaves and what comes in. `posture`: the verdict
    (allow or deny) where the evaluator gives no answer. `hits` and `misses` count answers."""

    def __init__(
        self,
        evaluator: Evaluator,
        rules: Sequence[Rule],
        default: Verdict | None,
        *,
        inbound: Verdict | None = None,
        posture: Verdict = Verdict.DENY,
        memory: int = MEMORY,
    ) -> None:
        self._evaluator = evaluator
        self._rules = tuple(rules)
        self._defaults = {Direction.EGRESS: default, Direction.INGRESS: inbound if inbound is not None else default}
        self._posture = posture
        self._memory = memory
        self._answers: OrderedDict[int, Answer] = OrderedDict()
        self._scopes = {
            rule.name: (tuple(sorted(rule.scope)), tuple(sorted(rule.target_scope or ()))) for rule in self._rules
        }
        self._by_name = {rule.name: rule for rule in self._rules}
        self._places = {rule.name: 2 * place for place, rule in enumerate(self._rules)}
        self._asked = {
            stage: [(rule, asked is None) for rule in self._rules if (asked := asks(rule, stage)) is not False]
            for stage in Stage
        }
        self._read = tuple(sorted({name for scopes in self._scopes.values() for names in scopes for name in names}))
        self.reads = frozenset(self._read) | (
            {"exe.sha256"} if any(rule.reads_field("exe.sha256") for rule in self._rules) else frozenset()
        )
        """The facts that any rule gets to see, and "exe.sha256" apart: what is not here need not be looked up."""
        self._numbers: dict[str, dict[Any, int]] = {name: {} for name in self._read}
        self._next_number = self._forgotten = 0
        self._clock = {rule.name: clock_reads(rule) for rule in self._rules}
        self._silence: dict[tuple[Stage, Direction, tuple[bool | None, ...]], Decision] = {}
        self._last: dict[Stage, list[str]] = {stage: [] for stage in Stage}
        self.hits = 0
        self.misses = 0

    def rouse(self, stage: Stage) -> None:
        """Have the evaluator awake for a flow that is about to be judged, if the last one at this stage had to be asked
        about: it will be the same rules."""
        rules = self._last[stage]
        if rules:
            self._evaluator.rouse(rules)

    async def decide(self, facts: Facts, stage: Stage, *, now: datetime) -> Decision:
        """Return the decision for a flow. `now`: the host's local time that `facts.clock` was read from.

        Never raises for an evaluator's failure: the decision is then `failed` and the posture's.
        """
        answers: dict[str, Answer] = {}
        questions: list[Question] = []
        numbers = self._numbered(facts)
        for rule, only_target in self._asked[stage]:
            known = self._recall(rule, numbers, only_target=only_target)
            if known is not None:
                self.hits += 1
                answers[rule.name] = known
                continue
            questions.append(Question(rule.name, self._input(rule, facts, only_target=only_target), only_target))
        self._last[stage] = [question.rule for question in questions[:_ROUSED]]
        if questions:
            self.misses += len(questions)
            try:
                given = await self._evaluator.evaluate(questions)
            except EvaluatorError as error:
                given = [Answer(error=error.message) for _ in questions]
            for question, answer in zip(questions, given, strict=False):
                answers[question.rule] = answer
                self._remember(self._by_name[question.rule], numbers, answer, only_target=question.only_target)
        decision = self._decided(facts, answers, stage)
        return self._bounded(decision, facts, now)

    def _decided(self, facts: Facts, answers: dict[str, Answer], stage: Stage) -> Decision:
        """Return what follows from the answers. Where all rules are silent it follows from which of them this flow is a
        target of: that is worked out once, because it is what most flows meet while they wait."""
        default = self._defaults[facts.direction]
        targets = []
        for rule, _ in self._asked[stage]:
            answer = answers.get(rule.name)
            if answer is None or answer is not SILENT[answer.target]:
                return decide(self._rules, default, answers, stage, self._posture)
            targets.append(answer.target)
        key = stage, facts.direction, tuple(targets)
        decision = self._silence.get(key)
        if decision is None:
            if len(self._silence) >= _SILENCES:
                self._silence.clear()
            decision = self._silence[key] = decide(self._rules, default, answers, stage, self._posture)
        return decision

    def _input(self, rule: Rule, facts: Facts, *, only_target: bool) -> dict[str, Any]:
        # The facts as they are: msgspec encodes dataclasses and enumerations itself, ten times as fast as
        # Facts.select makes plain values of them.
        return {name: getattr(facts, name) for name in self._scopes[rule.name][1 if only_target else 0]}

    def _numbered(self, facts: Facts) -> dict[str, int]:
        """Return a number for each fact that a rule reads, the same for equal facts: five rules look an answer up
        three times each, and a fact is hashed once for all of them."""
        if self._next_number - self._forgotten > _NUMBERS:
            # Answers refer to numbers: they go together.
            self._forgotten = self._next_number
            for known in self._numbers.values():
                known.clear()
            self._answers.clear()
        numbers = {}
        for name, known in self._numbers.items():
            fact = getattr(facts, name) if name != "host" else _hashable(facts.host)
            number = known.get(fact)
            if number is None:
                # Counted on beyond a clearing: an answer to a question that is still under way must not be found
                # under a number that means something else by then.
                self._next_number += 1
                number = known[fact] = self._next_number
            numbers[name] = number
        return numbers

    def _key(self, rule: Rule, numbers: dict[str, int], *, target: bool) -> int:
        """Return the key of an answer: the numbers of the facts that the rule was given, and in the lowest place which
        rule it is, and whether its target alone. One integer, because there are thousands of them and a tuple takes
        twice the memory; the rule tells how many numbers there are, so no two answers share one."""
        key = 0
        for name in self._scopes[rule.name][1 if target else 0]:
            key = key << _NUMBER_BITS | numbers[name]
        return key * 2 * len(self._rules) + self._places[rule.name] + target

    def _recall(self, rule: Rule, numbers: dict[str, int], *, only_target: bool) -> Answer | None:
        if rule.target_scope is not None:
            known = self._get(self._key(rule, numbers, target=True))
            # A true target says nothing about the body.
            if known is not None and (only_target or known.target is False):
                return known
        return None if only_target else self._get(self._key(rule, numbers, target=False))

    def _get(self, key: int) -> Answer | None:
        known = self._answers.get(key)
        if known is not None:
            self._answers.move_to_end(key)
        return known

    def _remember(self, rule: Rule, numbers: dict[str, int], answer: Answer, *, only_target: bool) -> None:
        if answer.error:
            return
        if rule.target_scope is not None and (only_target or answer.target is False):
            self._put(self._key(rule, numbers, target=True), answer)
        if not only_target and answer.target is not False:
            self._put(self._key(rule, numbers, target=False), answer)

    def _put(self, key: int, answer: Answer) -> None:
        self._answers[key] = answer
        self._answers.move_to_end(key)
        if len(self._answers) > self._memory:
            self._answers.popitem(last=False)

    def _bounded(self, decision: Decision, facts: Facts, now: datetime) -> Decision:
        """Bound a decision that read the clock by the end of the bucket it was read in, and one that read the names of
        the address by the time they are good for."""
        if decision.failed:
            return decision
        bounds = [decision.ttl]
        if "clock" in decision.scope:
            bounds.append(clock_remaining(frozenset().union(*self._clock.values()), now))
        if "dest_names" in decision.scope:
            bounds.append(names_remaining(decision.verdict, facts))
        ttl = min((bound for bound in bounds if bound is not None), default=None)
        return decision if ttl == decision.ttl else replace(decision, ttl=ttl)


def _hashable(host: Host) -> tuple[str, tuple[tuple[str, str], ...]]:
    return host.name, tuple(sorted(host.labels.items()))


def clock_reads(rule: Rule) -> frozenset[str]:
    """Return which buckets of the clock a rule reads: hour, weekday, both, or none."""
    return frozenset(part for part in ("hour", "weekday") if rule.reads_field(f"clock.{part}"))


def clock_remaining(reads: frozenset[str], now: datetime) -> float | None:
    """Return the seconds until a bucket that was read ends; None when none was read.

    A day may be an hour shorter than it looks (summer time begins), so a whole day is kept an hour less.
    """
    if not reads:
        return None
    into_hour = timedelta(minutes=now.minute, seconds=now.second, microseconds=now.microsecond).total_seconds()
    hour_left = 3600.0 - into_hour
    if "hour" in reads:
        return hour_left
    day_left = hour_left + 3600.0 * (23 - now.hour)
    return day_left - 3600.0 if day_left > 3600.0 else day_left


def names_remaining(verdict: Verdict, facts: Facts) -> float | None:
    """Return the seconds for which a verdict may stand that read the names of the address; None without bound.

    It is this flow's alone, so a later answer changes nothing for a TCP connection: it began before. But a datagram
    socket goes on sending under the same ports, and the answer that names the address may come after its first
    datagram was refused: then the refusal is not the last word for long.
    """
    left = facts.dest_names_left
    if verdict.passes or facts.dest.transport is Transport.TCP:
        return left
    return UNSETTLED if left is None else min(left, UNSETTLED)
