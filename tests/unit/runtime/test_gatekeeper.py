"""Held frames as the gatekeeper meets them: read, judged, released in order or never."""

from __future__ import annotations

import asyncio
import struct
import time
from itertools import pairwise
from pathlib import Path

import pytest

from engine.abi.numbers import FlowFlag, Hook, KernelVerdict, Mode, Origin
from engine.abi.records import FlowKey
from engine.alerts.alert import Kind
from engine.config import Hold as HoldBounds
from engine.model.decision import Verdict
from engine.model.facts import Event, NameState
from engine.model.posture import Condition, Posture, Stance
from engine.policy.evaluator import Answer, Question
from engine.policy.rule import Rule
from engine.protocols.packet import URG
from engine.runtime import gatekeeper
from engine.runtime.orders import Order
from tests.support import hello as build
from tests.support import initials
from tests.support.captures import ACK, FIN, PSH
from tests.support.egress import Outcome
from tests.support.rig import VNET, Broken, Client, Rig, Spoken, deny_names, run

HELLO = build.client_hello("good.example", alpn=("h2",))
BAD = build.client_hello("bad.example", alpn=("h2",))
OPEN = Posture.default().with_changes({Condition.PARSER_PARTIAL: Stance.OPEN, Condition.PARSER_MALFORMED: Stance.OPEN})


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, deny_names("bad.example"))


def cut(data: bytes, pieces: int) -> list[tuple[int, bytes]]:
    edges = [len(data) * index // pieces for index in range(pieces + 1)]
    return [(a, data[a:b]) for a, b in pairwise(edges)]


def connect(rig: Rig, client: Client) -> None:
    """The SYN is judged and leaves; nothing is decided yet."""
    client.send(client.syn())
    run(rig.settle())
    assert client.sent == [client.syn()]
    rig.released.clear()
    rig.calls.clear()


def last(rig: Rig) -> tuple[Verdict, NameState, Event]:
    facts, decision, _, _ = rig.diary.decisions[-1]
    return decision.verdict, facts.name.state, facts.event


# ---- hellos in pieces


@pytest.mark.parametrize("pieces", [1, *range(2, 13), len(HELLO)])
def test_a_hello_in_pieces_waits_whole_and_leaves_in_order(tmp_path: Path, pieces: int) -> None:
    async def scene() -> None:
        rig = Rig(tmp_path, deny_names("bad.example"))
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        rig.released.clear()
        frames = [client.tcp(part, at=at) for at, part in cut(HELLO, pieces)]
        for frame in frames:
            assert client.sent == []
            assert client.send(frame).outcome is Outcome.HOLD
        await rig.settle()
        assert client.sent == frames
        assert last(rig) == (Verdict.ALLOW, NameState.COMPLETE, Event.PAYLOAD)
        assert rig.diary.decisions[-1][0].name.value == "good.example"

    run(scene())


@pytest.mark.parametrize("pieces", [1, 2, 5, len(BAD)])
def test_of_a_denied_hello_nothing_leaves_and_its_socket_is_ended(tmp_path: Path, pieces: int) -> None:
    async def scene() -> None:
        rig = Rig(tmp_path, deny_names("bad.example"))
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        rig.released.clear()
        for at, part in cut(BAD, pieces):
            client.send(client.tcp(part, at=at))
        await rig.settle()
        assert rig.released == []
        assert rig.cuts == [(client.flow, client.socket.cookie)]
        assert rig.kinds() == [Kind.VIOLATION]
        assert rig.alerts[0].details["name"] == "bad.example"
        # What the program sends on meets the verdict in the kernel.
        assert client.send(client.tcp(b"more", at=len(BAD))).outcome is Outcome.DROP

    run(scene())


def test_the_verdict_is_written_before_the_frames_leave(tmp_path: Path) -> None:
    async def scene() -> None:
        rig = Rig(tmp_path, deny_names("bad.example"))
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        rig.calls.clear()
        for at, part in cut(HELLO, 3):
            client.send(client.tcp(part, at=at))
        await rig.settle()
        actions = [name for name, _ in rig.calls]
        assert actions[-3:] == ["release"] * 3
        assert "release" not in actions[:-3]
        assert {"flow", "name", "class", "plan"} <= set(actions[:-3])

    run(scene())


def test_the_socket_is_ended_before_its_resets_would_be_dropped(rig: Rig) -> None:
    async def scene() -> None:
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        rig.calls.clear()
        client.send(client.tcp(BAD))
        await rig.settle()
        actions = [name for name, _ in rig.calls]
        assert actions[0] == "cut"
        assert "flow" in actions[1:]

    run(scene())


def test_a_retransmission_is_not_sent_twice(rig: Rig) -> None:
    async def scene() -> None:
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        rig.released.clear()
        first, second = (client.tcp(part, at=at) for at, part in cut(HELLO, 2))
        client.send(first)
        client.send(client.tcp(HELLO[: len(HELLO) // 2], ident=9))
        client.send(second)
        await rig.settle()
        assert client.sent == [first, second]
        assert rig.gatekeeper.counts.duplicates == 1

    run(scene())


def test_a_retransmission_of_the_same_bytes_does_not_change_the_order(rig: Rig) -> None:
    async def scene() -> None:
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        rig.released.clear()
        first, second, third = (client.tcp(part, at=at) for at, part in cut(HELLO, 3))
        for frame in (first, second, first, third):
            client.send(frame)
        await rig.settle()
        assert client.sent == [first, second, third]

    run(scene())


@pytest.mark.parametrize(("posture", "released"), [(Posture.default(), 0), (OPEN, 3)], ids=["closed", "open"])
def test_two_versions_of_one_byte_are_for_the_posture(tmp_path: Path, posture: Posture, released: int) -> None:
    async def scene() -> None:
        rig = Rig(tmp_path, deny_names("bad.example"), posture=posture)
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        rig.released.clear()
        half = len(HELLO) // 2
        client.send(client.tcp(HELLO[:half]))
        client.send(client.tcp(BAD[half - 40 : half], at=half - 40))
        client.send(client.tcp(HELLO[half:], at=half))
        await rig.settle()
        verdict, state, _ = last(rig)
        assert state is NameState.MALFORMED
        assert verdict is (Verdict.ALLOW if released else Verdict.DENY)
        assert len(rig.released) == released

    run(scene())


@pytest.mark.parametrize(
    ("stance", "hello", "expected"),
    [
        (Stance.OPEN, "contradicts", "parser_malformed"),
        (Stance.CLOSED, "contradicts", "parser_malformed"),
        (Stance.OPEN, "whole", ""),
        (Stance.CLOSED, "whole", "disk_full"),
    ],
)
def test_a_full_disk_takes_no_other_postures_place(tmp_path: Path, stance: Stance, hello: str, expected: str) -> None:
    """Who fills the disk, whose posture is open, must not open what is closed to a hello that contradicts itself."""

    async def scene() -> None:
        posture = Posture.default().with_changes({Condition.DISK_FULL: stance})
        rig = Rig(tmp_path, deny_names("bad.example"), posture=posture)
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        rig.released.clear()
        rig.diary.failing = True
        half = len(HELLO) // 2
        client.send(client.tcp(HELLO[:half]))
        if hello == "contradicts":
            client.send(client.tcp(BAD[half - 40 : half], at=half - 40))
        client.send(client.tcp(HELLO[half:], at=half))
        await rig.settle()
        decision = rig.diary.decisions[-1][1]
        assert bool(rig.released) is (decision.verdict is Verdict.ALLOW) is (not expected)
        assert decision.reasons[0].message.startswith(f"{expected} is closed" if expected else "the policy's default")

    run(scene())


def test_the_evaluator_is_roused_for_a_frame_that_will_be_judged_and_for_no_other(tmp_path: Path) -> None:
    async def scene() -> None:
        rig = Rig(tmp_path, deny_names("bad.example"))
        evaluator = rig.evaluator
        for sport, name in ((40_001, HELLO), (40_002, BAD)):
            client = rig.client(sport=sport)
            client.send(client.syn())
            await rig.settle()
            assert evaluator.roused == []
            client.send(client.tcp(name))
            # By what was asked last at this stage: nothing the first time.
            assert evaluator.roused == ([["names"]] if sport == 40_002 else [])
            await rig.settle()

    run(scene())


def test_a_rule_may_speak_about_a_contradiction_before_the_posture_does(tmp_path: Path) -> None:
    rule = Rule("unreadable", "", frozenset({"name"}), "", effects=frozenset({Verdict.ALLOW, Verdict.DENY}))
    half = len(HELLO) // 2

    async def scene() -> None:
        rig = Rig(tmp_path, lambda _: Answer(allow=("let it",)), rules=[rule])
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        rig.released.clear()
        client.send(client.tcp(HELLO[:half]))
        client.send(client.tcp(BAD[half - 40 : half], at=half - 40))
        await rig.settle()
        assert last(rig)[:2] == (Verdict.ALLOW, NameState.MALFORMED)
        assert len(rig.released) == 2

    run(scene())


def test_a_trickle_is_partial_when_its_time_is_up(tmp_path: Path) -> None:
    async def scene() -> None:
        rig = Rig(tmp_path, deny_names(), bounds=HoldBounds(milliseconds=400))
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        rig.released.clear()
        loop = asyncio.get_running_loop()
        began = loop.time()
        for at in range(10):
            client.send(client.tcp(HELLO[at : at + 1], at=at))
            await asyncio.sleep(0.035)
        # The bound counts from the first byte: each further one does not renew it.
        await asyncio.sleep(0.4 - (loop.time() - began) - 0.01)
        assert rig.cuts == []
        await asyncio.sleep(0.02)
        await rig.settle()
        assert last(rig) == (Verdict.DENY, NameState.PARTIAL, Event.PAYLOAD)
        assert rig.released == []
        assert rig.cuts == [(client.flow, client.socket.cookie)]
        assert "parser_partial" in rig.alerts[-1].summary

    run(scene())


def test_a_hello_larger_than_the_bound_in_bytes_is_partial(tmp_path: Path) -> None:
    big = build.client_hello("good.example", size=3000)

    async def scene() -> None:
        rig = Rig(tmp_path, deny_names(), bounds=HoldBounds(bytes=2048))
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        rig.released.clear()
        for at, part in cut(big, 10):
            client.send(client.tcp(part, at=at))
        await rig.settle()
        assert last(rig)[:2] == (Verdict.DENY, NameState.PARTIAL)
        assert rig.released == []

    run(scene())


def test_a_first_write_larger_than_the_bound_is_still_called_what_it_is(tmp_path: Path) -> None:
    upload = b"POST / HTTP/1.1\r\n" + b"x" * 60_000

    async def scene() -> None:
        rig = Rig(tmp_path, deny_names(), bounds=HoldBounds(bytes=16_384))
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        rig.released.clear()
        frame = client.tcp(upload)
        client.send(frame)
        await rig.settle()
        assert last(rig)[:2] == (Verdict.ALLOW, NameState.NOT_TLS)
        assert client.sent == [frame]

    run(scene())


def test_pieces_out_of_order_are_put_in_order_to_be_read_where_the_syn_was_seen(rig: Rig) -> None:
    async def scene() -> None:
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        rig.released.clear()
        frames = [client.tcp(part, at=at) for at, part in cut(BAD, 3)]
        for index in (1, 2, 0):
            client.send(frames[index])
        await rig.settle()
        assert last(rig) == (Verdict.DENY, NameState.COMPLETE, Event.PAYLOAD)
        assert rig.diary.decisions[-1][0].name.value == "bad.example"
        assert rig.released == []

    run(scene())


def test_sequence_numbers_may_wrap_inside_the_hello(rig: Rig) -> None:
    async def scene() -> None:
        client = rig.client()
        client.isn = 0xFFFFFFFF - 20
        client.send(client.syn())
        await rig.settle()
        for at, part in cut(BAD, 4):
            client.send(client.tcp(part, at=at))
        await rig.settle()
        assert rig.diary.decisions[-1][0].name.value == "bad.example"

    run(scene())


def test_the_handshake_of_an_undecided_flow_waits_for_nobody(rig: Rig) -> None:
    async def scene() -> None:
        client = rig.client(stored=False, tgid=0)
        client.send(client.syn())
        await rig.settle()
        rig.released.clear()
        client.send(client.tcp(HELLO[:10]))
        rig.gatekeeper.frame(VNET + client.tcp(flags=ACK | FIN, at=10))
        assert client.sent == [client.tcp(flags=ACK | FIN, at=10)]

    run(scene())


# ---- Fast Open


def test_a_hello_in_the_syn_is_judged_before_the_syn_leaves(rig: Rig) -> None:
    async def scene() -> None:
        good, bad = rig.client(), rig.client(sport=40_001)
        good.send(good.syn(HELLO))
        bad.send(bad.syn(BAD))
        await rig.settle()
        assert good.sent == [good.syn(HELLO)]
        assert rig.cuts == [(bad.flow, bad.socket.cookie)]
        assert {facts.event for facts, *_ in rig.diary.decisions} == {Event.CONNECT, Event.PAYLOAD}

    run(scene())


# ---- flows in progress


def test_a_flow_in_progress_is_judged_by_the_name_that_it_began_with(rig: Rig) -> None:
    async def scene() -> None:
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        client.send(client.tcp(HELLO))
        await rig.settle()
        # Another flow meets the verdict in the kernel, and the engine has forgotten it when it asks again.
        other = rig.client(sport=40_001)
        other.send(other.syn())
        assert other.send(other.tcp(HELLO)).origin is Origin.NAME
        rig.gatekeeper.previous = rig.gatekeeper.force
        rig.gatekeeper.force = rig.force(2, Spoken(deny_names("good.example")))
        rig.gatekeeper.force.begin()
        rig.gate.set_generation(2)
        assert other.send(other.tcp(b"more", at=len(HELLO))).outcome is Outcome.HOLD
        await rig.settle()
        verdict, _, event = last(rig)
        assert (verdict, event) == (Verdict.DENY, Event.LATE)
        assert rig.diary.decisions[-1][0].name.value == "good.example"

    run(scene())


@pytest.mark.parametrize("stored", [True, False])
def test_a_hello_in_the_middle_of_a_stream_is_not_believed(tmp_path: Path, stored: bool) -> None:
    """A denied flow in progress must not talk itself out with an allowed name, whatever became of its verdict."""

    async def scene() -> None:
        rig = Rig(tmp_path, lambda question: Answer(ttl=5.0))
        client = rig.client(stored=stored, tgid=1001 if stored else 0)
        client.send(client.syn())
        await rig.settle()
        client.send(client.tcp(build.client_hello("first.example")))
        await rig.settle()
        at = len(build.client_hello("first.example"))
        client.send(client.tcp(b"data", at=at))
        # Its verdict has expired, so the gate asks anew.
        later = rig.gate.clock() + 6 * 10**9
        rig.gate.clock = lambda: later
        for key, entry in rig.gate.flow_entries():
            rig.gate.put_flow(key, entry._replace(expires=1))
        rig.gatekeeper.force._wide.clear()
        rig.gatekeeper.force._narrow.clear()
        assert client.send(client.tcp(HELLO, at=at + 4)).outcome is Outcome.HOLD
        await rig.settle()
        facts = rig.diary.decisions[-1][0]
        assert (facts.event, facts.name.value) == (Event.LATE, "first.example")

    run(scene())


def test_a_flow_older_than_the_gate_is_late_and_its_hello_unseen(rig: Rig) -> None:
    async def scene() -> None:
        client = rig.client(stored=False, tgid=0)
        client.send(client.tcp(HELLO, flags=ACK | PSH))
        await rig.settle()
        assert last(rig)[1:] == (NameState.UNSEEN, Event.LATE)

    run(scene())


def test_a_verdict_that_has_expired_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10**15]
    monkeypatch.setattr("time.clock_gettime_ns", lambda _: now[0])
    said: list[Answer] = [Answer(ttl=60.0)]

    async def scene() -> None:
        rule = Rule("places", "", frozenset({"dest"}), "", effects=frozenset({Verdict.DENY}))
        rig = Rig(tmp_path, lambda _: said[0], rules=[rule])
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        assert client.send(client.tcp(b"x")).outcome is Outcome.PASS
        now[0] += 61 * 10**9
        rig.gatekeeper.force.sweep()
        rig.gatekeeper.force.judge = rig.force(1, Spoken(lambda _: Answer(("closed",)))).judge
        assert client.send(client.tcp(b"y", at=1)).outcome is Outcome.HOLD
        await rig.settle()
        assert last(rig)[0] is Verdict.DENY
        assert rig.released == [VNET + client.syn()]

    run(scene())


def test_a_frame_that_comes_after_the_verdict_does_not_prolong_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [10**15]
    monkeypatch.setattr("time.clock_gettime_ns", lambda _: now[0])

    async def scene() -> None:
        rule = Rule("places", "", frozenset({"dest"}), "", effects=frozenset({Verdict.DENY}))
        rig = Rig(tmp_path, lambda _: Answer(ttl=60.0), rules=[rule])
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        expires = [entry.expires for _, entry in rig.gate.flow_entries()]
        now[0] += 59 * 10**9
        rig.gatekeeper.frame(VNET + client.syn())
        assert [entry.expires for _, entry in rig.gate.flow_entries()] == expires == [10**15 + 60 * 10**9]
        assert len(rig.released) == 2

    run(scene())


def test_a_new_connection_on_the_same_socket_and_port_is_judged_anew(rig: Rig) -> None:
    async def scene() -> None:
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        client.send(client.tcp(HELLO))
        await rig.settle()
        assert last(rig)[0] is Verdict.ALLOW
        client.reconnect(isn=900_000)
        rig.gate.flows.remove(FlowKey(client.flow, 1, client.socket.connections, client.socket.cookie))
        client.send(client.syn())
        await rig.settle()
        client.send(client.tcp(BAD))
        await rig.settle()
        assert rig.diary.decisions[-1][0].name.value == "bad.example"
        assert VNET + client.tcp(BAD) not in rig.released

    run(scene())


def test_the_answer_for_the_connection_before_does_not_serve_the_next_one(rig: Rig) -> None:
    async def scene() -> None:
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        rig.released.clear()
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        rig.evaluator.hold = answer
        client.send(client.tcp(HELLO))
        await asyncio.sleep(0)
        client.reconnect(isn=900_000)
        rig.gatekeeper.frame(VNET + client.syn())
        answer.set_result(None)
        await rig.settle()
        assert rig.released == [VNET + client.syn()]
        flow = FlowKey(client.flow, 1, client.socket.connections, client.socket.cookie)
        entry = dict(rig.gate.flow_entries()).get(flow)
        assert entry is None or entry.verdict == KernelVerdict.UNDECIDED

    run(scene())


class Listed:
    """A line of the socket listing: a socket with the client's own port."""

    def __init__(self, client: Client, state: int = 10, cookie: int = 0) -> None:
        self.flow = client.flow if state != 10 else client.flow._replace(dst=bytes(16), dport=0)
        self.state, self.cookie, self.uid, self.inode = state, cookie, 0, 0


ESTABLISHED = 1


def test_an_inbound_connection_older_than_the_gate_goes_on(rig: Rig) -> None:
    async def scene() -> None:
        client = rig.client(stored=False, tgid=0)
        rig.listing = [Listed(client), Listed(client, ESTABLISHED, client.socket.cookie)]
        client.send(client.tcp(b"reply"))
        await rig.settle()
        assert client.sent == [client.tcp(b"reply")]
        assert rig.diary.decisions[-1][1].reasons[0].rule == "inbound"

    run(scene())


@pytest.mark.parametrize("listed", ["nothing more", "another socket", "a listener elsewhere", "held inside"])
def test_a_segment_from_a_servers_port_is_judged_unless_its_socket_is_the_servers(rig: Rig, listed: str) -> None:
    """A raw socket, and whoever is in a container, gives its segments any port of this host."""

    async def scene() -> None:
        client = rig.client(stored=False, tgid=0)
        listener, cookie = Listed(client), client.socket.cookie
        rig.listing = [listener, Listed(client, ESTABLISHED, cookie + 1 if listed == "another socket" else cookie)]
        if listed == "nothing more":
            rig.listing.pop()
        if listed == "a listener elsewhere":
            listener.flow = listener.flow._replace(src=b"\1" * 16)
        rig.gatekeeper.force.judge = rig.force(1, Spoken(lambda _: Answer(("no",)))).judge
        frame = client.tcp(b"upload")
        if listed == "held inside":
            rig.egress.packet(client.socket, frame)
            note = rig.gate.held(client.flow)
            assert note is not None
            rig.gate.notes.put(client.flow, note._replace(hook=Hook.INGRESS))
            rig.gatekeeper.frame(VNET + frame)
        else:
            client.send(frame)
        await rig.settle()
        assert last(rig)[0] is Verdict.DENY
        assert rig.released == rig.delivered == []

    run(scene())


def test_who_listens_on_its_own_local_port_is_not_taken_for_a_server(rig: Rig) -> None:
    """SO_REUSEPORT lets one program listen on the very port that it connects from."""

    async def scene() -> None:
        client = rig.client()
        rig.listing = [Listed(client)]
        client.socket.flags = FlowFlag.PAYLOAD_PASSED
        rig.gatekeeper.force.judge = rig.force(1, Spoken(lambda _: Answer(("no",)))).judge
        client.send(client.tcp(b"upload"))
        await rig.settle()
        assert last(rig)[0] is Verdict.DENY
        assert rig.released == []

    run(scene())


# ---- while a decision is under way


def test_a_generation_that_changes_meanwhile_is_asked_again(rig: Rig) -> None:
    async def scene() -> None:
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        rig.released.clear()
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        rig.evaluator.hold = answer
        client.send(client.tcp(HELLO))
        for number in range(2, 7):
            await asyncio.sleep(0)
            new = Spoken(deny_names("good.example"))
            new.hold = answer
            rig.gatekeeper.force = rig.force(number, new)
            rig.gatekeeper.force.begin()
        rig.gate.set_generation(6)
        answer.set_result(None)
        await rig.settle()
        assert last(rig)[0] is Verdict.DENY
        assert rig.released == []
        assert [key.generation for key, entry in rig.gate.flow_entries() if entry.verdict == KernelVerdict.DENY] == [6]

    run(scene())


def test_a_generation_that_changes_more_often_than_anybody_saves_is_still_the_one_that_counts(rig: Rig) -> None:
    async def scene() -> None:
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        rig.released.clear()

        class Restless(Spoken):
            async def evaluate(self, questions: list[Question]) -> list[Answer]:  # type: ignore[override]
                number = rig.gatekeeper.force.number + 1
                following = Restless(self.say) if number < 8 else Spoken(deny_names("good.example"))
                rig.gatekeeper.force = rig.force(number, following)
                rig.gatekeeper.force.begin()
                rig.gate.set_generation(number)
                return [Answer() for _ in questions]

        rig.gatekeeper.force.judge = rig.force(1, Restless(lambda _: Answer())).judge
        client.send(client.tcp(HELLO))
        await rig.settle()
        assert last(rig)[0] is Verdict.DENY
        assert rig.released == []

    run(scene())


def test_more_of_a_stream_whose_hello_is_being_judged_queues_behind_it(rig: Rig) -> None:
    async def scene() -> None:
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        rig.released.clear()
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        rig.evaluator.hold = answer
        frames = [client.tcp(HELLO), client.tcp(b"early data", at=len(HELLO))]
        for frame in frames:
            assert client.send(frame).outcome is Outcome.HOLD
            await asyncio.sleep(0)
        assert rig.released == []
        answer.set_result(None)
        await rig.settle()
        assert client.sent == frames

    run(scene())


@pytest.mark.parametrize("evaluator", ["broken", "error"])
def test_an_evaluator_that_fails_is_for_the_posture_and_an_alert(tmp_path: Path, evaluator: str) -> None:
    async def scene() -> None:
        failing = Broken() if evaluator == "broken" else Spoken(lambda _: Answer(error="out of order"))
        rig = Rig(tmp_path, evaluator=failing)
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        rig.released.clear()
        client.send(client.tcp(HELLO))
        await rig.settle()
        assert rig.released == []
        assert Kind.EVALUATOR_FAILED in rig.kinds()
        assert rig.diary.decisions[-1][1].failed
        # Nothing of it reaches another flow.
        assert rig.gate.name_entries() == []

    run(scene())


def test_one_flow_that_cannot_be_judged_does_not_stop_the_others(rig: Rig) -> None:
    async def scene() -> None:
        broken, fine = rig.client(), rig.client(sport=40_001)
        facts = rig.identifier.facts

        async def faulty(event: Event, flow: object, *rest: object, **more: object) -> object:
            if flow == broken.flow:
                raise RuntimeError("out of luck")
            return await facts(event, flow, *rest, **more)  # type: ignore[arg-type]

        rig.identifier.facts = faulty  # type: ignore[method-assign, assignment]
        broken.send(broken.syn())
        fine.send(fine.syn())
        await rig.settle()
        assert fine.sent == [fine.syn()]
        assert rig.kinds() == [Kind.POSTURE]
        assert rig.diary.notes[0][0] == "failure"

    run(scene())


# ---- QUIC


def flight(name: str, cuts: tuple[int, ...] = (), dcid: bytes = initials.DCID) -> list[bytes]:
    return initials.flight(build.handshake(name, alpn=("h3",), size=1700 if cuts else None), cuts, dcid=dcid)


def test_a_quic_hello_over_several_datagrams_leaves_whole_or_not_at_all(tmp_path: Path) -> None:
    async def scene(name: str) -> tuple[Rig, list[bytes], Client]:
        rig = Rig(tmp_path, deny_names("bad.example"))
        client = rig.client()
        frames = [client.udp(datagram) for datagram in flight(name, (100, 1000))]
        for frame in frames:
            assert client.send(frame).outcome is Outcome.HOLD
            assert rig.released == []
        await rig.settle()
        return rig, frames, client

    rig, frames, client = run(scene("good.example"))
    assert client.sent == frames
    assert last(rig) == (Verdict.ALLOW, NameState.COMPLETE, Event.DATAGRAM)
    rig, _, _ = run(scene("bad.example"))
    assert rig.released == []
    assert rig.diary.decisions[-1][0].name.value == "bad.example"


def test_another_quic_connection_on_the_same_tuple_is_judged_again(rig: Rig) -> None:
    async def scene() -> None:
        client = rig.client()
        client.send(client.udp(flight("good.example")[0]))
        await rig.settle()
        assert client.send(client.udp(b"\x40" + bytes(60))).outcome is Outcome.PASS
        rig.released.clear()
        assert client.send(client.udp(flight("bad.example", dcid=b"another!")[0])).outcome is Outcome.HOLD
        await rig.settle()
        assert rig.released == []
        assert rig.diary.decisions[-1][0].name.value == "bad.example"
        assert client.send(client.udp(b"\x40" + bytes(60))).outcome is Outcome.DROP

    run(scene())


def test_the_rest_of_a_quic_handshake_is_not_taken_for_another_connection(rig: Rig) -> None:
    """The client's acknowledgement of the server's first flight: an Initial padded to 1,200 bytes (RFC 9000 section
    14.1) under the server's connection id and the first keys."""

    async def scene() -> None:
        client = rig.client()
        [first] = flight("good.example")
        client.send(client.udp(first))
        await rig.settle()
        rig.released.clear()
        acknowledgement = b"\x02\x00\x00\x00\x00"
        later = [
            initials.initial(acknowledgement, dcid=b"server's", keys_from=initials.DCID, number=1),
            first,
        ]
        for datagram in later:
            assert client.send(client.udp(datagram)).outcome is Outcome.HOLD
        await rig.settle()
        assert client.sent == [client.udp(datagram) for datagram in later]
        assert len(rig.diary.decisions) == 1

    run(scene())


def test_another_hello_beside_the_acknowledgement_of_the_first_is_seen(rig: Rig) -> None:
    async def scene() -> None:
        client = rig.client()
        client.send(client.udp(flight("good.example")[0]))
        await rig.settle()
        rig.released.clear()
        hidden = initials.initial(
            b"\x02\x00\x00\x00\x00", dcid=b"server's", keys_from=initials.DCID, number=1, size=600
        )
        client.send(client.udp(hidden + flight("bad.example", dcid=b"another!")[0]))
        await rig.settle()
        assert rig.released == []

    run(scene())


def segmented(client: Client, datagrams: list[bytes]) -> bytes:
    """What one send with UDP_SEGMENT leaves before it is cut: a virtio-net header that tells the size."""
    return struct.pack("<BBHHHH", 0, 5, 42, len(datagrams[0]), 0, 0) + client.udp(b"".join(datagrams))


@pytest.mark.parametrize("before", [b"\x40" + bytes(1199), None], ids=["a short header", "the same hello"])
def test_a_connection_behind_another_in_one_send_is_seen(rig: Rig, before: bytes | None) -> None:
    async def scene() -> None:
        client = rig.client()
        first = flight("good.example")[0]
        assert client.send(client.udp(first)).outcome is Outcome.HOLD
        await rig.settle()
        rig.released.clear()
        hidden = flight("bad.example", dcid=b"another!")[0]
        # The gate hands over a super-packet in which any datagram may begin a connection.
        client.send(client.udp(first))
        await rig.settle()
        rig.released.clear()
        rig.gatekeeper.frame(segmented(client, [before or first, hidden]))
        await rig.settle()
        assert rig.released == []

    run(scene())


def test_a_quic_flow_whose_verdict_ended_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        rule = Rule("names", "", frozenset({"name"}), "", effects=frozenset({Verdict.ALLOW}))

        def say(question: Question) -> Answer:
            name = question.input["name"]
            value = name["value"] if isinstance(name, dict) else name.value
            return Answer(allow=("listed",), ttl=30.0) if value == "good.example" else Answer()

        rig = Rig(tmp_path, say, rules=[rule], default=Verdict.DENY)
        client = rig.client()
        client.send(client.udp(flight("good.example")[0]))
        await rig.settle()
        rig.released.clear()
        later_than = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + 31 * 10**9
        monkeypatch.setattr(gatekeeper, "_monotonic", lambda: later_than)
        rig.gate.clock = lambda: later_than
        later = client.udp(b"\x41" + bytes(50))
        assert client.send(later).outcome is Outcome.HOLD
        await rig.settle()
        assert client.sent == [later]
        assert rig.diary.decisions[-1][0].name.value == "good.example"

    run(scene())


def test_an_urgent_byte_makes_a_hello_of_two_readings(rig: Rig) -> None:
    """The server leaves the urgent byte out of what it reads; the gate cannot know whether it does."""

    async def scene() -> None:
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        client.send(client.tcp())
        rig.released.clear()
        hello = build.client_hello("good.example")
        client.send(client.tcp(hello[:80]))
        client.send(client.tcp(hello[80:], at=80, flags=ACK | URG))
        await rig.settle()
        assert last(rig) == (Verdict.DENY, NameState.MALFORMED, Event.PAYLOAD)
        assert rig.released == []

    run(scene())


def test_two_programs_that_share_a_datagram_socket_do_not_share_its_verdict(tmp_path: Path) -> None:
    def say(question: Question) -> Answer:
        exe = question.input["exe"]
        path = exe["path"] if isinstance(exe, dict) else exe.path
        return Answer(("not you",)) if path.endswith("program2") else Answer()

    async def scene() -> None:
        rule = Rule("programs", "", frozenset({"exe", "source"}), "", effects=frozenset({Verdict.DENY}))
        rig = Rig(tmp_path, say, rules=[rule])
        first, second = rig.client(tgid=1001), rig.client(tgid=1002)
        second.socket.cookie = first.socket.cookie
        first.send(first.udp(b"query"))
        await rig.settle()
        assert first.sent == [first.udp(b"query")]
        # The second one has not been looked up when it sends: what was said of the first must not serve it.
        assert second.send(second.udp(b"smuggled")).outcome is Outcome.HOLD
        await rig.settle()
        assert second.udp(b"smuggled") not in first.sent
        assert second.send(second.udp(b"smuggled")).outcome is Outcome.DROP
        assert first.send(first.udp(b"query")).outcome is Outcome.PASS

    run(scene())


# ---- observe mode


def test_observing_releases_nothing_twice_and_ends_nothing(tmp_path: Path) -> None:
    async def scene() -> None:
        rig = Rig(tmp_path, deny_names("bad.example"), mode=Mode.OBSERVE)
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        client.send(client.tcp(BAD))
        await rig.settle()
        client.send(client.tcp(b"more", at=len(BAD)))
        await rig.settle()
        assert (rig.released, rig.cuts) == ([], [])
        facts, decision, _, observed = rig.diary.decisions[-1]
        assert (facts.name.value, decision.verdict, observed) == ("bad.example", Verdict.DENY, True)
        assert rig.alerts[-1].details["observed"] is True
        assert "would be refused" in rig.alerts[-1].summary

    run(scene())


# ---- a person's word


def order(value: str, word: str, by: str = "name", **more: object) -> Order:
    return Order.make({"kind": "verdict", "by": by, "value": value, "word": word, **more})


def test_a_persons_word_about_a_name_holds_for_hellos_that_the_gate_cannot_read(tmp_path: Path) -> None:
    async def scene() -> None:
        rig = Rig(tmp_path, deny_names("bad.example"))
        rig.orders.set(order("*.example", "deny"))
        rig.orders.set(order("bad.example", "allow"))
        good, bad = rig.client(), rig.client(sport=40_001)
        for client, data in ((good, HELLO), (bad, BAD)):
            client.send(client.syn())
            await rig.settle()
            for at, part in cut(data, 3):
                client.send(client.tcp(part, at=at))
        await rig.settle()
        assert rig.cuts == [(good.flow, good.socket.cookie)]
        assert [frame for frame in bad.sent if frame in {bad.tcp(part, at=at) for at, part in cut(BAD, 3)}] == [
            bad.tcp(part, at=at) for at, part in cut(BAD, 3)
        ]
        assert {decision.reasons[0].rule for _, decision, stage, _ in rig.diary.decisions[-2:]} == {"verdict set"}

    run(scene())


def test_a_word_about_names_keeps_a_flow_open_that_the_policy_allows_at_connect(tmp_path: Path) -> None:
    async def scene() -> None:
        rig = Rig(tmp_path, rules=[], default=Verdict.ALLOW)
        rig.orders.set(order("bad.example", "deny"))
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        assert client.sent == [client.syn()]
        rig.released.clear()
        for at, part in cut(BAD, 2):
            client.send(client.tcp(part, at=at))
        await rig.settle()
        assert rig.released == []
        assert rig.cuts == [(client.flow, client.socket.cookie)]

    run(scene())


def test_a_word_that_is_given_while_the_policy_thinks_counts(rig: Rig) -> None:
    async def scene() -> None:
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        rig.released.clear()
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        rig.evaluator.hold = answer
        client.send(client.tcp(HELLO))
        await asyncio.sleep(0)
        word = order("good.example", "deny")
        rig.orders.set(word)
        await rig.gatekeeper.obey(word)
        answer.set_result(None)
        await rig.settle()
        assert rig.released == []
        assert client.send(client.tcp(b"more", at=len(HELLO))).outcome is Outcome.DROP

    run(scene())


def test_a_deny_that_is_set_ends_the_flows_in_progress_that_it_names_and_no_others(rig: Rig) -> None:
    async def scene() -> None:
        clients = [rig.client(sport=40_000 + number) for number in range(3)]
        for client, name in zip(clients, ("good.example", "other.example", "good.example"), strict=True):
            client.send(client.syn())
            await rig.settle()
            for at, part in cut(build.client_hello(name), 2):
                client.send(client.tcp(part, at=at))
            await rig.settle()
        word = order("good.example", "deny", reason="incident 812")
        rig.orders.set(word)
        assert await rig.gatekeeper.obey(word) == 2
        assert {cookie for _, cookie in rig.cuts} == {clients[0].socket.cookie, clients[2].socket.cookie}
        # A frame that was on its way meets the word, too.
        rig.released.clear()
        rig.gatekeeper.frame(VNET + clients[0].tcp(b"more", at=9))
        await rig.settle()
        assert rig.released == []
        assert rig.diary.decisions[-1][1].reasons[0].message == "incident 812"

    run(scene())


def test_a_deny_of_a_destination_reaches_the_flows_under_its_prefix_port_and_transport(rig: Rig) -> None:
    async def scene() -> None:
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        client.send(client.tcp(HELLO))
        await rig.settle()
        for value, port, transport, cuts in (
            ("203.0.113.0/24", 0, "", 0),
            ("198.51.100.0/24", 80, "", 0),
            ("198.51.100.0/24", 443, "udp", 0),
            ("::ffff:198.51.100.0/120", 443, "tcp", 1),
        ):
            word = order(value, "deny", by="dest", port=port, transport=transport)
            assert await rig.gatekeeper.obey(word) == cuts, value

    run(scene())


def test_a_deny_that_ends_thousands_leaves_held_packets_their_turn(rig: Rig) -> None:
    async def scene() -> None:
        for number in range(200):
            client = rig.client(sport=40_000 + number)
            client.send(client.syn())
        await rig.settle()
        word = order("198.51.100.0/24", "deny", by="dest")
        rig.orders.set(word)
        ending = asyncio.ensure_future(rig.gatekeeper.obey(word))
        turns = 0
        while not ending.done():
            await asyncio.sleep(0)
            turns += 1
        assert turns >= 3

    run(scene())


# ---- bounds


def test_a_full_map_is_told_and_the_flow_is_decided_all_the_same(tmp_path: Path) -> None:
    async def scene() -> None:
        rig = Rig(tmp_path, deny_names("bad.example"), sizes={"name_verdicts": 0, "connect_verdicts": 0})
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        assert [error.map_name for error in rig.full] == ["connect_verdicts"]
        client.send(client.tcp(HELLO))
        await rig.settle()
        assert [error.map_name for error in rig.full] == ["connect_verdicts", "name_verdicts"]
        assert client.sent == [client.syn(), client.tcp(HELLO)]
        key = FlowKey(client.flow, 1, client.socket.connections, client.socket.cookie)
        assert dict(rig.gate.flow_entries())[key].verdict == KernelVerdict.ALLOW
        assert client.send(client.tcp(b"more", at=len(HELLO))).outcome is Outcome.PASS

    run(scene())


def test_a_frame_that_nobody_held_is_not_let_go(rig: Rig) -> None:
    client = rig.client()
    rig.gatekeeper.frame(VNET + client.syn())
    rig.gatekeeper.frame(VNET + b"\x02" * 40)
    assert rig.released == []
    assert (rig.gatekeeper.counts.unclaimed, rig.gatekeeper.counts.unreadable) == (1, 1)


def test_a_forgotten_flow_is_judged_anew(tmp_path: Path) -> None:
    async def scene() -> None:
        rig = Rig(tmp_path, deny_names("bad.example"), flows=1)
        first, second = rig.client(), rig.client(sport=40_001)
        for client in (first, second):
            client.send(client.syn())
            await rig.settle()
        assert len(rig.gatekeeper.flows) == 1
        first.send(first.tcp(BAD))
        await rig.settle()
        assert rig.diary.decisions[-1][0].name.value == "bad.example"

    run(scene())


def test_other_protocols_than_tcp_and_udp_are_judged_by_what_they_are(tmp_path: Path) -> None:
    from tests.support import captures

    def ping(rig: Rig, protocol: int) -> bytes:
        return captures.ethernet(captures.ipv4(protocol, b"\x08\0\0\0\0\1\0\1ping"))

    async def scene(protocol: int) -> Rig:
        rig = Rig(tmp_path, deny_names())
        client = rig.client()
        client.send(ping(rig, protocol))
        await rig.settle()
        return rig

    assert run(scene(1)).released != []
    # A transport that cannot be read: the posture's, which is closed.
    assert run(scene(132)).released == []


def test_verdict_entries_of_one_flow_are_not_shared_by_name(rig: Rig) -> None:
    """The deny of a flow alone stands under its tuple and cookie only."""

    async def scene() -> None:
        hello = build.client_hello("good.example", ech=True)
        rig.gatekeeper.force.judge = rig.force(1, Spoken(lambda _: Answer(("no",)))).judge
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        client.send(client.tcp(hello))
        await rig.settle()
        assert rig.gate.name_entries() == []
        assert [entry.verdict for key, entry in rig.gate.flow_entries() if key.tuple == client.flow] == [
            KernelVerdict.DENY
        ]

    run(scene())
