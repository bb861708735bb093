"""How far a decision may be kept: every fact of its scope in the key, or the flow alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.abi.numbers import Shape
from engine.abi.records import ConnectKey, Tuple
from engine.model.decision import Decision, Stage, Verdict
from engine.model.facts import (
    FLOW_FACTS,
    Cgroup,
    Clock,
    Dest,
    Direction,
    Event,
    Exe,
    Facts,
    Name,
    NameState,
    Transport,
    User,
)
from engine.runtime.entries import FLOW_ONLY, Numbers, Reach, reach

DST = bytes(10) + b"\xff\xff\xc6\x33\x64\x14"
FLOW = Tuple(bytes(16), DST, 40_000, 443, 6)
NUMBERS = Numbers(FLOW, cgroup=5, exe=3, uid=1000, known=True)
ANYTHING = ConnectKey(9, 0)


def facts(event: Event = Event.PAYLOAD, name: Name | None = None, exe: str = "/bin/a", cgroup: str = "/x") -> Facts:
    return Facts(
        event, Direction.EGRESS, Dest("198.51.100.20", 443, Transport.TCP, "public"), Clock(1, "monday"),
        exe=Exe(exe), cgroup=Cgroup(cgroup), user=User(1000), name=name or Name("a.example", NameState.COMPLETE),
    )  # fmt: skip


def decided(*scope: str, verdict: Verdict = Verdict.ALLOW, ttl: float | None = None, failed: bool = False) -> Decision:
    return Decision(verdict, frozenset(scope), (), ttl, failed)


def reached(decision: Decision, given: Facts | None = None, stage: Stage = Stage.PAYLOAD, **numbers: int) -> Reach:
    return reach(decision, given or facts(), stage, replace(NUMBERS, **numbers), 9)


def test_each_fact_of_the_scope_is_in_the_key_and_no_other() -> None:
    dest = {"transport": 6, "port": 443, "address": DST}
    for scope, shape, parts in (
        ((), 0, {}),
        (("clock", "host", "direction"), 0, {}),
        (("dest",), Shape.DEST, dest),
        (("exe",), Shape.EXE, {"exe": 3}),
        (("cgroup",), Shape.CGROUP, {"cgroup": 5}),
        (("user",), Shape.USER, {"uid": 1000}),
        (("dest", "exe", "cgroup", "user"), 15, {**dest, "exe": 3, "cgroup": 5, "uid": 1000}),
    ):
        assert reached(decided(*scope)) == Reach(ConnectKey(9, int(shape), **parts)), scope


def test_a_name_is_kept_in_the_class_of_the_other_facts() -> None:
    assert reached(decided("name", "exe")) == Reach(ConnectKey(9, Shape.EXE, exe=3), b"elpmaxe.a\0")
    assert reached(decided("name")) == Reach(ANYTHING, b"elpmaxe.a\0")


@pytest.mark.parametrize("fact", sorted(FLOW_FACTS))
def test_what_no_key_holds_keeps_the_decision_to_its_flow(fact: str) -> None:
    assert reached(decided("dest", fact)) == FLOW_ONLY


@pytest.mark.parametrize(
    ("decision", "given"),
    [
        (decided("dest", failed=True), facts()),
        (decided("dest", ttl=0.0), facts()),
        (decided("dest"), facts(Event.LATE)),
        (decided("exe"), facts(exe="")),
        (decided("cgroup"), facts(cgroup="")),
        (decided("name"), facts(name=Name("a.example", NameState.COMPLETE, ech=True))),
        (decided("name"), facts(name=Name("", NameState.ABSENT))),
        (decided("name"), facts(name=Name("", NameState.PARTIAL))),
        (decided("name"), facts(Event.DATAGRAM)),
        (decided("name"), facts(name=Name(".".join(["n" * 49] * 4), NameState.COMPLETE))),
    ],
    ids=["failed", "ttl 0", "late", "no exe", "no cgroup", "ECH", "no name", "half a name", "datagram", "199 bytes"],
)
def test_what_is_not_known_for_sure_serves_no_other_flow(decision: Decision, given: Facts) -> None:
    expected = FLOW_ONLY
    if len(given.name.value) == 199:
        expected = Reach(ANYTHING, given.name.value.encode()[::-1] + b"\0")
    assert reached(decision, given) == expected


def test_a_name_of_200_bytes_is_no_kernel_key() -> None:
    long = Name(".".join(["n" * 49] * 4) + "n", NameState.COMPLETE)
    assert reached(decided("name"), facts(name=long)) == FLOW_ONLY


@pytest.mark.parametrize("fact", ["exe", "cgroup", "user"])
def test_without_socket_storage_identity_is_in_no_key(fact: str) -> None:
    assert reached(decided(fact), known=False) == FLOW_ONLY


def test_an_executable_without_a_number_is_in_no_key() -> None:
    assert reached(decided("exe"), exe=0) == FLOW_ONLY
    assert reached(decided("dest"), exe=0).key is not None


def test_a_verdict_that_read_the_event_is_kept_to_what_shows_it() -> None:
    dest = ConnectKey(9, Shape.DEST, 6, 443, DST)
    assert reached(decided("event"), facts(Event.CONNECT), Stage.CONNECT) == Reach(dest)
    # At connect the same rules see another event.
    assert reached(decided("event"), facts(Event.PAYLOAD)) == FLOW_ONLY
    assert reached(decided("event", "name"), facts(Event.PAYLOAD)) == Reach(dest, b"elpmaxe.a\0")


def test_a_reject_at_connect_is_kept_to_its_transport() -> None:
    at_connect = decided("user", verdict=Verdict.REJECT)
    assert reached(at_connect, facts(Event.CONNECT), Stage.CONNECT) == Reach(
        ConnectKey(9, Shape.DEST | Shape.USER, 6, 443, DST, uid=1000)
    )
    assert reached(decided("user", verdict=Verdict.DENY), facts(Event.CONNECT), Stage.CONNECT) == Reach(
        ConnectKey(9, Shape.USER, uid=1000)
    )
