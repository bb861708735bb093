"""What the kernel tells: into the journal, the alerts, and the table of flows."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.abi.numbers import EventType, KernelVerdict, Mode, Origin, Present
from engine.abi.records import PROCESS_EVENT, SOCKET_EVENT, Identity, Process, VerdictEvent
from engine.alerts.alert import Kind
from engine.model.decision import Stage, Verdict
from engine.model.facts import NameState
from engine.runtime.orders import Order
from tests.support import hello as build
from tests.support.egress import Outcome, record
from tests.support.rig import Client, Rig, deny_names, run

HELLO, BAD = build.client_hello("good.example"), build.client_hello("bad.example")
WHO = Identity(5, 77, 1001, 1001, 1000, 0)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, deny_names("bad.example"))


async def play(rig: Rig, hello: bytes, sport: int = 40_000) -> Client:
    client = rig.client(sport=sport)
    client.send(client.syn())
    await rig.settle()
    client.send(client.tcp(hello))
    await rig.settle()
    return client


def closed(client: Client) -> bytes:
    return SOCKET_EVENT.pack(
        1, EventType.CLOSE, *WHO, *client.flow, 5, 0, client.socket.cookie, 0, 0, 0, 0, 0, 0, 0
    )  # fmt: skip


def event(client: Client, **changes: object) -> VerdictEvent:
    standard = VerdictEvent(
        1, EventType.VERDICT, WHO, client.flow, 7, 1, client.socket.cookie, 0, KernelVerdict.DENY, Origin.DEST, 0, 0
    )
    return standard._replace(**changes)  # type: ignore[arg-type]


def test_a_name_that_the_kernel_decided_is_told_with_the_reasons_of_its_entry(rig: Rig) -> None:
    async def scene() -> None:
        await play(rig, HELLO)
        second = await play(rig, HELLO, 40_001)
        rig.tell()
        told, name, reasons = rig.diary.verdicts[-1]
        assert (told.cookie, told.origin, name.value, name.state) == (
            second.socket.cookie, Origin.NAME, "good.example", NameState.COMPLETE,
        )  # fmt: skip
        assert reasons[0].rule == "default"
        # The verdict needed no executable; who reads the log wants to know it.
        assert rig.people.record(told.identity.exe).path == "/usr/bin/program1"  # type: ignore[union-attr]
        flow = rig.gatekeeper.flows.by_cookie(second.socket.cookie)
        assert flow is not None
        assert (flow.name.value, flow.stage, flow.passed, flow.generation) == (  # type: ignore[union-attr]
            "good.example", Stage.PAYLOAD, True, 1,
        )  # fmt: skip

    run(scene())


def test_a_standing_deny_alerts_and_ends_the_socket(rig: Rig) -> None:
    async def scene() -> None:
        await play(rig, BAD)
        rig.cuts.clear()
        rig.alerts.clear()
        second = await play(rig, BAD, 40_001)
        rig.tell()
        assert rig.cuts == [(second.flow, second.socket.cookie)]
        [alert] = rig.alerts
        assert (alert.kind, alert.details["name"], alert.details["standing"]) == (Kind.VIOLATION, "bad.example", True)
        assert "bad.example is denied" in alert.summary

    run(scene())


def test_observed_denies_alert_and_end_nothing(tmp_path: Path) -> None:
    async def scene() -> None:
        rig = Rig(tmp_path, deny_names("bad.example"), mode=Mode.OBSERVE)
        for sport in (40_000, 40_001):
            assert (await play(rig, BAD, sport)).send is not None
        rig.tell()
        assert rig.cuts == []
        assert [alert.details["observed"] for alert in rig.alerts] == [True, True]

    run(scene())


def test_a_refused_connect_alerts_and_is_no_flow(rig: Rig) -> None:
    async def scene() -> None:
        client = rig.client()
        rig.telling.record(record(event(client, type=EventType.REFUSED)))
        assert rig.kinds() == [Kind.VIOLATION]
        assert len(rig.gatekeeper.flows) == 0
        assert rig.cuts == []

    run(scene())


def test_a_persons_entry_is_told_with_the_persons_reason(rig: Rig) -> None:
    async def scene() -> None:
        rig.orders.set(
            Order.make(
                {"kind": "verdict", "by": "name", "value": "good.example", "word": "deny", "reason": "incident 812"}
            )
        )
        client = await play(rig, HELLO)
        rig.tell()
        _, _, reasons = rig.diary.verdicts[-1]
        assert (reasons[0].rule, reasons[0].message) == ("verdict set", "incident 812")
        flow = rig.gatekeeper.flows.by_cookie(client.socket.cookie)
        assert flow is not None
        assert flow.by_person

    run(scene())


def test_an_ignored_flow_is_told_as_passing_by_a_persons_word(rig: Rig) -> None:
    async def scene() -> None:
        rig.orders.set(Order.make({"kind": "strategy", "by": "uid", "value": "1000", "word": "ignore"}))
        client = rig.client()
        assert client.send(client.syn()).outcome is Outcome.PASS
        rig.tell()
        told, _, reasons = rig.diary.verdicts[-1]
        assert (told.verdict, reasons[0].rule) == (KernelVerdict.IGNORE, "strategy set")
        flow = rig.gatekeeper.flows.by_cookie(client.socket.cookie)
        assert flow is not None
        assert flow.decision is not None
        assert (flow.decision.verdict, flow.by_person) == (Verdict.ALLOW, True)
        assert rig.alerts == []

    run(scene())
    assert rig.gate.config().present == Present.STRATEGY_ID


def test_news_of_a_flow_whose_frames_wait_does_not_lose_them(tmp_path: Path) -> None:
    """A QUIC hello is held in part when another flow's verdict lets the next datagram pass."""

    async def scene() -> None:
        rig = Rig(tmp_path, deny_names("bad.example"))
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        client.send(client.tcp(HELLO[:100]))
        rig.telling.record(record(event(client, verdict=KernelVerdict.ALLOW)))
        client.send(client.tcp(HELLO[100:], at=100))
        await rig.settle()
        assert client.sent == [client.syn(), client.tcp(HELLO[:100]), client.tcp(HELLO[100:], at=100)]

    run(scene())


def test_a_socket_that_closed_is_forgotten(rig: Rig) -> None:
    async def scene() -> None:
        client = await play(rig, HELLO)
        assert rig.gatekeeper.flows.by_cookie(client.socket.cookie) is not None
        rig.telling.record(closed(client))
        assert rig.gatekeeper.flows.by_cookie(client.socket.cookie) is None
        assert len(rig.diary.sockets) == 1

    run(scene())


def test_a_socket_that_closed_with_frames_on_hold_is_still_answered_for(rig: Rig) -> None:
    async def scene() -> None:
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        client.send(client.tcp(HELLO[:100]))
        rig.telling.record(closed(client))
        client.send(client.tcp(HELLO[100:], at=100))
        await rig.settle()
        assert rig.diary.decisions[-1][0].name.value == "good.example"

    run(scene())


def test_a_process_is_looked_up_when_it_executes_and_not_when_it_ends(rig: Rig) -> None:
    rig.gate.put_process(1001, Process(77, 0))
    rig.telling.record(PROCESS_EVENT.pack(1, EventType.EXEC, *WHO))
    assert rig.gate.process(1001) == Process(77, 1)
    rig.gate.remove_process(1001)
    rig.telling.record(PROCESS_EVENT.pack(1, EventType.EXIT, *WHO))
    assert rig.gate.process(1001) is None
    assert [exe for _, exe in rig.diary.processes] == [1, 0]


def test_a_record_of_an_unknown_type_is_passed_over(rig: Rig) -> None:
    rig.telling.record(bytes(8) + (99).to_bytes(4, "little") + bytes(200))
    assert rig.telling.handled == 1
    assert (rig.diary.verdicts, rig.diary.sockets, rig.diary.processes) == ([], [], [])


def test_a_person_s_allow_that_ran_out_is_not_an_allow_any_more(rig: Rig) -> None:
    """The flow passed by a person's entry; when the gate asks again, the policy answers."""

    async def scene() -> None:
        word = Order.make({"kind": "verdict", "by": "name", "value": "bad.example", "word": "allow"})
        rig.orders.set(word)
        client = await play(rig, BAD)
        rig.tell()
        rig.orders.clear(word.selector)
        client.socket.expires = 1
        rig.released.clear()
        assert client.send(client.tcp(b"more", at=len(BAD))).outcome is Outcome.HOLD
        await rig.settle()
        assert rig.released == []
        assert rig.diary.decisions[-1][1].verdict is Verdict.DENY

    run(scene())
