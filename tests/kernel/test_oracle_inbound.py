"""The kernel's judgement of what comes in against the reference in plain Python: verdict, counter, note and memory.

As tests/kernel/test_oracle.py does for what leaves: each seed is a gate and packets for it, each packet goes through
gate_ingress by BPF_PROG_TEST_RUN and through tests/support/ingress.py.
"""

from __future__ import annotations

import random
from collections import Counter as Tally
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from engine.abi.numbers import (
    Counter,
    DestinationClass,
    EventType,
    FlowFlag,
    KernelVerdict,
    Mode,
    OpenedBy,
    PostureBit,
    Present,
    Shape,
)
from engine.abi.records import Config, ConnectKey, DestinationKey, InboundFlow, Plan, Tuple, VerdictEvent
from engine.kernel.maps import Map
from engine.ports import Gate
from engine.protocols.packet import ACK, FIN, PSH, RST, SYN, TCP, UDP, URG
from tests.kernel.lab import DEVICE, Lab, Watch
from tests.kernel.worlds import DATAGRAMS, HELLOS, LATER, MINUTE, VERDICTS, Maker, now
from tests.support import captures
from tests.support.egress import Outcome
from tests.support.ingress import Ingress
from tests.support.simulator import SimulatedGate
from tests.support.testrun import LOOPBACK, PASS, REDIRECT, SHORTEST, SHOT, TestRun, counted

PACKETS = 16
ACTIONS = {Outcome.PASS: PASS, Outcome.DROP: SHOT, Outcome.HOLD: REDIRECT}
REACHED = (
    Counter.PASSED_NEVER_DENY, Counter.PASSED_REPLY, Counter.PASSED_POSTURE, Counter.HELD_INBOUND, Counter.HELD_REJECT,
    Counter.HIT_DEST, Counter.HIT_SET, Counter.DROPPED_INBOUND, Counter.DROPPED_FRAGMENT, Counter.DROPPED_MALFORMED,
    Counter.DROPPED_ENGINE_ABSENT, Counter.DROPPED_HOLD_FULL, Counter.WOULD_DROP,
)  # fmt: skip


@dataclass
class Visitors(Maker):
    """Peers who come in. `flows`: tuples of what comes in, each with its IP version and first sequence number."""

    flows: list[tuple[Tuple, int, int]] = field(default_factory=list)

    def world(self, gate: Gate, *, hold_ifindex: int, enforcing: bool) -> None:
        self.generation = self.chance.randint(2, 0xFFFFFFFF)
        shapes = tuple(self.one((0, 1, 128, 129, 129)) for _ in range(self.chance.randint(1, 4)))
        number = self.generation if self.odds(9) else self.generation - 4
        gate.set_plan(Plan(number, shapes, (), inbound=self.odds(9)))
        gate.set_generation(self.generation)
        for index in range(6):
            self._socket(index)
            _, flow, version = self.sockets[-1]
            flow = flow.reversed()._replace(transport=self.one((TCP, TCP, UDP, UDP, 1 if version == 4 else 58)))
            if flow.transport not in (TCP, UDP):
                flow = flow._replace(sport=0, dport=0)
            self.flows.append((flow, version, self.one((1000, 0, 0xFFFFFFFF))))
        for flow, _, start in self.flows:
            if self.odds(5):
                gate.put_inbound(flow, self._state(flow, start))
            if self.odds(6):
                # One for what leaves now and then: it is no verdict on what comes in.
                shape = self.one((128, 129, 129, 0, 1))
                dest = bool(shape & Shape.DEST)
                key = ConnectKey(
                    self.number(), shape, flow.transport if dest else 0, flow.dport if dest else 0,
                    flow.dst if dest else bytes(16),
                )  # fmt: skip
                gate.put_connect(key, self.entry())
            if self.odds(1):
                kind = self.one((DestinationClass.NEVER_DENY, DestinationClass.SET))
                address = flow.src if kind is DestinationClass.NEVER_DENY else flow.dst
                transport, port = self.one(((flow.transport, flow.dport), (flow.transport, 0), (0, 0)))
                gate.put_destination(
                    DestinationKey(kind, transport, port, address, self.one((128, 120, 0))), self.entry(VERDICTS[:3])
                )
        bits = (Present.NEVER_DENY, Present.SET_DEST)
        present = (Present.INBOUND if self.odds(9) else 0) | sum(bit for bit in bits if self.odds(6))
        mode = Mode.ENFORCE if enforcing or self.odds(7) else self.one((Mode.OBSERVE,) * 5 + (Mode.PANIC,))
        gate.set_config(
            Config(
                mode, hold_ifindex, present, sum(bit for bit in tuple(PostureBit)[:5] if self.odds(5)),
                1 if self.odds(2) else 1024, 0 if self.odds(1) else MINUTE,
            )
        )  # fmt: skip

    def _state(self, flow: Tuple, start: int) -> InboundFlow:
        if flow.transport != TCP and self.odds(4):
            return InboundFlow(KernelVerdict.NONE, OpenedBy.HERE, expires=self.one((LATER, LATER, 1)))
        return InboundFlow(
            self.one((*VERDICTS, KernelVerdict.UNDECIDED)), OpenedBy.OUTSIDE, self.number(), self.chance.randint(1, 99),
            start if flow.transport == TCP else 0, self.one((0, int(FlowFlag.PAYLOAD_PASSED))),
            self.one((0, 0, 0, LATER, 1)), self.chance.randrange(2),
        )  # fmt: skip

    def visit(self, link: int) -> bytes:
        flow, version, start = self.one(self.flows)
        if self.odds(1):
            flow = flow._replace(dport=self.one((443, 53)))
        if flow.transport == TCP:
            inside = self._coming(flow, start)
        elif flow.transport == UDP:
            inside = captures.udp(flow.sport, flow.dport, self.one((b"", b"query", *DATAGRAMS)))
        else:
            inside = self.one((b"", *(bytes([kind]) + bytes(23) for kind in (8, 0, 3, 11, 1, 2, 128, 129, 135))))
        packet = self._ip(version, flow.transport, inside, flow)
        frame = bytearray(self._ethernet(packet) if link else packet)
        if self.odds(1):
            frame[self.chance.randrange(min(90, len(frame)))] ^= 1 << self.chance.randrange(8)
        return bytes(frame).ljust(14, b"\0")

    def _coming(self, flow: Tuple, start: int) -> bytes:
        if self.odds(4):
            flags, payload = SYN, self.one((b"", b"", HELLOS[0]))
            seq = (start - 1 + self.one((0, 0, 1))) & 0xFFFFFFFF
        else:
            flags = self.one((ACK, ACK | PSH, ACK | PSH, ACK | FIN, RST, SYN | ACK, ACK | URG))
            payload, seq = self.one((b"", HELLOS[0], HELLOS[1])), start
        return captures.tcp(flow.sport, flow.dport, payload, seq=seq, flags=flags)


class Bench:
    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        lab.inside.ip("link", "set", DEVICE, "down")
        self.watch = Watch(lab)
        self.gate = self.watch.gate
        self.program = TestRun(lab.pins.programs / "gate_ingress")
        self.inbound = Map(lab.pins.maps / "inbound_flows")
        self.interfaces = Map(lab.pins.maps / "interfaces")
        self.seen: Tally[str] = Tally()

    def clear(self) -> None:
        self.watch.reset()
        for flow, _ in self.gate.inbound_entries():
            self.inbound.remove(flow.pack())

    def told(self) -> list[VerdictEvent]:
        told = [event for event in self.watch.events() if isinstance(event, VerdictEvent)]
        self.watch.forget()
        return [event._replace(time=0) for event in told if event.type == EventType.VERDICT]

    def close(self) -> None:
        self.inbound.close()
        self.interfaces.close()
        self.program.close()
        self.watch.close()


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    lab = Lab()
    bench = None
    try:
        lab.load()
        bench = Bench(lab)
        yield bench
    finally:
        if bench is not None:
            bench.close()
        lab.close()


def check(bench: Bench, seed: int, *, enforcing: bool = False) -> None:
    loaded = bench.lab.loaded
    assert loaded is not None
    bench.clear()
    simulated = SimulatedGate()
    gates: tuple[Gate, Gate] = (bench.gate, simulated)
    makers = [Visitors(random.Random(seed)) for _ in gates]
    for maker, gate in zip(makers, gates, strict=True):
        maker.world(gate, hold_ifindex=loaded.hold_ifindex, enforcing=enforcing)
        ethernet = maker.one((1, 1, 1, 0))
    bench.interfaces.put(LOOPBACK.to_bytes(4, "little"), ethernet.to_bytes(4, "little"))
    bench.gate.beat()
    simulated.beaten = now()
    bench.gate.take(bench.gate.hold_queue()[0])
    bench.told()
    link = 14 if ethernet else 0
    oracle = Ingress(simulated, LOOPBACK, link)
    for number in range(PACKETS):
        frame, same = (maker.visit(link) for maker in makers)
        assert frame == same
        if len(frame) < SHORTEST:
            continue
        why = f"seed {seed}, packet {number}: {frame.hex()} under {simulated.config()}"
        before, modelled = bench.gate.counters(), simulated.counters()
        done = bench.program(frame)
        outcome = oracle.packet(frame)
        got = counted(before, bench.gate.counters())
        assert got == counted(modelled, simulated.counters()), why
        assert done.action == ACTIONS[outcome], why
        assert done.frame == frame, why
        told, oracle.told = oracle.told, []
        assert bench.told() == told, why
        bench.seen.update([*(which.name for which in got), f"action {done.action}"])
    for flow, note in simulated.notes.items():
        held = bench.gate.held(flow)
        assert held is not None, f"seed {seed}"
        assert held._replace(time=0, number=0) == note._replace(number=0), f"seed {seed}"
    remembered = {flow: _settled(state) for flow, state in bench.gate.inbound_entries()}
    assert remembered == {flow: _settled(state) for flow, state in simulated.inbounds.items()}, f"seed {seed}"


def _settled(state: InboundFlow) -> InboundFlow:
    """An answer renews its time: by clocks that are read one after the other."""
    return state._replace(expires=0) if state.opened_by == OpenedBy.HERE else state


THOROUGH = settings(
    max_examples=250, deadline=None, phases=(Phase.explicit, Phase.generate), report_multiple_bugs=False
)


@THOROUGH
@given(seed=st.integers(0, 1 << 48))
def test_the_kernel_judges_what_comes_in_as_the_oracle(bench: Bench, seed: int) -> None:
    bench.lab.inside.call(lambda: check(bench, seed))


@THOROUGH
@given(seed=st.integers(0, 1 << 48))
def test_the_kernel_enforces_on_what_comes_in_as_the_oracle(bench: Bench, seed: int) -> None:
    bench.lab.inside.call(lambda: check(bench, seed, enforcing=True))


def test_these_worlds_reach_every_way_through_the_program(bench: Bench) -> None:
    def many() -> None:
        for seed in range(300):
            check(bench, seed)

    bench.seen.clear()
    bench.lab.inside.call(many)
    reached = {name for name, times in bench.seen.items() if times >= 3}
    assert {which.name for which in REACHED} <= reached
    assert {f"action {action}" for action in ACTIONS.values()} <= reached
