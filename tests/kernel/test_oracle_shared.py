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
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from engine.abi.numbers import (
    Counter,
    DestinationClass,
    FlowFlag,
    IcmpKind,
    InterfaceKind,
    KernelVerdict,
    Mode,
    OpenedBy,
    PostureBit,
    Present,
    Shape,
)
from engine.abi.numbers import StrategyKind as Kind
from engine.abi.records import Config, DestinationKey, FlowKey, InboundFlow, Plan, StrategyKey, Tuple
from engine.ports import Gate
from engine.protocols.packet import ACK, FIN, PSH, RST, SYN, TCP, UDP
from tests.kernel.judging import ACTIONS, Bench, opened, packed
from tests.kernel.lab import key
from tests.kernel.worlds import DATAGRAMS, HELLOS, HOSTS, LATER, MINUTE, PORTS, SOURCES, VERDICTS, Maker, now, text_of
from tests.support import captures
from tests.support.egress import NOBODY, Socket, key_of
from tests.support.ingress import Ingress
from tests.support.oracle import ANSWER_NS, Oracle, Way
from tests.support.simulator import SimulatedGate
from tests.support.testrun import LOOPBACK, SHORTEST, counted

STEPS = 40
OURS = (53, 7000)
ICMP = {4: 1, 6: 58}
ICMP_TYPES = {4: (8, 8, 8, 0, 0, 0, 13, 14, 3, 11, 5), 6: (128, 128, 128, 129, 129, 129, 1, 2, 144)}
INSIDE, PLAIN, UNKNOWN = 2, 3, 4
"""Interfaces that packets have come by: an inside one, one of no account, and one that nobody has told of."""
MARK = 0x5EC12E7
VERDICTS_IN = (*VERDICTS, KernelVerdict.ALLOW, KernelVerdict.IGNORE)
REACHED = (
    Counter.PASSED_INBOUND, Counter.PASSED_REPLY, Counter.PASSED_FORWARDED, Counter.PASSED_RELEASED,
    Counter.PASSED_NEVER_DENY, Counter.PASSED_IGNORED, Counter.PASSED_POSTURE, Counter.PASSED_PANIC, Counter.HELD_LATE,
    Counter.HELD_CONNECT, Counter.HELD_DATAGRAM, Counter.HELD_INBOUND, Counter.HELD_REJECT, Counter.HIT_FLOW,
    Counter.HIT_DEST, Counter.HIT_SET, Counter.DROPPED_FLOW, Counter.DROPPED_DEST, Counter.DROPPED_SET,
    Counter.DROPPED_INBOUND, Counter.DROPPED_INTERFACE, Counter.DROPPED_ENGINE_ABSENT, Counter.DROPPED_HOLD_FULL,
    Counter.WOULD_DROP,
)  # fmt: skip


class Sender(NamedTuple):
    """A socket and what it can send: TCP its own flow, a datagram socket from `port` to anybody, a raw one anything."""

    socket: Socket
    transport: int
    flow: Tuple
    accepted: bool = False


@dataclass
class Traffic(Maker):
    """A common state and what happens to it. Everything is written to all `gates` alike."""

    gates: tuple[Gate, ...] = ()
    hold_ifindex: int = 0
    enforcing: bool = False
    version: int = 4
    ethernet: int = 1
    shapes: tuple[int, ...] = ()
    senders: list[Sender] = field(default_factory=list)
    inside: bool = False
    """The guarded interface is an inside one, for the packet to come."""

    def begin(self) -> None:
        self.version, self.ethernet = self.one((4, 4, 6)), self.one((1, 1, 1, 0))
        self.generation = self.chance.randint(2, 0xFFFFFF00)
        for number in range(7):
            self._sender(number)
        self.flip()
        self.configure()
        for _ in range(self.chance.randint(0, 8)):
            self.decide()

    def _sender(self, number: int) -> None:
        us, peer = key(SOURCES[self.version]), key(self.one(HOSTS[self.version]))
        kind = ("opened", "accepted", "accepted", "datagrams", "datagrams", "raw", "nobody")[number]
        transport = {"opened": TCP, "accepted": TCP, "datagrams": UDP}.get(kind, 0)
        accepted = kind == "accepted"
        sport = self.one(OURS) if accepted or kind == "datagrams" else 40_000 + number
        stored = kind not in ("raw", "nobody") and self.odds(8)
        socket = Socket(
            0 if kind == "nobody" else (1 << 40) + number, self.identity(), stored=stored,
            connections=0 if accepted else 1, start=1000 if kind == "opened" and stored else 0,
        )  # fmt: skip
        if accepted and socket.stored:
            socket.flags, socket.identity = int(FlowFlag.INBOUND), NOBODY
        elif kind == "opened" and socket.stored and self.odds(7):
            socket.flags = int(FlowFlag.STARTED)
        self.senders.append(Sender(socket, transport, Tuple(us, peer, sport, self.one(PORTS), transport), accepted))

    # ---- what the engine does

    def flip(self) -> None:
        """Another generation, with a few entries."""
        self.generation += 1
        self.shapes = tuple(self.one((1, 1, 0, 8, 2, 128, 129, 129)) for _ in range(self.chance.randint(1, 4)))
        number = self.generation if self.odds(9) else self.generation - 4
        inbound = self.odds(8)
        for gate in self.gates:
            gate.set_plan(Plan(number, self.shapes, (), inbound=inbound))
        for _ in range(self.chance.randint(0, 8)):
            self.connect()
        for gate in self.gates:
            gate.set_generation(self.generation)

    def connect(self) -> None:
        sender, shape = self.one(self.senders), self.one(self.shapes)
        flow = self._tuple_out(sender)
        flow = flow.reversed() if shape & Shape.INBOUND else flow
        at = key_of(shape & ~Shape.INBOUND, self.number(), sender.socket.identity, flow)
        if at is not None:
            entry = self.entry()
            for gate in self.gates:
                gate.put_connect(at._replace(shape=shape), entry)

    def configure(self) -> None:
        present = Present.INBOUND if self.odds(9) else Present(0)
        for bit in (*tuple(Present)[:5], Present.INSIDE):
            present |= bit if self.odds(3) else Present(0)
        enforcing = self.enforcing or self.odds(8)
        config = Config(
            Mode.ENFORCE if enforcing else self.one((Mode.OBSERVE,) * 5 + (Mode.PANIC,)), self.hold_ifindex, present,
            sum(bit for bit in tuple(PostureBit)[:6] if self.odds(4)), 3 if self.odds(1) else 1024,
            0 if self.odds(1) else MINUTE, self.one((0, MARK)),
        )  # fmt: skip
        for gate in self.gates:
            gate.set_config(config)

    def decide(self) -> None:
        """A verdict on one flow, or on an address, or a note that a datagram was released."""
        sender = self.one(self.senders)
        flow, what = self._tuple_out(sender), self.chance.randrange(10)
        for_flow, entry = self._flow_key(sender, flow), self.entry((*VERDICTS, KernelVerdict.IGNORE))
        state, state_key = self._state(sender, flow.reversed())
        destination = self._destination(flow)
        strategy = StrategyKey(*self.one(((Kind.EXE, 7), (Kind.CGROUP, 5), (Kind.USER, 0), (Kind.USER, 1000))))
        strategic = self.entry(tuple(KernelVerdict)[5:])
        for gate in self.gates:
            if what < 4:
                gate.put_inbound(state_key, state)
            elif what < 7:
                gate.put_flow(for_flow, entry)
            elif what < 9:
                gate.put_destination(*destination)
            else:
                gate.put_strategy(strategy, strategic)

    def _flow_key(self, sender: Sender, flow: Tuple) -> FlowKey:
        socket, part = sender.socket, 0
        if socket.stored:
            part = socket.connections if flow.transport == TCP else socket.identity.exe
        return FlowKey(flow, self.number(), part, socket.cookie)

    def _state(self, sender: Sender, coming: Tuple) -> tuple[InboundFlow, Tuple]:
        icmp = coming.transport in ICMP.values()
        if coming.transport != TCP and self.odds(4):
            at = coming._replace(dport=IcmpKind.ANSWER_IN) if icmp else coming
            return InboundFlow(KernelVerdict.NONE, OpenedBy.HERE, expires=self.one((LATER, 1))), at
        state = InboundFlow(
            self.one(VERDICTS_IN), OpenedBy.OUTSIDE, self.number(), self.chance.randint(1, 99),
            sender.socket.start or 1000 if coming.transport == TCP else 0,
            self.one((0, int(FlowFlag.PAYLOAD_PASSED))), self.one((0, 0, 0, LATER, 1)), self.chance.randrange(2),
        )  # fmt: skip
        return state, coming

    def _destination(self, flow: Tuple) -> tuple[DestinationKey, object]:
        kind = self.one(tuple(DestinationClass))
        # Never-deny names the peer in both directions; a person's word names what is asked for.
        address = flow.src if kind is DestinationClass.SET and self.odds(5) else flow.dst
        transport, port = self.one(((flow.transport, flow.dport), (flow.transport, flow.sport), (UDP, 0)))
        verdicts = tuple(KernelVerdict)[5:] if kind is DestinationClass.STRATEGY else VERDICTS[:3]
        return DestinationKey(kind, transport, port, address, self.one((128, 128, 121))), self.entry(verdicts)

    def reopen(self) -> None:
        """What the connect hook does with a socket that connects again; what accepting makes of another."""
        sender = self.one(self.senders[:3])
        socket = sender.socket
        socket.verdict = socket.generation = socket.verdict_id = socket.expires = socket.flags = 0
        if sender.accepted:
            socket.flags = int(FlowFlag.INBOUND) if socket.stored else 0
        else:
            socket.connections += 1

    # ---- packets

    def _tuple_out(self, sender: Sender) -> Tuple:
        """What this sender's next packet may have."""
        if sender.transport == TCP:
            return sender.flow
        peer = key(self.one(HOSTS[self.version]))
        if sender.transport == UDP:
            return sender.flow._replace(dst=peer, dport=self.one(PORTS))
        transport = self.one((ICMP[self.version], ICMP[self.version], UDP, TCP))
        if transport == ICMP[self.version]:
            return Tuple(sender.flow.src, peer, 0, 0, transport)
        if self.odds(5):
            # As a raw socket can: in the place of another one.
            another = self.one(self.senders[:5])
            return another.flow
        return Tuple(sender.flow.src, peer, self.one(OURS), self.one(PORTS), transport)

    def out(self) -> tuple[Sender, bytes, Way]:
        sender = self.one(self.senders)
        flow = self._tuple_out(sender)
        if flow.transport == TCP:
            # A raw sender knows where another one's stream is.
            like = next((each.socket for each in self.senders if each.flow == flow), sender.socket)
            inside = self._segment(like, flow)
        else:
            inside = self._datagram(flow)
        self.inside = self.odds(2)
        came_by = LOOPBACK if self.inside else 0
        if not self.inside and (not sender.socket.cookie or self.odds(1)):
            came_by = self.one((0, INSIDE, PLAIN, UNKNOWN))
        mark = self.one((0, 0, 0, 0, 0, MARK, MARK + 1))
        return sender, self._frame(flow, inside), Way(came_by, mark)

    def coming(self) -> tuple[bytes, bool, int]:
        """A frame that comes in, whether the socket table says that its connection came from outside, and its mark."""
        sender = self.one(self.senders)
        flow = self._tuple_out(sender).reversed()
        inside = self._coming(flow) if flow.transport == TCP else self._datagram(flow)
        self.inside = False
        return self._frame(flow, inside), self.odds(3), self.one((0, 0, 0, 0, 0, 0, 0, MARK))

    def _coming(self, flow: Tuple) -> bytes:
        if self.odds(4):
            flags, payload, seq = SYN, self.one((b"", b"", HELLOS[0])), self.one((999, 999, 5))
        else:
            flags = self.one((ACK, ACK | PSH, ACK | PSH, ACK | FIN, RST, SYN | ACK))
            payload, seq = self.one((b"", HELLOS[0])), 1000
        return captures.tcp(flow.sport, flow.dport, payload, seq=seq, flags=flags)

    def _datagram(self, flow: Tuple) -> bytes:
        if flow.transport == UDP:
            return captures.udp(flow.sport, flow.dport, self.one((*DATAGRAMS, b"query", b"query", b"answer")))
        if self.odds(1):
            return self.one((b"", b"\x08"))
        return bytes([self.one(ICMP_TYPES[self.version])]) + bytes(23)

    def _frame(self, flow: Tuple, inside: bytes) -> bytes:
        packet = self._ip(self.version, flow.transport, inside, flow) if self.odds(2) else self._bare_ip(flow, inside)
        frame = bytearray(captures.ethernet(packet) if self.ethernet else packet)
        if self.odds(1) and self.odds(3):
            frame[self.chance.randrange(min(90, len(frame)))] ^= 1 << self.chance.randrange(8)
        return bytes(frame).ljust(SHORTEST, b"\0")

    def _bare_ip(self, flow: Tuple, inside: bytes) -> bytes:
        ip = captures.ipv4 if self.version == 4 else captures.ipv6
        src, dst = (text_of(self.version, each) for each in (flow.src, flow.dst))
        return ip(flow.transport, inside, src=src, dst=dst)


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
        elif what < 80:
            self.comes_in(why)
        elif what < 91:
            traffic.decide()
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
        assert done.mark == (0 if released and self.simulated.config().mode != Mode.PANIC else way.mark), why
        assert packed(sender.socket) == packed(model), f"{why}: {sender.socket}, not {model}"
        self.told(self.egress, why)

    def comes_in(self, why: str) -> None:
        frame, outside, mark = self.traffic.coming()
        self.bench.interface(LOOPBACK, self.traffic.ethernet)
        why = f"{why}: in {frame.hex()} {outside=} {mark=} under {self.simulated.config()}"
        counters, start = (self.bench.gate.counters(), self.simulated.counters()), now()
        done = self.bench.comes_in(frame, outside=outside, mark=mark)
        outcome = self.ingress.packet(frame, outside=outside, mark=mark)
        self.compare(counters, start, why)
        assert done.action == ACTIONS[outcome], why
        released = mark and mark == self.simulated.config().release_mark and self.simulated.config().mode != Mode.PANIC
        assert done.mark == (0 if released else mark), why
        self.told(self.ingress, why)

    def compare(self, counters: tuple[dict[Counter, int], dict[Counter, int]], start: int, why: str) -> None:
        """Counters, notes of what is held, and what is remembered of flows."""
        got = counted(counters[0], self.bench.gate.counters())
        assert got == counted(counters[1], self.simulated.counters()), why
        self.compare_inbound(start, now(), why)
        for flow, note in self.simulated.notes.items():
            held = self.bench.gate.held(flow)
            assert held is not None, why
            assert held._replace(time=0) == note._replace(time=0), why
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
        for seed in range(150):
            Common(bench, seed).run()

    bench.seen.clear()
    bench.lab.inside.call(many)
    reached = {name for name, times in bench.seen.items() if times >= 3}
    assert {which.name for which in REACHED} <= reached
