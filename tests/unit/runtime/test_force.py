"""A generation's entries in the maps: written, found again, expired, withdrawn."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.abi.numbers import SHAPES_MAX, KernelVerdict, NameClass
from engine.abi.records import ConnectKey, FlowKey, NameKey, SourceKey, Tuple, VerdictEntry
from engine.model.decision import Decision, Reason, Verdict
from engine.model.facts import Name, NameState
from engine.runtime.entries import FLOW_ONLY, OutboundPlace, Reach
from engine.runtime.force import highest_numbers, purge
from engine.runtime.identity import ExeRecord
from tests.support.rig import Rig

KEY = FlowKey(Tuple(bytes(16), bytes(16), 1, 2, 6), 1, 0, 9)
FLOW = OutboundPlace(KEY)
ALLOW = Decision(Verdict.ALLOW, frozenset({"dest"}), (Reason("r", "because"),))
NAME = Name("a.example", NameState.COMPLETE)
NOW = 10**15


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr("time.clock_gettime_ns", lambda _: NOW)
    return Rig(tmp_path)


def where(shape: int = 2, exe: int = 3, name: bytes = b"") -> Reach:
    return Reach(ConnectKey(1, shape, exe=exe), name)


def test_the_plan_names_a_shape_before_an_entry_of_it_stands(rig: Rig) -> None:
    rig.gatekeeper.force.install(ALLOW, where(), FLOW, NAME)
    assert [name for name, _ in rig.calls] == ["plan", "connect", "flow"]


def test_narrow_shapes_are_looked_up_before_wide_ones(rig: Rig) -> None:
    for shape in (1, 3, 0, 15):
        rig.gatekeeper.force.install(ALLOW, where(shape), FLOW, NAME)
    assert rig.gate.plan(1).connect_shapes == (15, 3, 1, 0)


def test_a_ninth_shape_is_kept_to_its_flow(rig: Rig) -> None:
    force = rig.gatekeeper.force
    for shape in range(SHAPES_MAX):
        force.install(ALLOW, where(shape), FLOW, NAME)
    force.install(ALLOW, where(9), FLOW, NAME)
    assert len(rig.gate.plan(1).connect_shapes) == SHAPES_MAX == len(rig.gate.connect_entries())
    # Names have a list of their own.
    force.install(ALLOW, where(9, name=b"a\0"), FLOW, NAME)
    assert rig.gate.plan(1).name_shapes == (9,)


def test_names_of_the_same_other_facts_share_a_class_and_no_others_do(rig: Rig) -> None:
    force = rig.gatekeeper.force
    for exe, name in ((3, b"a\0"), (3, b"b\0"), (4, b"a\0")):
        force.install(ALLOW, where(exe=exe, name=name), FLOW, NAME)
    classes = dict(rig.gate.class_entries())
    assert sorted(key.exe for key in classes) == [3, 4]
    assert len(set(classes.values())) == 2
    assert min(classes.values()) > NameClass.FIRST_FREE
    assert {key.name_class for key, _ in rig.gate.name_entries()} == set(classes.values())


def test_an_entry_expires_with_its_decision(rig: Rig) -> None:
    force = rig.gatekeeper.force
    brief = Decision(Verdict.DENY, frozenset({"dest"}), (), ttl=5.0)
    number = force.install(brief, where(), FLOW, NAME)
    assert {entry.expires for _, entry in (*rig.gate.connect_entries(), *rig.gate.flow_entries())} == {NOW + 5 * 10**9}
    assert force.sweep() == 0
    found = force.entry(number)
    assert found is not None
    assert found.expires == NOW + 5 * 10**9


def test_what_has_expired_is_swept_away_unless_it_was_renewed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    force = rig.gatekeeper.force
    brief = Decision(Verdict.DENY, frozenset({"dest"}), (), ttl=5.0)
    force.install(brief, where(exe=3), FLOW, NAME)
    old = force.install(brief, where(exe=4, name=b"a\0"), FLOW, NAME)
    monkeypatch.setattr("time.clock_gettime_ns", lambda _: NOW + 4 * 10**9)
    new = force.install(brief, where(exe=4, name=b"a\0"), FLOW, NAME)
    monkeypatch.setattr("time.clock_gettime_ns", lambda _: NOW + 6 * 10**9)
    assert force.sweep() == 1
    assert rig.gate.connect_entries() == []
    assert [entry.id for _, entry in rig.gate.name_entries()] == [new]
    assert force.entry(old) is None


def test_numbers_are_never_given_twice_while_maps_may_hold_them(rig: Rig) -> None:
    force = rig.gatekeeper.force
    force.install(ALLOW, where(name=b"a\0"), FLOW, NAME)
    highest = force.install(ALLOW, where(exe=8), FLOW, NAME)
    rig.gate.put_flow(KEY._replace(cookie=1), VerdictEntry(KernelVerdict.ALLOW, highest + 40))
    numbering = highest_numbers(rig.gate)
    assert numbering.next_entry() == highest + 41
    assert numbering.next_class() > max(number for _, number in rig.gate.class_entries())


def test_another_engine_takes_over_what_stands(rig: Rig) -> None:
    force = rig.gatekeeper.force
    first = force.install(ALLOW, where(), FLOW, Name())
    second = force.install(Decision(Verdict.DENY, frozenset({"name"})), where(name=b"elpmaxe.a\0"), FLOW, NAME)
    rig.gate.put_connect(ConnectKey(7, 0), VerdictEntry(KernelVerdict.DENY, 999))
    taken = rig.force(1)
    assert taken.restore() == 2
    for number, verdict in ((first, KernelVerdict.ALLOW), (second, KernelVerdict.DENY)):
        entry = taken.entry(number)
        assert entry is not None
        assert entry.verdict == verdict
    found = taken.entry(second)
    assert found is not None
    assert found.name == NAME
    assert taken.entry(999) is None
    # The shapes stand already, and a renewed entry takes the place of the old one.
    rig.calls.clear()
    taken.install(ALLOW, where(name=b"elpmaxe.a\0"), FLOW, NAME)
    assert [name for name, _ in rig.calls] == ["name", "flow"]
    assert len(taken) == 2
    assert taken.withdraw() == 2
    assert (rig.gate.name_entries(), rig.gate.class_entries()) == ([], [])
    assert [key.generation for key, _ in rig.gate.connect_entries()] == [7]


def test_what_engines_before_left_for_other_generations_is_removed(rig: Rig) -> None:
    gate, entry = rig.gate, VerdictEntry(KernelVerdict.DENY, 5)
    for generation in (1, 2):
        gate.put_connect(ConnectKey(generation, 0), entry)
        gate.put_class(ConnectKey(generation, 0), 20 + generation)
        gate.put_name(NameKey(20 + generation, b"a\0"), entry)
    gate.put_name(NameKey(NameClass.SET, b"a\0"), entry)
    gate.put_sources([(SourceKey(0, bytes(16), 8), entry)])
    assert purge(gate, 2) == 3
    assert [key.generation for key, _ in gate.connect_entries()] == [2]
    assert [key.generation for key, _ in gate.class_entries()] == [2]
    assert {key.name_class for key, _ in gate.name_entries()} == {22, NameClass.SET}
    assert {key.generation for key, _ in gate.source_entries()} == {0}


def test_a_full_map_costs_only_the_wide_entry(tmp_path: Path) -> None:
    rig = Rig(tmp_path, sizes={"connect_verdicts": 1, "classes": 0})
    force = rig.gatekeeper.force
    force.install(ALLOW, where(exe=3), FLOW, NAME)
    kept = force.install(ALLOW, where(exe=4), OutboundPlace(KEY._replace(cookie=10)), NAME)
    force.install(ALLOW, where(exe=4, name=b"a\0"), OutboundPlace(KEY._replace(cookie=11)), NAME)
    assert [error.map_name for error in rig.full] == ["connect_verdicts", "classes"]
    assert {key.cookie for key, _ in rig.gate.flow_entries()} == {9, 10, 11}
    assert force.entry(kept) is not None
    assert len(force) == 1


def test_repeating_an_entry_gives_it_no_more_time(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    force = rig.gatekeeper.force
    number = force.install(Decision(Verdict.DENY, frozenset({"name"}), (), ttl=5.0), FLOW_ONLY, FLOW, NAME)
    [(_, before)] = rig.gate.flow_entries()
    rig.gate.remove_flow(KEY)
    monkeypatch.setattr("time.clock_gettime_ns", lambda _: NOW + 4 * 10**9)
    force.repeat(number, FLOW)
    force.repeat(number + 1, OutboundPlace(KEY._replace(cookie=77)))
    assert rig.gate.flow_entries() == [(KEY, before)]
    assert (before.expires, before.by_name) == (NOW + 5 * 10**9, 1)


@pytest.mark.parametrize("verdict", [Verdict.ALLOW, Verdict.DENY, Verdict.REJECT, Verdict.UNDECIDED])
def test_the_gate_hears_how_far_a_stream_was_read_that_it_lets_go_on(rig: Rig, verdict: Verdict) -> None:
    force, judged = rig.gatekeeper.force, 1200 if verdict is Verdict.ALLOW else None
    number = force.install(Decision(verdict, frozenset({"name"})), FLOW_ONLY, OutboundPlace(KEY, 1200), NAME)
    [(_, entry)] = rig.gate.flow_entries()
    assert (entry.judged, entry.by_name) == (judged, 1)
    rig.gate.remove_flow(KEY)
    force.repeat(number, OutboundPlace(KEY, 1200))
    assert rig.gate.flow_entries() == [(KEY, entry)]


def test_a_flow_that_stays_open_for_its_name_was_not_judged_by_what_it_carried(rig: Rig) -> None:
    place = OutboundPlace(KEY, 1200)
    rig.gatekeeper.force.install(ALLOW, where(), place, NAME, flow_verdict=KernelVerdict.UNDECIDED)
    [(_, entry)] = rig.gate.flow_entries()
    assert (entry.verdict, entry.judged) == (KernelVerdict.UNDECIDED, None)


def test_the_listing_says_what_stands_in_a_persons_words(rig: Rig) -> None:
    force = rig.gatekeeper.force
    key = ConnectKey(1, 15, 6, 443, bytes(10) + b"\xff\xff\xc6\x33\x64\x14", 5, 3, 1000)
    force.install(Decision(Verdict.DENY, frozenset(), (Reason("r", "because"),), ttl=5.0), Reach(key), FLOW, NAME)
    force.install(ALLOW, where(exe=4, name=b"elpmaxe.a\0"), FLOW, NAME)
    force.install(ALLOW, FLOW_ONLY, FLOW, NAME)
    record = ExeRecord(3, "/usr/bin/curl", 1, 1, 1, 1)
    first, second = force.listing(lambda number: record if number == 3 else None)
    assert (first["word"], first["seconds_left"], first["reasons"]) == ("deny", 5.0, ["r: because"])
    assert first["facts"] == {
        "dest": "198.51.100.20", "port": 443, "exe": "/usr/bin/curl", "cgroup": 5, "uid": 1000,
    }  # fmt: skip
    assert second["facts"] == {"exe": "id 4", "name": "a.example"}
