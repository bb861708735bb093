"""Both programs in one common state against both oracles: sequences of packets that leave and come in.

tests/kernel/test_oracle.py and test_oracle_inbound.py give each program a state and a few packets. Here the state comes
about: inbound_flows, socket storage, flow_verdicts and the scratch are what the packets before, of other sockets and
the other direction, have left there, while the engine writes, the configuration changes and generations follow each
other.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from copy import copy

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from engine.abi.numbers import Counter, InterfaceKind, Mode, OpenedBy
from engine.abi.records import InboundFlow
from tests.kernel.judging import ACTIONS, Bench, opened, packed
from tests.kernel.traffic import INSIDE, PLAIN, Traffic
from tests.kernel.worlds import now
from tests.support.ingress import Ingress
from tests.support.oracle import ANSWER_NS, Oracle, Way
from tests.support.simulator import SimulatedGate
from tests.support.testrun import LOOPBACK, REDIRECT, Run, counted

STEPS = 40
REACHED = (
    Counter.PASSED_INBOUND, Counter.PASSED_REPLY, Counter.PASSED_FORWARDED, Counter.PASSED_RELEASED,
    Counter.PASSED_NEVER_DENY, Counter.PASSED_IGNORED, Counter.PASSED_POSTURE, Counter.PASSED_PANIC, Counter.HELD_LATE,
    Counter.HELD_CONNECT, Counter.HELD_DATAGRAM, Counter.HELD_INBOUND, Counter.HELD_REJECT, Counter.HIT_FLOW,
    Counter.HIT_DEST, Counter.HIT_SET, Counter.DROPPED_FLOW, Counter.DROPPED_DEST, Counter.DROPPED_SET,
    Counter.DROPPED_INBOUND, Counter.DROPPED_INTERFACE, Counter.DROPPED_ENGINE_ABSENT, Counter.DROPPED_HOLD_FULL,
    Counter.WOULD_DROP, Counter.HELD_AGAIN,
)  # fmt: skip


class Common:
    """One state twice, and both programs over it."""

    def __init__(self, bench: Bench, seed: int, *, enforcing: bool = False) -> None:
        loaded = bench.lab.loaded
        assert loaded is not None
        bench.clear()
        self.bench, self.simulated, self.seed = bench, SimulatedGate(), seed
        self.simulated.beaten = now()
        self.traffic = Traffic(
            random.Random(seed), gates=(bench.gate, self.simulated), hold_ifindex=loaded.hold_ifindex,
            enforcing=enforcing,
        )  # fmt: skip
        self.traffic.begin()
        self.interfaces = {INSIDE: self.traffic.ethernet | InterfaceKind.INSIDE, PLAIN: self.traffic.ethernet}
        for number, kind in self.interfaces.items():
            bench.interface(number, kind)
        self.egress = Oracle(self.simulated, LOOPBACK, interfaces=self.interfaces)
        self.ingress = Ingress(self.simulated, LOOPBACK, 14 if self.traffic.ethernet else 0)

    def run(self) -> None:
        for step in range(STEPS):
            self.step(f"seed {self.seed}, step {step}")
        flows = {at: entry._replace(hits=0) for at, entry in self.bench.gate.flow_entries()}
        assert flows == {at: entry._replace(hits=0) for at, entry in self.simulated.flows.items()}, f"seed {self.seed}"

    def step(self, why: str) -> None:
        traffic, what = self.traffic, self.traffic.chance.randrange(100)
        if what < 45:
            self.leaves(why)
        elif what < 78:
            self.comes_in(why)
        elif what < 88:
            traffic.decide()
        elif what < 91:
            traffic.read()
        elif what < 94:
            traffic.connect()
        elif what < 96:
            traffic.flip()
        elif what < 98:
            traffic.configure()
        else:
            traffic.reopen()

    def leaves(self, why: str) -> None:
        sender, frame, way = self.traffic.out()
        kind = self.traffic.ethernet | (InterfaceKind.INSIDE if self.traffic.inside else 0)
        self.bench.interface(LOOPBACK, kind)
        self.interfaces[LOOPBACK] = kind
        model = copy(sender.socket)
        why = f"{why}: {frame.hex()} of {model} {way} under {self.simulated.config()}, interface {kind}"
        counters, start = (self.bench.gate.counters(), self.simulated.counters()), now()
        done = self.bench.leaves(sender.socket, frame, way)
        judged = self.egress.packet(model, frame, way)
        if not model.stored:
            model.flags = model.start = 0  # nobody remembers
            sender.socket.flags = sender.socket.start = 0
        self.compare(counters, start, why)
        assert done.action == ACTIONS[judged.outcome], why
        released = bool(way.mark) and way == Way(LOOPBACK, self.simulated.config().release_mark)
        self.marked(done, way.mark, why, released=released)
        assert packed(sender.socket) == packed(model), f"{why}: {sender.socket}, not {model}"
        self.told(self.egress, why)
        assert self.bench.kept() == self.simulated.hellos, why

    def comes_in(self, why: str) -> None:
        frame, (found, accepted), mark = self.traffic.coming()
        self.bench.interface(LOOPBACK, self.traffic.ethernet)
        why = f"{why}: in {frame.hex()} {found=} {accepted=} {mark=} under {self.simulated.config()}"
        counters, start = (self.bench.gate.counters(), self.simulated.counters()), now()
        done = self.bench.comes_in(frame, found=found, accepted=accepted, mark=mark)
        outcome = self.ingress.packet(frame, found=found, accepted=accepted, mark=mark)
        self.compare(counters, start, why)
        assert done.action == ACTIONS[outcome], why
        self.marked(done, mark, why, released=bool(mark) and mark == self.simulated.config().release_mark)
        self.told(self.ingress, why)

    def marked(self, done: Run, mark: int, why: str, *, released: bool) -> None:
        """What goes to the engine carries the gate's mark, what comes back from it loses it."""
        config = self.simulated.config()
        kept = 0 if released and config.mode != Mode.PANIC else mark
        assert done.mark == (config.release_mark if done.action == REDIRECT else kept), why

    def compare(self, counters: tuple[dict[Counter, int], dict[Counter, int]], start: int, why: str) -> None:
        """Counters, notes of what is held, and what is remembered of flows."""
        got = counted(counters[0], self.bench.gate.counters())
        assert got == counted(counters[1], self.simulated.counters()), why
        self.compare_inbound(start, now(), why)
        for flow, note in self.simulated.notes.items():
            assert self.bench.held(flow) == note._replace(time=0), why
        self.bench.seen.update(which.name for which in got)

    def compare_inbound(self, start: int, end: int, why: str) -> None:
        """What is noted or renewed in a run has its time from a clock that is read between `start` and `end`."""
        states, model = dict(self.bench.gate.inbound_entries()), dict(self.simulated.inbounds.items())
        for at, state in states.items():
            modelled = model.get(at, state)
            if all(_renewed(each, start, end) for each in (state, modelled)):
                model[at] = modelled._replace(expires=state.expires)
                self.simulated.inbounds.put(at, model[at])
        assert states == model, why

    def told(self, oracle: Oracle | Ingress, why: str) -> None:
        told, oracle.told = oracle.told, []
        assert self.bench.told() == [event._replace(time=0) for event in told], why


def _renewed(state: InboundFlow, start: int, end: int) -> bool:
    return state.opened_by == OpenedBy.HERE and start <= state.expires - ANSWER_NS <= end


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with opened() as bench:
        yield bench


THOROUGH = settings(
    max_examples=100, deadline=None, phases=(Phase.explicit, Phase.generate), report_multiple_bugs=False
)


@THOROUGH
@given(seed=st.integers(0, 1 << 48))
def test_both_directions_are_judged_as_by_the_oracles(bench: Bench, seed: int) -> None:
    bench.lab.inside.call(lambda: Common(bench, seed).run())


@THOROUGH
@given(seed=st.integers(0, 1 << 48))
def test_both_directions_are_enforced_as_by_the_oracles(bench: Bench, seed: int) -> None:
    bench.lab.inside.call(lambda: Common(bench, seed, enforcing=True).run())


def test_these_sequences_reach_every_way_through_both_programs(bench: Bench) -> None:
    def many() -> None:
        for seed in range(250):
            Common(bench, seed).run()

    bench.seen.clear()
    bench.lab.inside.call(many)
    reached = {name for name, times in bench.seen.items() if times >= 3}
    assert {which.name for which in REACHED} <= reached
