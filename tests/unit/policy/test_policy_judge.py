"""Decisions as a flow meets them: scopes, stages, failures, and the judge's memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import msgspec
import pytest

from engine.errors import EvaluatorError
from engine.model.decision import Decision, Reason, Stage, Verdict
from engine.model.facts import (
    ALL_FACTS,
    Clock,
    Dest,
    Direction,
    Event,
    Exe,
    Facts,
    Host,
    Name,
    NameState,
    Transport,
)
from engine.policy.bundle import Bundle
from engine.policy.decide import asks, decide
from engine.policy.evaluator import Answer, Question, shared
from engine.policy.judge import UNSETTLED, Judge, clock_remaining
from engine.policy.rule import Rule, widenings

NOW = datetime(2026, 3, 2, 10, 20, 0, tzinfo=timezone.utc)
DENY, REJECT, ALLOW = frozenset({Verdict.DENY}), frozenset({Verdict.REJECT}), frozenset({Verdict.ALLOW})


def made(
    name: str,
    *scope: str,
    effects: frozenset[Verdict] = DENY,
    target: Sequence[str] | None = None,
    reads: Sequence[str] = (),
) -> Rule:
    return Rule(
        name,
        f"data.sallyport.rules.{name}",
        frozenset(scope),
        "",
        frozenset(target) if target is not None else None,
        effects,
        reads=frozenset(reads),
    )


def facts(*, exe: str = "/usr/bin/a", name: str = "www.example", port: int = 443) -> Facts:
    return Facts(
        Event.PAYLOAD,
        Direction.EGRESS,
        Dest("192.0.2.1", port, Transport.TCP, "public"),
        Clock(10, "monday"),
        exe=Exe(exe),
        name=Name(name, NameState.COMPLETE),
        host=Host("h", {"env": "lab"}),
    )


class Spoken:
    """An evaluator that answers from a function and writes down what it was asked."""

    name = "spoken"

    def __init__(self, say: Callable[[Question], Answer]) -> None:
        self._say = say
        self.asked: list[Question] = []
        self.roused: list[list[str]] = []

    async def load(self, bundle: Bundle, rules: Sequence[Rule]) -> None:
        raise NotImplementedError

    def rouse(self, rules: Sequence[str]) -> None:
        self.roused.append(list(rules))

    async def evaluate(self, questions: Sequence[Question]) -> Sequence[Answer]:
        self.asked += questions
        return [shared(self._say(question)) for question in questions]

    async def close(self) -> None:
        raise NotImplementedError


def ask(judge: Judge, flow: Facts, stage: Stage = Stage.PAYLOAD, now: datetime = NOW) -> Decision:
    return asyncio.run(judge.decide(flow, stage, now=now))


def test_the_same_name_is_allowed_for_one_program_and_denied_for_another() -> None:
    evaluator = Spoken(
        lambda question: Answer(deny=() if question.input["exe"].path == "/usr/bin/a" else ("not for this program",))
    )
    judge = Judge(evaluator, [made("exe_names", "exe", "name")], Verdict.ALLOW)
    allowed = ask(judge, facts(exe="/usr/bin/a"))
    denied = ask(judge, facts(exe="/usr/bin/b"))
    again = ask(judge, facts(exe="/usr/bin/a"))
    assert (allowed.verdict, allowed.scope) == (Verdict.ALLOW, {"exe", "name"})
    assert (denied.verdict, denied.scope) == (Verdict.DENY, {"exe", "name"})
    assert again == allowed
    assert len(evaluator.asked) == 2
    assert (judge.hits, judge.misses) == (1, 2)


def test_a_rule_is_given_its_own_facts_and_no_others() -> None:
    evaluator = Spoken(lambda _: Answer())
    ask(Judge(evaluator, [made("one", "name"), made("two", "dest", "exe")], Verdict.ALLOW), facts())
    assert [(question.rule, sorted(question.input)) for question in evaluator.asked] == [
        ("one", ["name"]),
        ("two", ["dest", "exe"]),
    ]


def test_the_input_of_a_question_is_what_the_facts_select() -> None:
    evaluator = Spoken(lambda _: Answer())
    flow = facts()
    ask(Judge(evaluator, [made("one", *ALL_FACTS)], Verdict.ALLOW), flow)
    (question,) = evaluator.asked
    assert msgspec.json.decode(msgspec.json.encode(question.input)) == flow.select(ALL_FACTS)


def test_an_answer_is_remembered_under_the_rules_facts_alone() -> None:
    evaluator = Spoken(lambda _: Answer())
    judge = Judge(evaluator, [made("one", "name", "host")], Verdict.ALLOW)
    for port in range(5):
        ask(judge, facts(port=port, exe=f"/usr/bin/{port}"))
    ask(judge, facts(name="other.example"))
    assert len(evaluator.asked) == 2


def test_a_false_target_is_remembered_for_every_body() -> None:
    evaluator = Spoken(lambda _: Answer(target=False))
    judge = Judge(evaluator, [made("one", "dest", "exe", target=["dest"])], Verdict.ALLOW)
    decisions = {ask(judge, facts(exe=f"/usr/bin/{number}")).scope for number in range(5)}
    assert decisions == {frozenset({"dest"})}
    assert len(evaluator.asked) == 1


def test_a_true_target_says_nothing_about_the_next_body() -> None:
    evaluator = Spoken(lambda question: Answer(("no",) if question.input["exe"].path == "/b" else (), target=True))
    judge = Judge(evaluator, [made("one", "dest", "exe", target=["dest"])], Verdict.ALLOW)
    assert ask(judge, facts(exe="/a")).verdict is Verdict.ALLOW
    assert ask(judge, facts(exe="/b")).verdict is Verdict.DENY


def test_a_true_target_at_connect_is_not_the_answer_at_the_payload() -> None:
    evaluator = Spoken(lambda question: Answer(target=True) if question.only_target else Answer(("no",), target=True))
    judge = Judge(evaluator, [made("one", "dest", "name", target=["dest"])], Verdict.ALLOW)
    assert ask(judge, facts(), Stage.CONNECT).verdict is Verdict.UNDECIDED
    assert ask(judge, facts(), Stage.PAYLOAD).verdict is Verdict.DENY
    assert ask(judge, facts(), Stage.CONNECT).verdict is Verdict.UNDECIDED
    assert len(evaluator.asked) == 2


def test_the_memory_is_bounded() -> None:
    evaluator = Spoken(lambda _: Answer())
    judge = Judge(evaluator, [made("one", "name")], Verdict.ALLOW, memory=3)
    for name in ("a", "b", "c", "a", "d", "a", "b"):
        ask(judge, facts(name=name))
    # "b" was the longest unused when "d" came.
    assert [question.input["name"].value for question in evaluator.asked] == ["a", "b", "c", "d", "b"]


@pytest.mark.parametrize("posture", [Verdict.ALLOW, Verdict.DENY])
def test_a_failed_answer_is_the_posture_for_this_flow_only_and_is_not_remembered(posture: Verdict) -> None:
    evaluator = Spoken(lambda _: Answer(allow=("made up",), error="out of order"))
    judge = Judge(evaluator, [made("one", "name", effects=ALLOW)], Verdict.REJECT, posture=posture)
    decision = ask(judge, facts())
    assert decision == Decision(
        posture, ALL_FACTS, (Reason("posture", "rule one gave no answer: out of order"),), 0.0, failed=True
    )
    ask(judge, facts())
    assert len(evaluator.asked) == 2


def test_a_refusal_stands_when_another_rule_fails() -> None:
    evaluator = Spoken(lambda question: Answer(("no",)) if question.rule == "two" else Answer(error="gone"))
    judge = Judge(evaluator, [made("one", "name"), made("two", "dest")], Verdict.ALLOW, posture=Verdict.ALLOW)
    decision = ask(judge, facts())
    assert (decision.verdict, decision.failed, decision.ttl, decision.scope) == (Verdict.DENY, True, 0.0, ALL_FACTS)


def test_an_answer_is_never_found_under_another_rules_facts() -> None:
    """Rules of one fact and of two, more facts than rules: whatever the numbers of facts are, no two answers share a
    place."""
    rules = [made(f"rule{number}", *(("dest", "name") if number % 3 == 0 else ("name",))) for number in range(9)]

    def said(question: Question) -> Answer:
        port = question.input["dest"].port if "dest" in question.input else "any"
        return Answer(deny=(f"{question.rule} of {question.input['name'].value} at {port}",))

    judge = Judge(Spoken(said), rules, Verdict.ALLOW)
    for _ in range(2):
        for port in range(1, 6):
            for name in ("a.example", "b.example", "c.example"):
                decision = ask(judge, facts(port=port, name=name))
                told = {reason.rule: reason.message for reason in decision.reasons}
                assert told == {
                    rule.name: f"{rule.name} of {name} at {port if 'dest' in rule.scope else 'any'}" for rule in rules
                }
    assert judge.hits > judge.misses


@pytest.mark.parametrize("stage", Stage)
def test_silence_decides_what_the_answers_would(stage: Stage) -> None:
    """What is worked out once for all flows that no rule speaks to is what the algebra says for each of them."""
    rules = [
        made("one", "dest", "name", target=("dest",)),
        made("two", "exe", target=("exe",)),
        made("three", "cgroup", effects=frozenset({Verdict.ALLOW})),
    ]
    inside: dict[str, bool] = {}
    spoken: list[str] = []

    def said(question: Question) -> Answer:
        target = inside.get(question.rule)
        return Answer(deny=("no",) if question.rule in spoken and target is not False else (), target=target)

    judge = Judge(Spoken(said), rules, Verdict.ALLOW, memory=0)
    for speaking in ([], ["two"], []):
        spoken[:] = speaking
        for first in (True, False):
            for second in (True, False):
                inside.update(one=first, two=second)
                asked = [rule for rule in rules if asks(rule, stage) is not False]
                answers = {rule.name: said(Question(rule.name, {})) for rule in asked}
                expected = decide(rules, Verdict.ALLOW, answers, stage)
                assert ask(judge, facts(), stage) == expected == ask(judge, facts(), stage)


def test_the_evaluator_is_roused_with_what_the_last_flow_of_the_stage_was_asked_about() -> None:
    evaluator = Spoken(lambda _: Answer())
    judge = Judge(evaluator, [made("names", "name"), made("places", "dest")], Verdict.ALLOW)
    judge.rouse(Stage.PAYLOAD)
    ask(judge, facts(name="a.example"))
    judge.rouse(Stage.CONNECT)
    assert evaluator.roused == []
    judge.rouse(Stage.PAYLOAD)
    ask(judge, facts(name="b.example"))
    judge.rouse(Stage.PAYLOAD)
    assert evaluator.roused == [["names", "places"], ["names"]]
    # Nothing had to be asked: the next flow may sleep through it too.
    ask(judge, facts(name="b.example"))
    judge.rouse(Stage.PAYLOAD)
    assert len(evaluator.roused) == 2


def test_an_evaluator_that_raises_or_answers_too_little_is_a_failure() -> None:
    class Broken(Spoken):
        async def evaluate(self, questions: Sequence[Question]) -> Sequence[Answer]:
            raise EvaluatorError("gone")

    class Short(Spoken):
        async def evaluate(self, questions: Sequence[Question]) -> Sequence[Answer]:
            return []

    for evaluator in (Broken, Short):
        decision = ask(Judge(evaluator(lambda _: Answer()), [made("one", "name")], Verdict.ALLOW), facts())
        assert (decision.verdict, decision.failed) == (Verdict.DENY, True)


def test_a_decision_without_an_answer_is_never_an_allow() -> None:
    one = replace(made("decision", "dest", effects=DENY | REJECT | ALLOW), decision=True)
    decision = decide([one], None, {"decision": Answer()}, Stage.PAYLOAD, Verdict.DENY)
    assert (decision.verdict, decision.failed) == (Verdict.DENY, True)


def test_deny_before_reject_before_allow_before_the_default() -> None:
    rules = [made("d", "dest"), made("r", "exe", effects=REJECT), made("a", "name", effects=ALLOW)]

    def verdict(**said: Answer) -> tuple[Verdict, frozenset[str]]:
        answers = {name: said.get(name, Answer()) for name in ("d", "r", "a")}
        decision = decide(rules, Verdict.DENY, answers, Stage.PAYLOAD)
        return decision.verdict, decision.scope

    everything = {"d": Answer(("no",)), "r": Answer(reject=("no",)), "a": Answer(allow=("yes",))}
    assert verdict(**everything) == (Verdict.DENY, {"dest"})
    assert verdict(r=everything["r"], a=everything["a"]) == (Verdict.REJECT, {"dest", "exe"})
    assert verdict(a=everything["a"]) == (Verdict.ALLOW, {"dest", "exe", "name"})
    assert verdict() == (Verdict.DENY, {"exe", "name"})


def test_the_denying_rule_that_is_kept_longest_gives_the_scope() -> None:
    rules = [made("flow", "process"), made("wide", "dest", "exe"), made("narrow", "name"), made("clocked", "clock")]
    answers = {rule.name: Answer((f"by {rule.name}",)) for rule in rules}
    decision = decide(rules, Verdict.ALLOW, answers, Stage.PAYLOAD)
    assert decision.scope == {"name"}
    assert [reason.rule for reason in decision.reasons] == ["narrow", "wide", "clocked", "flow"]


def test_the_shortest_ttl_of_the_joined_rules_counts() -> None:
    rules = [made("d", "dest"), made("a", "name", effects=ALLOW), made("b", "exe", effects=ALLOW)]
    answers = {"d": Answer(ttl=50.0), "a": Answer(allow=("yes",), ttl=90.0), "b": Answer(ttl=1.0)}
    assert decide(rules, Verdict.DENY, answers, Stage.PAYLOAD).ttl == 50.0
    answers["d"] = Answer(("no",), ttl=70.0)
    assert decide(rules, Verdict.DENY, answers, Stage.PAYLOAD).ttl == 70.0


def test_at_connect_a_rule_by_name_leaves_the_flow_undecided() -> None:
    evaluator = Spoken(lambda _: Answer())
    judge = Judge(evaluator, [made("names", "name"), made("addresses", "dest")], Verdict.ALLOW)
    decision = ask(judge, facts(), Stage.CONNECT)
    assert (decision.verdict, decision.scope) == (Verdict.UNDECIDED, {"dest"})
    assert [question.rule for question in evaluator.asked] == ["addresses"]


def test_at_connect_a_deny_stands() -> None:
    judge = Judge(Spoken(lambda _: Answer(("no",))), [made("names", "name"), made("addresses", "dest")], Verdict.ALLOW)
    assert ask(judge, facts(), Stage.CONNECT).verdict is Verdict.DENY


def test_at_connect_a_false_target_decides_without_the_payload() -> None:
    evaluator = Spoken(lambda _: Answer(target=False))
    judge = Judge(evaluator, [made("names", "name", "dest", target=["dest"])], Verdict.ALLOW)
    decision = ask(judge, facts(port=22), Stage.CONNECT)
    assert (decision.verdict, decision.scope) == (Verdict.ALLOW, {"dest"})
    assert [(question.only_target, sorted(question.input)) for question in evaluator.asked] == [(True, ["dest"])]


def test_at_connect_default_deny_waits_for_a_rule_that_could_allow() -> None:
    judge = Judge(Spoken(lambda _: Answer()), [made("names", "name", effects=ALLOW)], Verdict.DENY)
    assert ask(judge, facts(), Stage.CONNECT).verdict is Verdict.UNDECIDED
    judge = Judge(Spoken(lambda _: Answer()), [made("names", "name", effects=DENY)], Verdict.DENY)
    assert ask(judge, facts(), Stage.CONNECT).verdict is Verdict.DENY


def test_at_connect_a_rule_that_reads_the_event_may_refuse_but_not_yet_allow() -> None:
    rules = [made("events", "event", "dest", effects=DENY | ALLOW)]
    assert (
        ask(Judge(Spoken(lambda _: Answer(("no",))), rules, Verdict.ALLOW), facts(), Stage.CONNECT).verdict
        is Verdict.DENY
    )
    allowing = Judge(Spoken(lambda _: Answer(allow=("yes",))), rules, Verdict.ALLOW)
    assert ask(allowing, facts(), Stage.CONNECT).verdict is Verdict.UNDECIDED


def test_at_connect_a_single_decision_by_name_waits() -> None:
    one = replace(made("decision", "name", effects=DENY | REJECT | ALLOW), decision=True)
    decision = ask(Judge(Spoken(lambda _: Answer()), [one], None), facts(), Stage.CONNECT)
    assert (decision.verdict, decision.failed) == (Verdict.UNDECIDED, False)


def test_without_rules_the_default_serves_everyone() -> None:
    decision = ask(Judge(Spoken(lambda _: Answer()), [], Verdict.REJECT), facts(), Stage.CONNECT)
    assert decision == Decision(Verdict.REJECT, frozenset(), (Reason("default", "the policy's default is reject"),))


def test_a_verdict_by_the_hour_ends_with_the_hour() -> None:
    rules = [made("hours", "clock", reads=["clock.hour"])]
    decision = ask(Judge(Spoken(lambda _: Answer()), rules, Verdict.ALLOW), facts())
    assert decision.ttl == 40 * 60.0
    sooner = ask(Judge(Spoken(lambda _: Answer(ttl=5.0)), rules, Verdict.ALLOW), facts())
    assert sooner.ttl == 5.0


def test_a_verdict_that_did_not_read_the_clock_is_not_bound_by_it() -> None:
    rules = [made("hours", "clock", reads=["clock.hour"]), made("names", "name")]
    evaluator = Spoken(lambda question: Answer(("no",)) if question.rule == "names" else Answer())
    assert ask(Judge(evaluator, rules, Verdict.ALLOW), facts()).ttl is None


def test_a_day_is_kept_an_hour_less_for_the_day_that_has_23() -> None:
    weekday = frozenset({"weekday"})
    assert clock_remaining(weekday, NOW) == (13 * 60 + 40) * 60 - 3600
    assert clock_remaining(weekday, NOW.replace(hour=23)) == 40 * 60
    assert clock_remaining(weekday | {"hour"}, NOW) == 40 * 60
    assert clock_remaining(frozenset(), NOW) is None
    assert clock_remaining(weekday, NOW.replace(hour=23, minute=59, second=59) + timedelta(microseconds=999_999)) > 0


def test_a_verdict_that_read_the_names_of_the_address_ends_with_the_first_of_them() -> None:
    judge = Judge(Spoken(lambda _: Answer()), [made("names", "dest_names")], Verdict.ALLOW)
    flow = replace(facts(), dest_names=("a.example",), dest_names_left=30.0)
    for stage in Stage:
        decision = ask(judge, flow, stage)
        assert (decision.ttl, decision.scope) == (30.0, {"dest_names"})
    # The answer comes from memory, the time from the flow.
    assert ask(judge, replace(flow, dest_names_left=7.0)).ttl == 7.0
    assert judge.misses == 1


def test_the_soonest_of_all_bounds_counts() -> None:
    rules = [made("both", "dest_names", "clock", reads=["clock.hour"])]
    flow = replace(facts(), dest_names=("a.example",), dest_names_left=30.0)
    assert ask(Judge(Spoken(lambda _: Answer()), rules, Verdict.ALLOW), flow).ttl == 30.0
    assert ask(Judge(Spoken(lambda _: Answer(ttl=4.0)), rules, Verdict.ALLOW), flow).ttl == 4.0
    long = replace(flow, dest_names_left=86_400.0)
    assert ask(Judge(Spoken(lambda _: Answer()), rules, Verdict.ALLOW), long).ttl == 40 * 60.0


def test_a_verdict_that_did_not_read_the_names_is_not_bound_by_them() -> None:
    rules = [made("names", "dest_names"), made("addresses", "dest")]
    evaluator = Spoken(lambda question: Answer(("no",)) if question.rule == "addresses" else Answer())
    flow = replace(facts(), dest_names=("a.example",), dest_names_left=30.0)
    decision = ask(Judge(evaluator, rules, Verdict.ALLOW), flow)
    assert (decision.scope, decision.ttl) == ({"dest"}, None)
    # Where both refuse, the one that can be kept for others is the witness.
    both = ask(Judge(Spoken(lambda _: Answer(("no",))), rules, Verdict.ALLOW), flow)
    assert (both.scope, both.ttl) == ({"dest"}, None)


@pytest.mark.parametrize(
    ("transport", "refused", "left", "ttl"),
    [
        (Transport.TCP, True, None, None),  # the connection is over; the next one is another flow
        (Transport.TCP, False, None, None),
        (Transport.UDP, False, None, None),
        (Transport.UDP, True, None, UNSETTLED),
        (Transport.UDP, True, 86_400.0, UNSETTLED),
        (Transport.UDP, True, 2.0, 2.0),
    ],
)
def test_datagrams_are_not_refused_for_long_over_names_that_may_still_be_answered(
    transport: Transport, refused: bool, left: float | None, ttl: float | None
) -> None:
    judge = Judge(Spoken(lambda _: Answer(("no",) if refused else ())), [made("names", "dest_names")], Verdict.ALLOW)
    names = ("a.example",) if left else ()
    flow = replace(facts(), dest=Dest("192.0.2.1", 443, transport, "public"), dest_names=names, dest_names_left=left)
    assert ask(judge, flow).ttl == ttl


def test_widenings_name_the_rule_that_adds() -> None:
    rules = [made("a", "name", effects=ALLOW), made("m", "dest", "cgroup"), made("n", "name", effects=REJECT)]
    assert [str(widening) for widening in widenings(rules, Verdict.DENY)] == [
        "denies by m will be kept under cgroup, dest",
        "rejects by n will be kept under cgroup, dest, name (m adds cgroup, dest)",
        "allows by a will be kept under cgroup, dest, name (m adds cgroup, dest)",
        "the default (deny) will be kept under name (a adds name; n adds name)",
    ]
