"""From one generation to the next: the order of the writes, and what becomes of the flows in progress."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.abi.numbers import KernelVerdict, Mode, Present
from engine.abi.records import SourceKey
from engine.alerts.alert import Kind
from engine.config import Mode as ConfigMode
from engine.model.decision import Verdict
from engine.model.facts import NameState
from engine.model.posture import Condition, Posture, Stance
from engine.policy.evaluator import Answer, Question
from engine.policy.rule import Rule
from engine.policy.sources import Prefixes, SourceRules
from engine.ports import MapFullError
from engine.runtime.orders import Order
from engine.runtime.reload import Switch, Switched
from tests.support import hello as build
from tests.support.egress import Outcome
from tests.support.rig import VNET, Broken, Client, Rig, Spoken, deny_names, run

GOOD, BAD = (build.client_hello(f"{name}.example") for name in ("good", "bad"))


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, deny_names())


async def under_way(rig: Rig, hello: bytes = GOOD, **client: int) -> Client:
    one = rig.client(**client)
    one.send(one.syn())
    await rig.settle()
    one.send(one.tcp(hello))
    await rig.settle()
    return one


async def switch(rig: Rig, evaluator: Spoken, mode: ConfigMode = ConfigMode.ENFORCE, **policy: object) -> Switched:
    force = rig.force(rig.gatekeeper.force.number + 1, evaluator, **policy)
    return await Switch(rig.gate, rig.gatekeeper, rig.identifier, rig.sources, mode).to(force)


def test_plan_and_entries_before_the_number_and_the_cut_before_it_too(rig: Rig) -> None:
    async def scene() -> None:
        kept, ended = await under_way(rig), await under_way(rig, BAD, sport=40_001)
        rig.calls.clear()
        done = await switch(
            rig, Spoken(deny_names("bad.example")), sources=SourceRules(Prefixes.of(["203.0.113.0/24"]))
        )
        actions = [name for name, _ in rig.calls]
        flip = actions.index("generation")
        assert actions[0] == "plan"
        assert actions.index("source") < flip
        assert actions.index("cut") < flip
        # Both flows have their verdict of the new generation before it is in force: none of them is held up.
        assert [call[1][0].generation for call in rig.calls[:flip] if call[0] == "flow"] == [2, 2]
        assert rig.gate.generation() == 2
        assert (done.judged, done.cut, rig.cuts) == (2, 1, [(ended.flow, ended.socket.cookie)])
        assert kept.send(kept.tcp(b"x", at=len(GOOD))).outcome is Outcome.PASS
        assert ended.send(ended.tcp(b"x", at=len(BAD))).outcome is Outcome.DROP

    run(scene())


def test_the_deny_of_a_flow_stands_before_its_socket_is_ended(rig: Rig) -> None:
    async def scene() -> None:
        await under_way(rig, BAD)
        rig.calls.clear()
        await switch(rig, Spoken(deny_names("bad.example")))
        actions = [name for name, _ in rig.calls]
        assert actions.index("flow") < actions.index("cut")

    run(scene())


def test_a_flow_that_is_denied_now_is_told_with_its_reason(rig: Rig) -> None:
    async def scene() -> None:
        await under_way(rig, BAD)
        await switch(rig, Spoken(deny_names("bad.example")))
        facts, decision, _, observed = rig.diary.decisions[-1]
        assert (facts.name.value, decision.reasons[0].message, observed) == (
            "bad.example", "bad.example is denied", False,
        )  # fmt: skip
        assert rig.alerts[-1].details["name"] == "bad.example"

    run(scene())


def test_a_failing_evaluator_ends_no_connection_and_lets_nothing_of_it_out(rig: Rig) -> None:
    async def scene() -> None:
        client = await under_way(rig)
        done = await switch(rig, Broken())
        assert (done.cut, rig.cuts) == (0, [])
        assert rig.diary.decisions[-1][1].failed
        assert Kind.EVALUATOR_FAILED in rig.kinds()
        rig.released.clear()
        more = client.tcp(b"more", at=len(GOOD))
        for _ in range(2):  # sent again, it asks again
            asked = len(rig.diary.decisions)
            assert client.send(more).outcome is Outcome.HOLD
            await rig.settle()
            assert len(rig.diary.decisions) == asked + 1
        assert (rig.released, rig.cuts) == ([], [])
        rig.gatekeeper.force.judge = rig.force(3, Spoken(deny_names("bad.example"))).judge
        assert client.send(more).outcome is Outcome.HOLD
        await rig.settle()
        assert client.sent[-1] == more

    run(scene())


def test_a_refusal_beside_an_evaluator_that_fails_ends_a_connection(rig: Rig) -> None:
    async def scene() -> None:
        await under_way(rig)
        answers = {"names": Answer(deny=("no more of it",)), "broken": Answer(error="out of order")}
        rig.rules = tuple(Rule(name, name, frozenset({"dest"}), "") for name in answers)

        class Half(Spoken):
            async def evaluate(self, questions: Sequence[Question]) -> list[Answer]:
                return [answers[question.rule] for question in questions]

        done = await switch(rig, Half(lambda _: Answer()))
        assert done.cut == 1
        assert rig.diary.decisions[-1][1].reasons[0].message == "no more of it"

    run(scene())


def test_observing_ends_nothing(tmp_path: Path) -> None:
    async def scene() -> None:
        rig = Rig(tmp_path, deny_names(), mode=Mode.OBSERVE)
        await under_way(rig, BAD)
        done = await switch(rig, Spoken(deny_names("bad.example")), ConfigMode.OBSERVE)
        assert (done.cut, rig.cuts) == (0, [])
        assert rig.diary.decisions[-1][3] is True

    run(scene())


def test_a_flow_under_the_strategy_observe_is_not_ended(rig: Rig) -> None:
    async def scene() -> None:
        rig.set_present(Present.STRATEGY_ID)
        rig.orders.set(Order.make({"kind": "strategy", "by": "uid", "value": "1000", "word": "observe"}))
        await under_way(rig, BAD)
        done = await switch(rig, Spoken(deny_names("bad.example")))
        assert (done.judged, done.cut, rig.cuts) == (1, 0, [])
        assert rig.diary.decisions[-1][3] is True

    run(scene())


def test_a_flow_that_the_kernel_decided_alone_is_found_too(rig: Rig) -> None:
    async def scene() -> None:
        await under_way(rig, BAD)
        second = await under_way(rig, BAD, sport=40_001)
        rig.tell()
        await switch(rig, Spoken(deny_names("bad.example")))
        assert (second.flow, second.socket.cookie) in rig.cuts

    run(scene())


def test_a_flow_that_a_person_passed_is_not_asked_about(rig: Rig) -> None:
    async def scene() -> None:
        rig.orders.set(Order.make({"kind": "verdict", "by": "name", "value": "bad.example", "word": "allow"}))
        client = await under_way(rig, BAD)
        rig.tell()
        done = await switch(rig, Spoken(deny_names("bad.example")))
        assert (done.judged, rig.cuts) == (0, [])
        # Its next packet meets the person's word again.
        assert client.send(client.tcp(b"x", at=len(BAD))).outcome is not Outcome.DROP
        await rig.settle()
        assert VNET + client.tcp(b"x", at=len(BAD)) in rig.released

    run(scene())


def test_a_flow_that_is_being_judged_meets_the_new_generation_by_itself(rig: Rig) -> None:
    async def scene() -> None:
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        rig.released.clear()
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        rig.evaluator.hold = answer
        client.send(client.tcp(BAD))
        await asyncio.sleep(0)
        done = await switch(rig, Spoken(deny_names("bad.example")))
        assert done.judged == 0
        answer.set_result(None)
        await rig.settle()
        assert rig.released == []
        assert rig.diary.decisions[-1][1].verdict is Verdict.DENY

    run(scene())


def test_a_flow_that_begins_during_the_switch_is_judged_by_the_new_policy(rig: Rig) -> None:
    """It was decided by the old generation after the others had been judged, and before the new number was written."""

    async def scene() -> None:
        await under_way(rig)
        late: list[Client] = []

        class Meanwhile(Spoken):
            async def evaluate(self, questions):  # type: ignore[no-untyped-def]
                if not late:
                    late.append(await under_way(rig, BAD, sport=40_001))
                return await super().evaluate(questions)

        await switch(rig, Meanwhile(deny_names("bad.example")))
        [client] = late
        assert rig.cuts == [(client.flow, client.socket.cookie)]
        assert client.send(client.tcp(b"x", at=len(BAD))).outcome is Outcome.DROP

    run(scene())


def test_the_old_entries_go_some_seconds_later_and_the_old_policy_with_them(rig: Rig) -> None:
    async def scene() -> None:
        await under_way(rig)
        old = rig.gatekeeper.force
        await switch(rig, Spoken(deny_names()))
        assert {key.generation for key, _ in rig.gate.connect_entries()} >= {1}
        await asyncio.sleep(4.9)
        assert {key.generation for key, _ in rig.gate.connect_entries()} >= {1}
        assert not old.policy.closed  # type: ignore[attr-defined]
        await asyncio.sleep(0.2)
        assert {key.generation for key, _ in rig.gate.connect_entries()} <= {2}
        assert old.policy.closed  # type: ignore[attr-defined]
        # A frame that was held long ago still finds the name that it passed by.
        assert rig.gatekeeper.entry(max(old._wide)) is not None

    run(scene())


def test_a_candidate_that_finds_no_room_leaves_nothing_behind(tmp_path: Path) -> None:
    async def scene() -> None:
        rig = Rig(tmp_path, deny_names(), sizes={"source_prefixes": 1})
        client = await under_way(rig)
        networks = ("203.0.113.0/24", "192.0.2.0/24")
        with pytest.raises(MapFullError):
            await switch(rig, Spoken(deny_names("good.example")), sources=SourceRules(Prefixes.of(networks)))
        assert rig.gate.generation() == rig.gatekeeper.force.number == 1
        # The next candidate gets the same number: it must not find the prefixes of this one under it.
        assert (rig.source_maps.hashed, rig.source_maps.trie) == ({}, {})
        assert rig.cuts == []
        assert client.send(client.tcp(b"x", at=len(GOOD))).outcome is Outcome.PASS
        await switch(rig, Spoken(deny_names()), sources=SourceRules(Prefixes.of(networks[:1])))
        assert list(rig.source_maps.trie) == [SourceKey(2, bytes(10) + b"\xff\xff\xcb\0\x71\0", 120)]

    run(scene())


def test_the_posture_speaks_about_a_flow_whose_rule_is_gone(tmp_path: Path) -> None:
    """It passed with an unreadable hello because a rule said so; without the rule nobody speaks for it."""
    rule = Rule("unreadable", "", frozenset({"name"}), "", effects=frozenset({Verdict.ALLOW, Verdict.DENY}))
    half = len(GOOD) // 2

    async def scene(posture: Posture) -> Rig:
        rig = Rig(tmp_path, lambda _: Answer(allow=("let it",)), rules=[rule], posture=posture)
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        client.send(client.tcp(GOOD[:half]))
        client.send(client.tcp(BAD[half - 40 : half], at=half - 40))
        await rig.settle()
        assert rig.diary.decisions[-1][0].name.state is NameState.MALFORMED
        assert rig.diary.decisions[-1][1].verdict is Verdict.ALLOW
        await switch(rig, Spoken(lambda _: Answer()))
        return rig

    assert len(run(scene(Posture.default())).cuts) == 1
    opened = Posture.default().with_changes({Condition.PARSER_MALFORMED: Stance.OPEN})
    assert run(scene(opened)).cuts == []


def test_a_flow_keeps_the_verdict_of_its_own_datagrams_program(tmp_path: Path) -> None:
    async def scene() -> None:
        rig = Rig(tmp_path, lambda _: Answer(), rules=[])
        client = rig.client()
        client.send(client.udp(b"query"))
        await rig.settle()
        await switch(rig, Spoken(lambda _: Answer()))
        new = [(key.part, entry.verdict) for key, entry in rig.gate.flow_entries() if key.generation == 2]
        assert new == [(1, KernelVerdict.ALLOW)]
        assert client.send(client.udp(b"query")).outcome is Outcome.PASS

    run(scene())
