"""The names of an address as flows meet them: known before the connection that follows the answer, never kept for
another one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from engine.abi.records import Held, Tuple
from engine.model.decision import Verdict
from engine.model.facts import ALL_FACTS, Event, Facts
from engine.policy.evaluator import Answer, Question
from engine.policy.rule import Rule
from engine.runtime.resolutions import Resolutions
from tests.support import hello as build
from tests.support.captures import SERVER
from tests.support.egress import Outcome
from tests.support.lookups import RESOLVER, SECOND, Lookup, key, points
from tests.support.rig import NAME_RULE, Client, Rig, run

ALLOWS = Rule("listed", "", frozenset({"dest_names"}), "", effects=frozenset({Verdict.ALLOW}))
DENIES = Rule("unlisted", "", frozenset({"dest_names"}), "", effects=frozenset({Verdict.DENY}))
HELLO = build.client_hello("good.example")


def listed(question: Question) -> Answer:
    return Answer(allow=("listed",) if "good.example" in question.input["dest_names"] else ())


def unlisted(question: Question) -> Answer:
    return Answer(("unlisted",) if "bad.example" in question.input.get("dest_names", ()) else ())


@dataclass
class Host:
    """An engine that observes DNS, and the clock of it all."""

    folder: Path
    say: Callable[[Question], Answer]
    rules: tuple[Rule, ...]
    default: Verdict
    clock: int = 1000 * SECOND
    lookups: int = 0
    rig: Rig = field(init=False)

    def __post_init__(self) -> None:
        self.rig = Rig(self.folder, self.say, rules=self.rules, default=self.default)
        self.rig.identifier.resolutions = Resolutions(100, lambda: {key(RESOLVER)}, lambda: self.clock)

    def answered(self, name: str, ttl: int = 60, address: str = SERVER) -> None:
        self.lookups += 1
        lookup = Lookup(sport=self.lookups)
        for event in lookup.looked_up(name, points(name, address, ttl), time=self.clock):
            assert self.rig.identifier.resolutions is not None
            self.rig.identifier.resolutions.observe(event)

    def packet(self, client: Client, frame: bytes) -> bool:
        """Send a packet; return whether it left. The engine's clock stands still meanwhile."""
        self.rig.released.clear()

        async def scene() -> bool:
            judged = client.send(frame)
            await self.rig.settle()
            return judged.outcome is Outcome.PASS or frame in client.sent

        with mock.patch("time.clock_gettime_ns", side_effect=lambda _: self.clock):
            return run(scene())

    def connects(self) -> bool:
        client = self.rig.client(sport=50_000 + self.lookups)
        self.lookups += 1
        return self.packet(client, client.syn())


@pytest.fixture
def allowing(tmp_path: Path) -> Host:
    return Host(tmp_path, listed, (ALLOWS,), Verdict.DENY)


@pytest.fixture
def denying(tmp_path: Path) -> Host:
    return Host(tmp_path, unlisted, (DENIES,), Verdict.ALLOW)


def test_a_connection_to_an_address_that_a_listed_name_was_answered_for_passes(allowing: Host) -> None:
    allowing.answered("good.example")
    assert allowing.connects()
    assert allowing.rig.diary.decisions[-1][0].dest_names == ("good.example",)


def test_an_address_without_a_name_is_refused_until_there_is_one(allowing: Host) -> None:
    assert not allowing.connects()
    allowing.answered("other.example")
    assert not allowing.connects()
    allowing.answered("good.example")
    assert allowing.connects()


def test_an_answer_counts_for_the_very_next_connection(denying: Host) -> None:
    """Whatever was decided before it, with other names or none: no verdict is kept for the next flow."""
    assert denying.connects()
    denying.answered("good.example", ttl=3600)
    assert denying.connects()
    denying.answered("bad.example")
    assert not denying.connects()
    assert denying.rig.gate.connect_entries() == []


def test_a_name_that_has_ended_is_none(allowing: Host, denying: Host) -> None:
    for host, name in ((allowing, "good.example"), (denying, "bad.example")):
        host.answered(name, ttl=60)
        before = host.connects()
        host.clock += 60 * SECOND
        assert host.connects() is not before


def test_a_flow_is_asked_about_again_when_its_names_have_ended(allowing: Host) -> None:
    allowing.answered("good.example", ttl=60)
    allowing.clock += 20 * SECOND
    assert allowing.connects()
    (entry,) = (entry for _, entry in allowing.rig.gate.flow_entries())
    assert entry.expires == allowing.clock + 40 * SECOND


def test_the_names_count_at_the_payload_too(tmp_path: Path) -> None:
    host = Host(tmp_path, unlisted, (DENIES, NAME_RULE), Verdict.ALLOW)
    client = host.rig.client()
    assert host.packet(client, client.syn())
    host.answered("bad.example")
    assert not host.packet(client, client.tcp(HELLO))
    assert host.rig.cuts == [(client.flow, client.socket.cookie)]


def test_a_datagram_socket_is_heard_again_after_the_answer(allowing: Host) -> None:
    client = allowing.rig.client()
    assert not allowing.packet(client, client.udp(b"first"))
    allowing.answered("good.example")
    allowing.clock += 5 * SECOND
    assert allowing.packet(client, client.udp(b"second"))


# ---- the facts


def facts_of(host: Host, **options: Any) -> Facts:
    flow = Tuple(bytes(16), key(SERVER), 1, 443, 6)
    held = Held._make([host.rig.client().socket.identity, *[0] * (len(Held._fields) - 1)])
    when = datetime(2026, 3, 2, tzinfo=timezone.utc)
    return run(host.rig.identifier.facts(Event.CONNECT, flow, held, 0, when, **options))


def test_the_input_has_the_names_sorted_and_without_their_time(allowing: Host) -> None:
    allowing.answered("b.example", ttl=30)
    allowing.answered("a.example", ttl=60)
    facts = facts_of(allowing)
    assert (facts.dest_names, facts.dest_names_left) == (("a.example", "b.example"), 30.0)
    assert facts.document()["dest_names"] == ["a.example", "b.example"]
    assert facts.document().keys() == ALL_FACTS


def test_a_flow_keeps_the_names_that_it_began_with(allowing: Host) -> None:
    allowing.answered("b.example", ttl=30)
    facts = facts_of(allowing, began=("a.example", "b.example"))
    assert (facts.dest_names, facts.dest_names_left) == (("a.example", "b.example"), 30.0)
    allowing.clock += 30 * SECOND
    facts = facts_of(allowing, began=("a.example", "b.example"))
    assert (facts.dest_names, facts.dest_names_left) == (("a.example", "b.example"), None)


def test_names_are_looked_up_only_where_a_rule_reads_them(allowing: Host) -> None:
    allowing.answered("a.example")
    assert facts_of(allowing, reads=frozenset({"dest"})).dest_names == ()
    allowing.rig.identifier.resolutions = None
    assert facts_of(allowing).dest_names == ()
