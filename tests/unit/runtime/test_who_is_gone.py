"""Whom the kernel named and nobody can look up any more: no rule about them is escaped that way."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.abi.records import Process
from engine.config import Mode
from engine.model.decision import Decision, Verdict
from engine.model.facts import Cgroup
from engine.model.posture import Condition, Posture, Stance
from engine.policy.evaluator import Answer
from engine.policy.judge import UNSETTLED
from engine.policy.rule import Rule
from engine.runtime import procfs
from engine.runtime.identity import ExeRecord
from engine.runtime.reload import Switch
from tests.support.egress import Outcome
from tests.support.rig import Client, Rig, Spoken, run

NOBODY = 1 << 23
"""More than PID_MAX_LIMIT: no process has it."""
OPEN = Posture.default().with_changes({Condition.IDENTITY_GONE: Stance.OPEN})


def about(fact: str, *reads: str) -> Rule:
    return Rule(
        "who", "", frozenset({"dest", fact}), "", frozenset({"dest"}), frozenset({Verdict.DENY}),
        reads=frozenset(reads or {fact}),
    )  # fmt: skip


def judged(rig: Rig, client: Client) -> Decision:
    async def scene() -> Decision:
        client.send(client.udp(b"x"))
        await rig.settle()
        return rig.diary.decisions[-1][1]

    return run(scene())


def absent(rig: Rig, what: str) -> Client:
    """Return who sends when this can no longer be looked up, and everything else can."""
    rig.paths[NOBODY] = "/usr/bin/known"
    if what == "exe":
        del rig.paths[NOBODY]
    if what == "cgroup":
        rig.identifier._cgroups.lookup = lambda *_: Cgroup()  # type: ignore[method-assign]
    return rig.client(tgid=NOBODY)


CASES = {"exe": about("exe", "exe.path"), "cgroup": about("cgroup"), "process": about("process")}


@pytest.mark.parametrize("what", CASES)
def test_a_rule_about_who_is_gone_is_not_escaped(tmp_path: Path, what: str) -> None:
    rig = Rig(tmp_path, rules=[CASES[what]])
    client = absent(rig, what)
    decision = judged(rig, client)
    assert decision.verdict is Verdict.DENY
    assert decision.reasons[0].rule == "posture"
    assert "identity_gone" in decision.reasons[0].message
    assert rig.released == []


@pytest.mark.parametrize("what", CASES)
def test_an_open_posture_lets_the_flow_pass_and_nobody_else(tmp_path: Path, what: str) -> None:
    rig = Rig(tmp_path, rules=[CASES[what]], posture=OPEN)
    client = absent(rig, what)
    assert judged(rig, client).verdict is Verdict.ALLOW
    assert client.sent == [client.udp(b"x")]
    assert rig.gate.connect_entries() == []


def test_a_refusal_of_who_is_gone_is_that_flows_alone(tmp_path: Path) -> None:
    rule = replace(about("exe", "exe.sha256"), effects=frozenset({Verdict.ALLOW}))
    rig = Rig(tmp_path, rules=[rule], default=Verdict.DENY)
    rig.paths[NOBODY] = "/usr/bin/known"
    assert judged(rig, rig.client(tgid=NOBODY)).verdict is Verdict.DENY
    assert rig.gate.connect_entries() == []


def test_who_sends_next_on_a_shared_socket_is_not_refused_for_who_is_gone(tmp_path: Path) -> None:
    """Neither has been looked up when its datagram is held, so the gate takes both for one."""

    async def scene() -> None:
        rig = Rig(tmp_path, rules=[about("exe", "exe.path")])
        gone, alive = absent(rig, "exe"), rig.client()
        alive.socket.cookie = gone.socket.cookie
        gone.send(gone.udp(b"x"))
        await rig.settle()
        assert alive.send(alive.udp(b"y")).outcome is Outcome.DROP
        later = rig.gate.clock() + int((UNSETTLED + 1) * 1e9)
        rig.gate.clock = lambda: later
        assert alive.send(alive.udp(b"y")).outcome is Outcome.HOLD
        await rig.settle()
        assert alive.sent == [alive.udp(b"y")]

    run(scene())


def test_what_does_not_depend_on_who_is_gone_is_decided_without(tmp_path: Path) -> None:
    rule = about("exe")
    for rules, say in ([[], Answer()], [[rule], Answer(target=False)]):
        rig = Rig(tmp_path, lambda _, say=say: say, rules=rules)  # type: ignore[misc]
        assert judged(rig, absent(rig, "exe")).verdict is Verdict.ALLOW


def test_who_was_never_named_and_a_thread_of_the_kernel_are_unknown_and_not_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, rules=[about("exe")])
    assert judged(rig, rig.client(tgid=0, stored=False)).verdict is Verdict.ALLOW
    monkeypatch.setattr(procfs, "is_kernel_thread", lambda _, pid: pid == NOBODY)
    assert judged(rig, absent(rig, "exe")).verdict is Verdict.ALLOW


@pytest.mark.parametrize("digest", ["", "00" * 32])
def test_a_program_without_a_digest_is_not_taken_for_one_with_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digest: str
) -> None:
    rig = Rig(tmp_path, rules=[about("exe", "exe.sha256")])
    rig.paths[NOBODY] = "/usr/bin/known"

    async def sha256(*_: Any, **__: Any) -> str:
        return digest

    monkeypatch.setattr(rig.people, "sha256", sha256)
    assert judged(rig, rig.client(tgid=NOBODY)).verdict is (Verdict.ALLOW if digest else Verdict.DENY)


@pytest.mark.parametrize("stamp", [77, 78])
def test_a_process_is_described_as_what_it_was_when_it_sent(tmp_path: Path, stamp: int) -> None:
    """Under another stamp it has executed something else since, or its number is another process's."""
    rig = Rig(tmp_path, rules=[about("process")])
    me = os.getpid()
    rig.paths[me] = "/usr/bin/known"
    client = rig.client(tgid=me)
    rig.gate.put_process(me, Process(stamp, 0))
    client.socket.identity = client.socket.identity._replace(exe=1)
    rig.people.restore([ExeRecord(1, "/usr/bin/known", 1, 1, 1, 1)])
    assert judged(rig, client).verdict is (Verdict.ALLOW if stamp == 77 else Verdict.DENY)


def test_who_handed_a_connection_on_and_ended_is_who_it_began_with(tmp_path: Path) -> None:
    async def scene() -> None:
        rig = Rig(tmp_path, rules=[about("process")])
        me = os.getpid()
        rig.paths[me] = "/usr/bin/known"
        client = rig.client(tgid=me)
        client.send(client.syn())
        await rig.settle()
        rig.gate.remove_process(me)
        force = rig.force(2, Spoken(lambda _: Answer()))
        await Switch(rig.gate, rig.gatekeeper, rig.identifier, rig.sources, Mode.ENFORCE).to(force)
        assert rig.cuts == []
        assert client.send(client.tcp(b"more")).outcome is Outcome.PASS

    run(scene())


def test_a_new_policy_ends_the_connections_of_who_is_gone(tmp_path: Path) -> None:
    async def scene() -> None:
        rig = Rig(tmp_path, rules=[])
        clients = [absent(rig, "exe"), rig.client(sport=40_001)]
        for client in clients:
            client.send(client.syn())
            await rig.settle()
        rig.rules = [about("exe")]
        force = rig.force(2, Spoken(lambda _: Answer()))
        await Switch(rig.gate, rig.gatekeeper, rig.identifier, rig.sources, Mode.ENFORCE).to(force)
        assert [flow for flow, _ in rig.cuts] == [clients[0].flow]

    run(scene())
