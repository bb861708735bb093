"""Policies that follow each other and an engine that answers by the one in force: for test_oracle_invariants.py.

A policy is a table with a verdict for every flow, and can be asked about any packet at any time: the reference by brute
force.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

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
    StageNumber,
    StrategyKind,
)
from engine.abi.records import (
    Config,
    ConnectKey,
    DestinationKey,
    FlowKey,
    Held,
    InboundFlow,
    Plan,
    StrategyKey,
    Tuple,
    VerdictEntry,
)
from engine.ports import Gate
from engine.protocols.packet import SYN, TCP
from tests.kernel.lab import key
from tests.kernel.traffic import MARK, Sender, Traffic
from tests.kernel.worlds import HOSTS, LATER, MINUTE, PORTS
from tests.support import headers
from tests.support.headers import Headers

T = TypeVar("T")
ALLOW, DENY, REJECT, UNDECIDED, BY_EXE = (
    KernelVerdict.ALLOW, KernelVerdict.DENY, KernelVerdict.REJECT, KernelVerdict.UNDECIDED, KernelVerdict.NONE,
)  # fmt: skip
OPEN, REFUSED = (ALLOW, UNDECIDED), (DENY, REJECT)
EXES = (0, 7, 8)
SHAPES = (Shape.DEST | Shape.EXE, Shape.DEST, Shape.DEST | Shape.INBOUND)


class Law:
    """One policy: a verdict for every flow, drawn from its number."""

    def __init__(self, seed: int, number: int) -> None:
        self._seed = seed, number
        self.judges_inbound = self._draw("inbound", (True,) * 6 + (False,))

    def _draw(self, what: object, among: Sequence[T]) -> T:
        return random.Random(repr((self._seed, what))).choice(among)

    def out(self, flow: Tuple, exe: int, *, payload: bool) -> KernelVerdict:
        """Of what leaves. Of TCP, some is undecided until there is payload."""
        where = flow.transport, flow.dst, flow.dport
        undecided = (UNDECIDED,) * 5 if flow.transport == TCP else ()
        verdict = self._draw(("out", where), (ALLOW, DENY, DENY, REJECT, BY_EXE, *undecided))
        if verdict is BY_EXE:
            return self._draw(("exe", where, exe), (ALLOW, DENY))
        return self._draw(("name", where), (ALLOW, ALLOW, DENY)) if verdict is UNDECIDED and payload else verdict

    def into(self, coming: Tuple, *, payload: bool) -> KernelVerdict:
        """Of what comes in: by the port of this host."""
        where = coming.transport, coming.dport
        undecided = (UNDECIDED,) if coming.transport == TCP else ()
        verdict = self._draw(("in", where), (ALLOW, ALLOW, DENY, REJECT, *undecided))
        return self._draw(("client", where), (ALLOW, DENY)) if verdict is UNDECIDED and payload else verdict


class Read(NamedTuple):
    """A stream that was judged by what it carried: its first sequence number, and the one behind what was read."""

    first: int
    judged: int
    generation: int


class Waiting(NamedTuple):
    """A held packet. `came_in`: by gate_ingress."""

    read: Headers
    note: Held
    came_in: bool


@dataclass
class Reign(Traffic):
    """Laws, a person's words that hold through all of them, and the engine. One gate: the kernel's."""

    seed: int = 0
    strategy: KernelVerdict = KernelVerdict.NONE
    """Of everything in the control group 5."""
    spared: frozenset[bytes] = frozenset()
    """Peers that are never denied."""
    said: dict[bytes, KernelVerdict] = field(default_factory=dict)
    """A person's word on what leaves for a peer."""
    waiting: list[Waiting] = field(default_factory=list)
    reads: dict[tuple[Tuple, int, int], Read] = field(default_factory=dict)
    """By stream_of(): what the engine's verdict on a stream was read from."""

    @property
    def gate(self) -> Gate:
        return self.gates[0]

    def begin(self) -> None:
        super().begin()
        peers = [key(each) for each in HOSTS[self.version]]
        self.spared = frozenset(self.some(peers, 1) if self.odds(2) else ())
        self.said = {peer: self.one((ALLOW, DENY)) for peer in (self.some(peers, 1) if self.odds(2) else ())}
        self.strategy = self.one((KernelVerdict.NONE,) * 8 + (KernelVerdict.OBSERVE, KernelVerdict.IGNORE))
        for peer in self.spared:
            self.gate.put_destination(DestinationKey(DestinationClass.NEVER_DENY, 0, 0, peer, 128), self.stands(ALLOW))
        for peer, verdict in self.said.items():
            self.gate.put_destination(DestinationKey(DestinationClass.SET, 0, 0, peer, 128), self.stands(verdict))
        if self.strategy:
            self.gate.put_strategy(StrategyKey(StrategyKind.CGROUP, 5), self.stands(self.strategy))

    def decide(self) -> None:
        """Nothing is written but what the engine answers."""

    def stands(self, verdict: KernelVerdict) -> VerdictEntry:
        self.entries += 1
        return VerdictEntry(verdict, self.entries, self.one((0, 0, LATER)))

    def flip(self) -> None:
        self.generation += 1
        self.law = Law(self.seed, self.generation)
        self.gate.set_plan(Plan(self.generation, SHAPES, (), inbound=self.law.judges_inbound))
        self.gate.set_generation(self.generation)

    def configure(self) -> None:
        self.config = Config(
            self.one((Mode.ENFORCE,) * 14 + (Mode.OBSERVE, Mode.PANIC)), self.hold_ifindex,
            Present.NEVER_DENY | Present.SET_DEST | Present.STRATEGY_ID | Present.INBOUND | Present.INSIDE,
            sum(bit for bit in tuple(PostureBit)[:6] if self.odds(2)), 0 if self.odds(1) else 1 << 20,
            0 if self.odds(1) else MINUTE, self.one((0, MARK)),
        )  # fmt: skip
        self.gate.set_config(self.config)

    def reopen(self) -> None:
        """A socket connects again, to somebody else: the connect hook starts its storage anew."""
        at = self.chance.randrange(3)
        socket, _, flow, _ = self.senders[at]
        socket.verdict = socket.generation = socket.verdict_id = socket.expires = socket.flags = 0
        socket.connections += 1
        socket.peer_port = 0
        socket.judged = socket.start
        flow = flow._replace(dst=key(self.one(HOSTS[self.version])), dport=self.one(PORTS))
        self.senders[at] = Sender(socket, TCP, flow)

    def sends(self) -> Sender:
        """Often one of the two that open connections here: their streams have to be read first, and then go on."""
        return self.one((self.senders[0], self.senders[8])) if self.odds(5) else super().sends()

    # ---- the policy

    def verdict(self, flow: Tuple, exe: int, *, payload: bool) -> KernelVerdict:
        """On what leaves: a person's word, else the law."""
        return self.said.get(flow.dst) or self.law.out(flow, exe, payload=payload)

    # ---- the engine

    def answer(self) -> Tuple | None:
        """Judge one held packet by the law in force. Return the tuple of the answers to a datagram that left by it."""
        if not self.waiting:
            return None
        held = self.waiting.pop(-1 if self.odds(5) else self.chance.randrange(len(self.waiting)))
        payload = bool(held.read.payload) or held.note.stage == StageNumber.PAYLOAD
        if held.note.flags & FlowFlag.INBOUND:
            self._answer_inbound(held, payload=payload)
            return None
        flow, note = held.read.flow, held.note
        if note.stage == StageNumber.AGAIN and note.generation == self.generation:
            return None  # the same bytes: no verdict is written
        if self._waits_for_more(held):
            return None
        exe = note.identity.exe
        entry = self.stands(self.verdict(flow, exe, payload=payload))
        if flow.transport == TCP and entry.verdict == ALLOW:
            entry = entry._replace(judged=self._read(held))
        self.gate.put_flow(FlowKey(flow, self.generation, note.part, note.cookie), entry)
        early = self.law.out(flow, exe, payload=False)
        if flow.dst not in self.said and self.odds(5):
            same = len({self.law.out(flow, each, payload=False) for each in EXES}) == 1
            if same or exe:
                shape = Shape.DEST if same else Shape.DEST | Shape.EXE
                at = ConnectKey(
                    self.generation, shape, flow.transport, flow.dport, flow.dst, 0, 0 if same else exe, 0
                )  # fmt: skip
                self.gate.put_connect(at, self.stands(early))
        leaves = entry.verdict == ALLOW and not note.flags & FlowFlag.CLONED and flow.transport != TCP
        answers = answers_to(held.read) if leaves and self.law.judges_inbound else None
        if answers is not None:
            self.gate.put_inbound(answers, InboundFlow(KernelVerdict.NONE, OpenedBy.HERE, expires=LATER))
        return answers

    @staticmethod
    def _waits_for_more(held: Waiting) -> bool:
        """Does this payload lie far from the start of its stream? Nothing is read of it before what precedes it."""
        note, read = held.note, held.read
        if not note.flags & FlowFlag.STARTED or note.flags & FlowFlag.PAYLOAD_PASSED or not read.payload:
            return False
        return read.flow.transport == TCP and (read.seq + bool(read.flags & SYN) - note.start) & 0xFFFFFFFF > 1 << 16

    def _read(self, held: Waiting) -> int | None:
        """Note how far the stream has been read that is allowed now, and return it; None: it was not."""
        note, read = held.note, held.read
        stream, first = stream_of(read.flow, note.cookie, note.part), (read.seq + bool(read.flags & SYN)) & 0xFFFFFFFF
        known = self.reads.get(stream)
        if note.judged != note.start:
            known = Read(note.start, note.judged, self.generation)
        elif note.flags & FlowFlag.PAYLOAD_PASSED or (known and known.generation != self.generation):
            known = None
        if known is None and read.payload and not note.flags & FlowFlag.PAYLOAD_PASSED:
            started = note.flags & FlowFlag.STARTED
            known = Read(note.start if started else first, (first + len(read.payload)) & 0xFFFFFFFF, self.generation)
        self.reads.pop(stream, None)
        if known is None:
            return None
        self.reads[stream] = known
        return known.judged

    def _answer_inbound(self, held: Waiting, *, payload: bool) -> None:
        if not self.law.judges_inbound:
            return
        coming = held.read.flow if held.came_in else held.read.flow.reversed()
        entry = self.stands(self.law.into(coming, payload=payload))
        passed = FlowFlag.PAYLOAD_PASSED if entry.verdict == ALLOW else FlowFlag(0)
        self.gate.put_inbound(
            coming,
            InboundFlow(
                entry.verdict, OpenedBy.OUTSIDE, self.generation, entry.id, held.note.start, int(passed), entry.expires,
                judged=held.note.start,
            ),
        )  # fmt: skip
        if self.odds(5):
            shape = Shape.DEST | Shape.INBOUND
            at = ConnectKey(self.generation, shape, coming.transport, coming.dport, coming.dst)
            self.gate.put_connect(at, self.stands(self.law.into(coming, payload=False)))


def stream_of(flow: Tuple, cookie: int, part: int) -> tuple[Tuple, int, int]:
    """The key in `reads`: of a socket's own connection by its peer, whatever address a packet gives as its source."""
    return flow._replace(src=bytes(16)) if part else flow, cookie, part


def answers_to(read: Headers) -> Tuple | None:
    """The key in inbound_flows of the answers to a datagram that left; None where there are none."""
    flow = read.flow.reversed()
    if flow.transport not in headers.REQUESTS:
        return flow
    return flow._replace(dport=IcmpKind.ANSWER_IN) if headers.is_icmp(read, headers.REQUESTS) else None
