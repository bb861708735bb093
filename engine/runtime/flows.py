"""The flows that the engine knows: what was decided for each, and what is still waiting.

A flow is known by its tuple and its socket's cookie. The table is bounded; a flow that was forgotten is judged anew
when the gate asks again.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.abi.numbers import FlowFlag
from engine.abi.records import Held, Identity, Tuple
from engine.model.decision import Decision, Stage
from engine.model.facts import PAYLOAD_FACTS, Facts, Hello, Http, Name
from engine.protocols import packet as packets
from engine.protocols.http import HttpAssembler
from engine.protocols.packet import Packet
from engine.protocols.quic import InitialAssembler
from engine.protocols.records import HelloAssembler
from engine.protocols.stream import StreamAssembler
from engine.protocols.tls import HelloReading

FlowId = tuple[Tuple, int]
Names = tuple[str, ...]


class Frame(NamedTuple):
    """A held frame with its virtio-net header, and the way that it goes on: out of the interface `ifindex`, or by it
    into the stack."""

    data: bytes
    ifindex: int
    hook: int


NO_HELLO = Hello()
_INBOUND, _NO_STORAGE = int(FlowFlag.INBOUND), int(FlowFlag.NO_STORAGE)
JUDGED_MOST, _SEEN_LAST = 1 << 20, 1 << 30
"""As in bpf/gate.c: no more of a stream is read than that; so far beyond, it has been acknowledged long since."""


@dataclass(slots=True)
class Waiting:
    """Held frames of one flow, oldest first, and the reading of its first payload so far."""

    frames: list[Frame] = field(default_factory=list)
    bytes: int = 0
    since: int = 0
    """When the oldest was held, CLOCK_MONOTONIC ns."""
    stream: StreamAssembler | None = None
    hello: HelloAssembler | None = None
    quic: InitialAssembler | None = None
    http: HttpAssembler | None = None
    timer: asyncio.TimerHandle | None = None
    judging: Stage | None = None
    """A decision is on its way; frames only queue."""
    read: int = 0
    """How many of the frames were there when that was asked for."""
    contradiction: str = ""
    """What is wrong with a segment that brought again what the flow had been judged by."""


IDLE = Waiting()
"""Of every flow that has nothing waiting: tens of thousands of them share it, and nothing is ever put into it."""


@dataclass(slots=True)
class Flow:
    """One flow. `exe` 0 while unknown; `name` and `hello` are what its first payload said, once it said it."""

    tuple: Tuple
    held: Held
    exe: int = 0
    name: Name | None = None
    hello: Hello = field(default_factory=lambda: NO_HELLO)
    http: Http | None = None
    reading: HelloReading | None = None
    """What `hello` is still to be made of: its fingerprint costs more than the name, and few rules ask for it."""
    facts: Facts | None = None
    decision: Decision | None = None
    generation: int = 0
    stage: Stage = Stage.CONNECT
    verdict_id: int = 0
    by_person: bool = False
    """A person's word passed it, not the policy: a reload does not ask again."""
    start: int | None = None
    """Sequence number of the first byte of its stream, where its SYN was held."""
    judged: int | None = None
    """Sequence number behind what was read of its stream, and so of what must not come again as something else."""
    abandoned: bool = False
    """Another connection has its tuple and socket: the answer that is on its way is nobody's."""
    passed: bool = False
    """Payload may have left: what comes now is not the start of its stream."""
    began: Names = ()
    """The names that its address had when it was first judged by them."""
    waiting: Waiting = field(default_factory=lambda: IDLE)

    def read_hello(self) -> Hello:
        """Return the fact `hello`, made now if it was not yet."""
        if self.reading is not None:
            self.hello = self.reading.hello() if self.reading.whole else self.hello
            self.reading = None
        return self.hello

    @property
    def inbound(self) -> bool:
        """Was it opened from outside? Then `tuple` is that of the packets that come in."""
        return bool(self.held.flags & _INBOUND)

    @property
    def id(self) -> FlowId:
        return self.tuple, self.held.cookie

    @property
    def by_payload(self) -> bool:
        """Was it decided by what it carried?"""
        return self.decision is not None and bool(self.decision.scope & PAYLOAD_FACTS)

    def comes_instead(self, packet: Packet) -> bool:
        """Does this segment of a stream from outside bring again what was read of it? The stack may have thrown the
        first version away (a wrong checksum, an old timestamp), and would take another one in its place."""
        if not self.inbound or self.judged is None or not self.by_payload or packet.flags & packets.SYN:
            return False
        return packet.payload_end > packet.payload_offset and (packet.seq - self.judged) & 0xFFFFFFFF >= 1 << 31

    def comes_again(self, packet: Packet) -> bool:
        """Does this segment of a stream from here bring again what was read of it? TCP does that when a packet was
        lost; and one packet can be lost on purpose."""
        if self.inbound or self.judged is None or packet.payload_end == packet.payload_offset:
            return False
        return 0 < self._before_judged(packet) <= JUDGED_MOST

    def progressed(self, packet: Packet) -> None:
        """Forget what was read once the stream is so far beyond it that its numbers may come round."""
        if self.judged is not None and JUDGED_MOST < self._before_judged(packet) <= 0x100000000 - _SEEN_LAST:
            self.judged = None

    def _before_judged(self, packet: Packet) -> int:
        return ((self.judged or 0) - first_byte(packet)) & 0xFFFFFFFF

    def _begins_with(self, syn: Packet) -> bool:
        """Is this its SYN, sent again? The same number proves nothing where what a stream carried has decided."""
        return self.start == first_byte(syn) and not (self.by_payload and self.stage is Stage.PAYLOAD)

    def is_another(self, held: Held, packet: Packet) -> bool:
        """Is what was held now not of this flow, which is known by its tuple and socket? A TCP socket may connect anew
        from the same port (connect() with AF_UNSPEC ends the connection before), and a UDP socket may be shared by
        several programs."""
        if packet.protocol != packets.TCP:
            return _program(self.held.identity) != _program(held.identity)
        if packet.flags & packets.SYN and not packet.flags & packets.ACK and not self._begins_with(packet):
            return True
        return not held.flags & _NO_STORAGE and self.held.part != held.part


def first_byte(segment: Packet) -> int:
    """Return the sequence number of the first byte that a segment carries: a SYN takes one of its own before the stream
    that it begins (RFC 9293 section 3.4)."""
    return (segment.seq + bool(segment.flags & packets.SYN)) & 0xFFFFFFFF


def _program(identity: Identity) -> Identity:
    """Who it is, whichever thread asked and whether or not the executable has been looked up yet."""
    return identity._replace(tid=0, exe=0)


class FlowTable:
    """Flows, the least recently touched forgotten first. A flow with held frames is never forgotten."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._flows: OrderedDict[FlowId, Flow] = OrderedDict()
        self._by_cookie: dict[int, FlowId] = {}

    def __len__(self) -> int:
        return len(self._flows)

    def __iter__(self) -> Iterator[Flow]:
        return iter(list(self._flows.values()))

    def get(self, identity: FlowId) -> Flow | None:
        flow = self._flows.get(identity)
        if flow is not None:
            self._flows.move_to_end(identity)
        return flow

    def by_cookie(self, cookie: int) -> Flow | None:
        identity = self._by_cookie.get(cookie)
        return None if identity is None else self._flows.get(identity)

    def add(self, flow: Flow) -> None:
        self._flows[flow.id] = flow
        if flow.held.cookie:
            self._by_cookie[flow.held.cookie] = flow.id
        if len(self._flows) > self._capacity:
            for candidate in self._flows.values():
                if not candidate.waiting.frames:
                    self.forget(candidate)
                    break

    def forget(self, flow: Flow) -> None:
        self._flows.pop(flow.id, None)
        if self._by_cookie.get(flow.held.cookie) == flow.id:
            del self._by_cookie[flow.held.cookie]
