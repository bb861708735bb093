"""The kernel's own judgement against the reference in plain Python: the same verdict, counter, note and memory.

Each seed is a gate (maps, configuration, generation, plan, sockets) and packets for it. Every packet goes through the
real program by BPF_PROG_TEST_RUN and through tests/support/oracle.py; whatever either changed is compared. The sockets
are a test's to choose by the seam of tests/support/seam.py; packets of unknown ones also go through the program as it
is shipped.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from engine.abi.numbers import Counter
from engine.abi.records import VerdictEvent
from engine.ports import Gate
from tests.kernel.judging import ACTIONS, Bench, opened, packed
from tests.kernel.worlds import Maker, now
from tests.support.egress import Socket
from tests.support.oracle import Oracle
from tests.support.simulator import SimulatedGate
from tests.support.testrun import LOOPBACK, SHORTEST, counted

PACKETS = 16
EGRESS = (*tuple(Counter)[: Counter.REFUSED_CONNECT], Counter.WOULD_DROP, Counter.HELD_REJECT, Counter.HELD_AGAIN)
ELSEWHERE = frozenset(Counter) - frozenset(EGRESS) | {Counter.DROPPED_SOURCE, Counter.DROPPED_MAP_FULL}
"""Counters of other programs and hooks, and of maps that these worlds are too small to fill."""


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with opened() as bench:
        yield bench


class Twins:
    """The world of a seed twice: in the kernel's maps, and in the simulated ones under the oracle."""

    def __init__(self, bench: Bench, seed: int, *, enforcing: bool = False, strangers: bool = False) -> None:
        loaded = bench.lab.loaded
        assert loaded is not None
        bench.clear()
        self.bench = bench
        self.simulated = SimulatedGate()
        gates: tuple[Gate, Gate] = (bench.gate, self.simulated)
        self.makers = [Maker(random.Random(seed), strangers=strangers) for _ in gates]
        for maker, gate in zip(self.makers, gates, strict=True):
            maker.world(gate, hold_ifindex=loaded.hold_ifindex, enforcing=enforcing)
            ethernet = maker.one((1, 1, 1, 0))
        bench.interface(LOOPBACK, ethernet)
        self.simulated.beaten = now()
        self.link = 14 if ethernet else 0
        self.oracle = Oracle(self.simulated, LOOPBACK, interfaces={LOOPBACK: ethernet})

    def packets(self) -> Iterator[tuple[Socket, Socket, bytes]]:
        """A socket in the kernel, the same socket in the model, and what it sends."""
        for _ in range(PACKETS):
            (socket, frame), (model, same) = (maker.packet(self.link) for maker in self.makers)
            assert frame == same
            if len(frame) >= SHORTEST:
                yield socket, model, frame

    def judge(
        self, socket: Socket, model: Socket, frame: bytes, judge: Callable[[Socket, bytes], int], why: str
    ) -> None:
        """One packet through both; the verdict and the counters are compared."""
        why = f"{why}: {frame.hex()} of {socket} under {self.simulated.config()}, interface {self.link}"
        counters = self.bench.gate.counters(), self.simulated.counters()
        action = judge(socket, frame)
        judged = self.oracle.packet(model, frame)
        if not model.stored:
            model.flags = model.start = 0  # nobody remembers
        got = counted(counters[0], self.bench.gate.counters())
        assert got == counted(counters[1], self.simulated.counters()), why
        assert action == ACTIONS[judged.outcome], why
        self.bench.seen.update([*(which.name for which in got), f"action {action}"])

    def told(self) -> list[VerdictEvent]:
        told, self.oracle.told = self.oracle.told, []
        return [event._replace(time=0) for event in told]


def check(bench: Bench, seed: int, *, enforcing: bool = False) -> None:
    twins = Twins(bench, seed, enforcing=enforcing)
    for number, (socket, model, frame) in enumerate(twins.packets()):
        why = f"seed {seed}, packet {number}"
        twins.judge(socket, model, frame, lambda *sent: bench.leaves(*sent).action, why)
        assert packed(socket) == packed(model), f"{why}: {frame.hex()}: {socket}, not {model}"
        assert bench.told() == twins.told(), why
        for flow, note in twins.simulated.notes.items():
            assert bench.held(flow) == note._replace(time=0), why
        assert bench.kept() == twins.simulated.hellos, why
    remembered = {key: entry._replace(hits=0) for key, entry in bench.gate.flow_entries()}
    assert remembered == {key: entry._replace(hits=0) for key, entry in twins.simulated.flows.items()}, f"seed {seed}"


def check_shipped(bench: Bench, seed: int) -> None:
    """Sockets without storage, and with the cookies that the kernel gives them: another one each time."""
    twins = Twins(bench, seed, strangers=True)
    for number, (socket, model, frame) in enumerate(twins.packets()):
        model.cookie = number + 1
        twins.judge(socket, model, frame, lambda _, sent: bench.shipped(sent).action, f"seed {seed}, packet {number}")
        told = bench.told()
        assert [event._replace(cookie=0) for event in told] == [event._replace(cookie=0) for event in twins.told()]


THOROUGH = settings(
    max_examples=250, deadline=None, phases=(Phase.explicit, Phase.generate), report_multiple_bugs=False
)
"""Without shrinking: a smaller seed is no smaller world."""


@THOROUGH
@given(seed=st.integers(0, 1 << 48))
def test_the_kernel_judges_as_the_oracle(bench: Bench, seed: int) -> None:
    bench.lab.inside.call(lambda: check(bench, seed))


@THOROUGH
@given(seed=st.integers(0, 1 << 48))
def test_the_kernel_enforces_as_the_oracle(bench: Bench, seed: int) -> None:
    bench.lab.inside.call(lambda: check(bench, seed, enforcing=True))


@THOROUGH
@given(seed=st.integers(0, 1 << 48))
def test_the_program_as_it_is_shipped_judges_sockets_that_it_does_not_know_as_the_oracle(
    bench: Bench, seed: int
) -> None:
    bench.lab.inside.call(lambda: check_shipped(bench, seed))


def test_these_worlds_reach_every_way_through_the_program(bench: Bench) -> None:
    """A comparison that never sees a counter move proves nothing about it."""

    def many() -> None:
        for seed in range(400):
            check(bench, seed)

    bench.seen.clear()
    bench.lab.inside.call(many)
    reached = {name for name, times in bench.seen.items() if times >= 3}
    assert {which.name for which in Counter if which not in ELSEWHERE} <= reached
    assert {f"action {action}" for action in ACTIONS.values()} <= reached
