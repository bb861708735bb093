"""Which number a policy is begun under, and what is left of those that were begun in vain."""

from __future__ import annotations

from engine.abi.numbers import PLANS, KernelVerdict, Shape
from engine.abi.records import ConnectKey, NameKey, Plan, VerdictEntry
from engine.runtime.force import purge, unused_number
from tests.support.simulator import SimulatedGate

ALLOW = VerdictEntry(KernelVerdict.ALLOW, 1)


def begin(gate: SimulatedGate) -> int:
    """What an engine writes first for a candidate."""
    number = unused_number(gate)
    gate.set_plan(Plan(number, (), ()))
    return number


def test_the_first_policy_ever_gets_a_number() -> None:
    assert unused_number(SimulatedGate()) == 1


def test_a_number_that_was_begun_in_vain_is_never_given_again() -> None:
    gate = SimulatedGate()
    gate.set_generation(begin(gate))
    killed = begin(gate)
    assert begin(gate) > killed


def test_no_row_of_failures_overwrites_the_plan_in_force() -> None:
    gate = SimulatedGate()
    for _ in range(3):
        begin(gate)
    number = begin(gate)
    gate.set_generation(number)
    given = [begin(gate) for _ in range(3 * PLANS)]
    assert len(set(given)) == len(given)
    assert gate.plan(number).generation == number


def test_what_other_generations_left_is_removed_and_nothing_else() -> None:
    gate = SimulatedGate()
    for generation in (6, 7, 8):
        gate.put_connect(ConnectKey(generation, Shape.DEST), ALLOW)
        gate.put_class(ConnectKey(generation, 0), generation + 20)
        gate.put_name(NameKey(generation + 20, b"moc.\0"), ALLOW)
    assert purge(gate, 7) == 6
    assert [key.generation for key, _ in gate.connect_entries()] == [7]
    assert [key.generation for key, _ in gate.class_entries()] == [7]
    assert [key.name_class for key, _ in gate.name_entries()] == [27]
