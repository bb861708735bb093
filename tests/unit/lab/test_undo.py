"""Taking away: what is the run's goes, what is not stays, and what is not there does not matter."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.kernel import pins as pinning
from engine.kernel.detach import Detached
from engine.kernel.pins import Pins, Record
from engine.lab import journal, undo
from engine.lab.groups import Groups
from engine.lab.journal import Plan


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setattr(journal, "JOURNALS", tmp_path / "journals")
    monkeypatch.setattr(pinning, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(pinning, "BPFFS", tmp_path / "bpffs")
    return Plan.fresh(tmp_path / "state", tmp_path / "cgroups", mounts_bpffs=False)


@pytest.fixture
def detached(monkeypatch: pytest.MonkeyPatch) -> list[Pins]:
    done: list[Pins] = []

    def detach(pins: Pins) -> Detached:
        done.append(pins)
        return Detached(pins.instance)

    monkeypatch.setattr(undo, "detach", detach)
    return done


def guarding(plan: Plan, cgroup: Path) -> Pins:
    pins = Pins.of(plan.state)
    Record(pins.instance, plan.state_dir, 0, cgroup=str(cgroup)).write(pins.record)
    return pins


def test_nothing_there_is_no_problem(plan: Plan, detached: list[Pins]) -> None:
    assert (undo.undo(plan), detached) == ([], [])


def test_the_run_s_files_and_groups_go(plan: Plan, detached: list[Pins]) -> None:
    (plan.work / "policy").mkdir(parents=True)
    (plan.work / "policy" / "file").write_text("")
    plan.cgroup.parent.mkdir()
    Groups(plan.cgroup).make()
    assert undo.undo(plan) == []
    assert not plan.work.exists()
    assert list(plan.cgroup.parent.iterdir()) == []


def test_the_run_s_gate_is_detached(plan: Plan, detached: list[Pins]) -> None:
    pins = guarding(plan, Groups(plan.cgroup).guarded)
    undo.undo(plan)
    assert detached == [pins]


def test_a_gate_without_a_record_is_detached(plan: Plan, detached: list[Pins]) -> None:
    pins = Pins.of(plan.state)
    pins.make()
    undo.undo(plan)
    assert detached == [pins]


def test_the_gate_of_somebody_else_in_the_same_state_directory_stays(plan: Plan, detached: list[Pins]) -> None:
    guarding(plan, Path("/sys/fs/cgroup"))
    undo.undo(plan)
    assert detached == []


def test_what_cannot_be_taken_away_is_told(plan: Plan, detached: list[Pins], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(undo, "_remove_group", lambda _folder: False)
    assert undo.undo(plan) == [f"The control group {plan.cgroup} is still in use"]
