"""Sequences of packets that leave and come in, from one seed, and what the engine does between them: for
tests/kernel/test_oracle_shared.py and test_oracle_invariants.py.

One version of IP, two peers, two ports on each side and nine sockets, so that flows meet: opened here, accepted,
datagrams from one port to anybody, raw, and packets that have no socket at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from engine.abi.numbers import (
    DestinationClass,
    FlowFlag,
    IcmpKind,
    KernelVerdict,
    Mode,
    OpenedBy,
    PostureBit,
    Present,
    Shape,
)
from engine.abi.numbers import StrategyKind as Kind
from engine.abi.records import Config, DestinationKey, FlowKey, InboundFlow, Plan, StrategyKey, Tuple, VerdictEntry
from engine.ports import Gate
from engine.protocols.packet import ACK, FIN, PSH, RST, SYN, TCP, UDP, URG
from tests.kernel.lab import key
from tests.kernel.worlds import DATAGRAMS, HELLOS, HOSTS, LATER, MINUTE, PORTS, SOURCES, VERDICTS, Maker, text_of
from tests.support import captures
from tests.support.egress import NOBODY, Socket, key_of
from tests.support.oracle import Way
from tests.support.simulator import HELLOS as HELLOS_KEPT
from tests.support.testrun import LOOPBACK, SHORTEST

OURS = (53, 7000)
ICMP = {4: 1, 6: 58}
ICMP_TYPES = {4: (8, 8, 8, 0, 0, 0, 13, 14, 3, 11, 5), 6: (128, 128, 128, 129, 129, 129, 1, 2, 144)}
INSIDE, PLAIN, UNKNOWN = 2, 3, 4
"""Interfaces that packets have come by: an inside one, one of no account, and one that nobody has told of."""
MARK = 0x5EC12E7
TABLE = (*((0, False),) * 8, (1, False), (1, True), (6, False), (10, False), (10, False), (12, False))
"""Nobody, connected, accepted, in TIME_WAIT, a listener, and one that has seen a SYN (net/tcp_states.h)."""
VERDICTS_IN = (*VERDICTS, KernelVerdict.ALLOW, KernelVerdict.IGNORE)


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
        for number in range(9):
            self._sender(number)
        self.flip()
        self.configure()
        for _ in range(self.chance.randint(0, 8)):
            self.decide()

    def _sender(self, number: int) -> None:
        us, peer = key(SOURCES[self.version]), key(self.one(HOSTS[self.version]))
        kind = ("opened", "accepted", "accepted", "datagrams", "datagrams", "raw", "raw", "nobody", "opened")[number]
        transport = {"opened": TCP, "accepted": TCP, "datagrams": UDP}.get(kind, 0)
        accepted = kind == "accepted"
        sport = self.one(OURS) if accepted or kind == "datagrams" else 40_000 + number
        port = self.one(PORTS)
        stored = kind not in ("raw", "nobody") and self.odds(8)
        cookie = (1 << 40) + number % 8 + number // 8 * HELLOS_KEPT
        socket = Socket(
            0 if kind == "nobody" else cookie, self.identity(), stored=stored,
            connections=0 if accepted else 1, start=1000 if kind == "opened" and stored else 0,
        )  # fmt: skip
        socket.judged = socket.start
        if accepted and socket.stored:
            socket.flags, socket.identity = int(FlowFlag.INBOUND), NOBODY
            socket.peer, socket.peer_port = peer, port
        elif kind == "opened" and socket.stored and self.odds(7):
            socket.flags = int(FlowFlag.STARTED)
        self.senders.append(Sender(socket, transport, Tuple(us, peer, sport, port, transport), accepted))

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
            0 if self.odds(1) else MINUTE, self.one((0, MARK)), self.one((0, 0, 0, 1)),
        )  # fmt: skip
        for gate in self.gates:
            gate.set_config(config)

    def decide(self) -> None:
        """A verdict on one flow, or on an address, or a note that a datagram was released."""
        sender = self.one(self.senders)
        flow, what = self._tuple_out(sender), self.chance.randrange(10)
        for_flow, entry = self._flow_key(sender, flow), self.entry((*VERDICTS, KernelVerdict.IGNORE))
        if flow.transport == TCP:
            entry = entry._replace(judged=self.one((None, self.end_of_hello(sender.socket))))
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

    def read(self) -> None:
        """The verdict on a socket that was opened from here was read from what its stream carried."""
        socket, _, flow, _ = self.one((self.senders[0], self.senders[8]))
        if socket.stored:
            self.have_read(socket, 90)
            socket.peer, socket.peer_port, socket.local_port = flow.dst, flow.dport, flow.sport

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
            self.one((0, 1000, 1000, 1100)),
        )  # fmt: skip
        # An answer that nobody asked for is a flow from outside too, by a key of its own.
        return state, coming._replace(dport=IcmpKind.ANSWER_IN) if icmp and self.odds(5) else coming

    def _destination(self, flow: Tuple) -> tuple[DestinationKey, VerdictEntry]:
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
            socket.peer_port = 0
            socket.judged = socket.start

    # ---- packets

    def _tuple_out(self, sender: Sender) -> Tuple:
        """What this sender's next packet may have. Often one that there was, so that flows have a history."""
        if sender.transport == TCP:
            return sender.flow
        peer = key(HOSTS[self.version][self.one((0, 0, 0, 1))])
        if sender.transport == UDP:
            return sender.flow._replace(dst=peer, dport=self.one((*PORTS, PORTS[0])))
        transport = self.one((ICMP[self.version],) * 3 + (UDP, TCP))
        if transport == ICMP[self.version]:
            return Tuple(sender.flow.src, peer, 0, 0, transport)
        if self.odds(5):
            # As a raw socket can: in the place of another one.
            another = self.one(self.senders[:5])
            return another.flow
        return Tuple(sender.flow.src, peer, self.one(OURS), self.one(PORTS), transport)

    def sends(self) -> Sender:
        """Whose packet is the next to leave."""
        return self.one(self.senders)

    def out(self) -> tuple[Sender, bytes, Way]:
        sender = self.sends()
        flow = self._tuple_out(sender)
        if sender.transport == TCP and self.odds(1):
            # As a routing header or a rewriting in a container makes it.
            flow = flow._replace(dst=key(self.one(HOSTS[self.version])), dport=self.one(PORTS))
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

    def coming(self) -> tuple[bytes, tuple[int, bool], int]:
        """A frame that comes in, what the socket table says of it (the socket's state, and whether its connection was
        opened from outside), and its mark."""
        sender = self.one(self.senders)
        flow = self._tuple_out(sender).reversed()
        inside = self._coming(flow) if flow.transport == TCP else self._datagram(flow)
        self.inside = False
        return self._frame(flow, inside), self.one(TABLE), self.one((0, 0, 0, 0, 0, 0, 0, MARK))

    def _coming(self, flow: Tuple) -> bytes:
        if self.odds(4):
            flags, payload, seq = SYN, self.one((b"", b"", HELLOS[0])), self.one((999, 999, 5))
        else:
            flags = self.one((ACK, ACK | PSH, ACK | PSH, ACK | FIN, RST, SYN | ACK, ACK | URG))
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
