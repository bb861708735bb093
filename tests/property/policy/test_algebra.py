"""No verdict reaches further than the facts it was decided from: the algebra against brute force.

Small random rule tables over small fact domains. Every decision is compared with the verdicts of all flows that agree
with it on its scope, and the decisions at connect with all the payloads that could follow.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.model.decision import Decision, Stage, Verdict
from engine.policy.decide import asks, decide
from engine.policy.evaluator import Answer
from engine.policy.rule import Rule

FACTS = ("dest", "exe", "process", "name", "hello", "event")
AT_CONNECT = ("dest", "exe", "process")
AT_PAYLOAD = ("name", "hello")
EFFECTS = (Verdict.DENY, Verdict.REJECT, Verdict.ALLOW)
Flow = Mapping[str, int]


@dataclass(frozen=True)
class TableRule:
    """A rule whose answers are drawn once for every value of its scope."""

    rule: Rule
    target: dict[tuple[int, ...], bool]
    says: dict[tuple[int, ...], frozenset[Verdict]]

    def key(self, flow: Flow, scope: frozenset[str] | None = None) -> tuple[int, ...]:
        return tuple(flow[fact] for fact in sorted(self.rule.scope if scope is None else scope))

    def answer(self, flow: Flow, *, only_target: bool = False) -> Answer:
        scope = self.rule.target_scope
        if scope is not None and not self.target[self.key(flow, scope)]:
            return Answer(target=False)
        target = None if scope is None else True
        if only_target:
            return Answer(target=target)
        said = self.says[self.key(flow)]
        messages = [("said",) if effect in said else () for effect in EFFECTS]
        return Answer(messages[0], messages[1], messages[2], target)


def draw_rules(chance: random.Random) -> list[TableRule]:
    """Return one to four random rules."""
    found = []
    for number in range(chance.randint(1, 4)):
        scope = frozenset(chance.sample(FACTS, chance.randint(1, 3)))
        target_scope = frozenset(chance.sample(sorted(scope), chance.randint(1, len(scope))))
        effects = frozenset(chance.sample(EFFECTS, chance.choice([1, 1, 1, 2, 3])))
        has_target = chance.random() < 0.5
        rule = Rule(f"r{number}", "", scope, "", target_scope=target_scope if has_target else None, effects=effects)
        odds = chance.choice([0.1, 0.3, 0.6])
        keys = itertools.product((0, 1), repeat=len(scope))
        says = {key: frozenset(effect for effect in effects if chance.random() < odds) for key in keys}
        targets = {key: chance.random() < 0.6 for key in itertools.product((0, 1), repeat=len(target_scope))}
        found.append(TableRule(rule, targets, says))
    return found


def flows(*facts: str, event: int) -> list[dict[str, int]]:
    return [
        {**dict(zip(facts, values, strict=True)), "event": event}
        for values in itertools.product((0, 1), repeat=len(facts))
    ]


def judged(tables: list[TableRule], default: Verdict, flow: Flow, stage: Stage) -> Decision:
    answers = {}
    for table in tables:
        asked = asks(table.rule, stage)
        if asked is not False:
            answers[table.rule.name] = table.answer(flow, only_target=asked is None)
    return decide([table.rule for table in tables], default, answers, stage)


def plain_verdict(tables: list[TableRule], default: Verdict, flow: Flow) -> Verdict:
    """Say it in the simplest way: every rule is asked, deny before reject before allow before the default."""
    said: set[Verdict] = set()
    for table in tables:
        answer = table.answer(flow)
        said |= {
            effect
            for effect, messages in zip(EFFECTS, (answer.deny, answer.reject, answer.allow), strict=True)
            if messages
        }
    return next((effect for effect in EFFECTS if effect in said), default)


def assert_scope_holds(decisions: list[tuple[Flow, Decision]]) -> None:
    """Fail when two flows agree on the scope of one's decision and have different verdicts."""
    for flow, decision in decisions:
        for other, its in decisions:
            if all(flow[fact] == other[fact] for fact in decision.scope if fact in flow):
                assert its.verdict is decision.verdict, (flow, decision, other, its)


def check(seed: int) -> None:
    chance = random.Random(seed)
    tables = draw_rules(chance)
    default = chance.choice([Verdict.ALLOW, Verdict.DENY, Verdict.REJECT])
    payloads = [
        (flow, judged(tables, default, flow, Stage.PAYLOAD)) for flow in flows(*AT_CONNECT, *AT_PAYLOAD, event=1)
    ]
    for flow, decision in payloads:
        assert decision.verdict is plain_verdict(tables, default, flow)
    assert_scope_holds(payloads)
    connects = [(flow, judged(tables, default, flow, Stage.CONNECT)) for flow in flows(*AT_CONNECT, event=0)]
    assert_scope_holds(connects)
    for flow, decision in connects:
        assert not decision.scope & set(AT_PAYLOAD)
        later = {its.verdict for other, its in payloads if all(flow[fact] == other[fact] for fact in AT_CONNECT)}
        explicit = any(reason.rule != "default" for reason in decision.reasons)
        if decision.verdict is Verdict.UNDECIDED:
            # Nothing is left open without a rule that can still speak.
            assert any(table.rule.scope & {"name", "hello", "event"} for table in tables)
        elif decision.verdict is Verdict.ALLOW or not explicit:
            assert later == {decision.verdict}, (flow, decision, later)
        elif not any("event" in table.rule.scope for table in tables):
            # A refusal stands: later rules could only make it another refusal.
            assert later <= {Verdict.DENY, Verdict.REJECT}


@settings(max_examples=800, deadline=None)
@given(st.integers(min_value=0, max_value=1 << 48))
def test_no_verdict_reaches_further_than_its_facts(seed: int) -> None:
    check(seed)
