"""The whole of gate_egress in plain Python: Egress (the precedence) with what stands around it in the program.

Headers, modes, the posture, the hold queue, the heartbeat, flows that were opened from outside, what passes through,
and the counter of each packet. tests/kernel/test_oracle.py and test_oracle_shared.py hold it to the program itself, so
that what is proved with Egress is true of the kernel too.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from engine.abi.numbers import (
    Counter,
    FlowFlag,
    Hook,
    IcmpKind,
    InterfaceKind,
    KernelVerdict,
    Mode,
    OpenedBy,
    Origin,
    PostureBit,
    Present,
    StageNumber,
)
from engine.abi.records import Held, InboundFlow, Tuple, VerdictEntry
from engine.model import net
from engine.protocols import packet as packets
from tests.support import captures, headers
from tests.support.egress import NOBODY, SEEN_LAST, Egress, Judged, Outcome, Socket, _Run
from tests.support.headers import Headers, Status
from tests.support.simulator import SimulatedGate

ANSWER_NS = 180 * 10**9
"""How long what comes in is taken for the answer to a datagram (docs/adr/0014)."""
_MAPPED = bytes(10) + b"\xff\xff"
_REFUSED = (KernelVerdict.DENY, KernelVerdict.REJECT)
_PASSING = (KernelVerdict.ALLOW, KernelVerdict.IGNORE)
_APPLIED = {
    Origin.FLOW: (Counter.HIT_FLOW, Counter.DROPPED_FLOW),
    Origin.DEST: (Counter.HIT_DEST, Counter.DROPPED_DEST),
    Origin.NAME: (Counter.HIT_NAME, Counter.DROPPED_NAME),
}
"""Origin -> what is counted when it is met, and when it drops; any other origin is a person's word."""


class Way(NamedTuple):
    """How a packet came to the gate: by which interface (0: it was sent here), and with which mark."""

    came_by: int = 0
    mark: int = 0


SENT_HERE = Way()


@dataclass
class Oracle(Egress):
    """Counts into `gate.counted`. `beaten` of the gate is the heartbeat; `interfaces` are the kinds by number."""

    interfaces: dict[int, int] = field(default_factory=dict)

    def packet(self, socket: Socket, frame: bytes, way: Way = SENT_HERE) -> Judged:
        """A packet without a socket has one with the cookie 0, as for the kernel."""
        config = self.gate.config()
        observe, forwarded = config.mode == Mode.OBSERVE, False
        if config.mode == Mode.PANIC:
            return self._counted(Outcome.PASS, Counter.PASSED_PANIC)
        if way.mark and way.mark == config.release_mark and way.came_by == self.ifindex:
            return self._counted(Outcome.PASS, Counter.PASSED_RELEASED)
        if not socket.cookie and way.came_by not in (0, self.ifindex):
            passing = self._passing_through(way.came_by)
            forwarded = passing is not None and passing.outcome is Outcome.PASS
            if passing is not None and not (forwarded and config.present & Present.INBOUND):
                return passing
        plain = is_plain(socket, frame)
        if plain:
            if (decided := self._decided(socket)) is not None:
                return decided
            observe = observe or bool(socket.flags & FlowFlag.OBSERVE)
        kind = self.interfaces.get(self.ifindex, InterfaceKind.ETHERNET)
        self.inside = bool(kind & InterfaceKind.INSIDE)
        read = headers.read(frame, 14 if kind & InterfaceKind.ETHERNET else 0)
        if read.status is not Status.OK:
            judged = self._unread(read.status, socket, observe)
        elif forwarded:
            judged = Judged(Outcome.PASS)  # only its answer is to be expected
        else:
            first = again = False
            if socket.stored and read.flow.transport == packets.TCP and not plain:
                if first := not _is_of(socket, read.flow):
                    socket = self._meet(socket, read)
                else:
                    decided = self._decided(socket)
                    again = self._again(socket, read.seq, read.flags, len(read.payload))
                    if decided is not None and not (again and socket.verdict in _PASSING):
                        return decided
                    observe = observe or bool(socket.flags & FlowFlag.OBSERVE)
            if _opens(read) and socket.stored:
                self._begin(socket, read.seq)
            if (answer := self._answer(socket, read, observe)) is not None:
                return answer
            judged = self._sent_by(socket, read, observe=observe, first=first, again=again)
        if judged.outcome is Outcome.PASS:
            self._expect_answer(read)
        return judged

    @staticmethod
    def _meet(socket: Socket, read: Headers) -> Socket:
        """A TCP packet of a socket whose storage is about another flow, or about none yet: the first one of a
        connection says whom it is about. Any other has no storage."""
        if socket.peer_port and not _opens(read):
            return Socket(socket.cookie, NOBODY, stored=False)
        socket.peer, socket.peer_port, socket.local_port = read.flow.dst, read.flow.dport, read.flow.sport
        socket.verdict = socket.generation = 0
        socket.judged = socket.start
        if _opens(read):
            socket.flags &= ~FlowFlag.INBOUND
        return socket

    def _passing_through(self, came_by: int) -> Judged | None:
        """A packet of nobody here, from another interface: an inside one has judged it already; one that nobody knows
        follows the posture, once there are inside ones."""
        config, kind = self.gate.config(), self.interfaces.get(came_by)
        if kind is not None:
            return self._counted(Outcome.PASS, Counter.PASSED_FORWARDED) if kind & InterfaceKind.INSIDE else None
        closed = config.present & Present.INSIDE and not config.open & PostureBit.UNKNOWN_INTERFACE
        if config.mode == Mode.ENFORCE and closed:
            return self._counted(Outcome.DROP, Counter.DROPPED_INTERFACE)
        return None

    def _unread(self, status: Status, socket: Socket, observe: bool) -> Judged:
        """No packet that a policy could be asked about."""
        if status is Status.NOT_IP:
            return self._counted(Outcome.PASS, Counter.PASSED_NOT_IP)
        if status is Status.LINK_CONTROL:
            return self._counted(Outcome.PASS, Counter.PASSED_LINK_CONTROL)
        if status is Status.MALFORMED:
            return self._posture(PostureBit.MALFORMED, Counter.DROPPED_MALFORMED, socket, observe, 0)
        if observe or self.gate.config().open & PostureBit.FRAGMENT:
            return self._counted(Outcome.PASS, Counter.PASSED_FRAGMENT)
        return self._counted(Outcome.DROP, Counter.DROPPED_FRAGMENT)

    def _sent_by(self, socket: Socket, read: Headers, *, observe: bool, first: bool, again: bool) -> Judged:
        """What leaves in a flow of its own."""
        if self._has_nothing_to_wait_for(socket, read):
            return Judged(Outcome.PASS)
        if _is_bare(socket, read) and read.flags & packets.URG:
            # The server leaves an urgent byte out of what it reads, told of it ahead or beside it.
            return self._posture(PostureBit.MALFORMED, Counter.DROPPED_MALFORMED, socket, observe, 0)
        judged = super().packet(socket, plain(read), observed=observe, first=first, again=again)
        if judged.origin is Origin.NEVER_DENY:
            self.gate.counted[Counter.PASSED_NEVER_DENY] += 1
        elif _is_bare(socket, read):
            self.gate.counted[Counter.PASSED_INBOUND] += 1
        return judged

    # ---- flows that were opened from outside

    def _answer(self, socket: Socket, read: Headers, observe: bool) -> Judged | None:
        """What leaves in a flow that was opened from outside goes with the verdict on what comes in: of an accepted
        socket, or of any other that does not own the flow, by the tuple. None: it is no such flow.

        Of ICMP, answers alone belong to what came in: a question of this host's is its own flow.
        """
        present, generation = Present(self.gate.config().present), self.gate.generation()
        tcp = read.flow.transport == packets.TCP
        accepted = tcp and _is_accepted(socket)
        if tcp and not read.payload and (read.flags & packets.RST or _is_bare(socket, read)):
            return None  # carries nothing
        if accepted and self.inside:
            return Judged(Outcome.PASS)  # its other end was judged where it came in
        if Present.INBOUND not in present or (tcp and socket.stored and not accepted):
            return None
        icmp = read.flow.transport in headers.ANSWERS
        known = None
        if not icmp or headers.is_icmp(read, headers.ANSWERS):
            known = self.gate.inbounds.get(read.flow.reversed())
        if known is not None and not tcp and known.verdict in _REFUSED:
            known = None  # a datagram that was refused began nothing
        if not accepted and (known is None or known.opened_by != OpenedBy.OUTSIDE):
            return None
        plan = self.gate.plan(generation)
        if plan.generation == generation and not plan.inbound:
            return Judged(Outcome.PASS) if accepted else None
        if known is None or known.generation != generation or not self._unexpired(known.expires):
            return self._hold_answer(socket, read, observe, 0 if known is None else known.verdict_id)
        if known.verdict in _PASSING and tcp and socket.stored:
            # One peer is all that it has.
            socket.verdict, socket.generation, socket.expires = KernelVerdict.ALLOW, generation, known.expires
            socket.orders = self.gate.config().orders
        if known.verdict in (*_PASSING, KernelVerdict.UNDECIDED):
            return Judged(Outcome.PASS)  # undecided: a server may speak first
        if observe:
            return self._counted(Outcome.PASS, Counter.WOULD_DROP)
        return self._counted(Outcome.DROP, Counter.DROPPED_INBOUND)

    def _hold_answer(self, socket: Socket, read: Headers, observe: bool, before: int) -> Judged:
        """The flow is asked about as one that comes in, whoever sends."""
        if (why_not := self._cannot_hold(read.flow, socket.cookie, 0)) is not None:
            tcp = read.flow.transport == packets.TCP
            return self._posture(*why_not, socket, observe, len(read.payload) if tcp else 0)
        self.gate.counted[Counter.HELD_LATE] += 1
        flags = FlowFlag.INBOUND | FlowFlag.NO_STORAGE | FlowFlag.PAYLOAD_PASSED
        if observe:
            flags |= FlowFlag.CLONED | FlowFlag.OBSERVE
        note = Held(
            NOBODY, socket.cookie, self.gate.clock(), self.ifindex, self.gate.generation(), before, 0, 0,
            StageNumber.PAYLOAD, int(flags), Hook.INGRESS if self.inside else Hook.EGRESS, 1, 0,
            self.gate.redirected,
        )  # fmt: skip
        self.gate.notes.put(read.flow, note)
        self.gate.redirected += 1
        return Judged(Outcome.PASS if observe else Outcome.HOLD)

    def _expect_answer(self, read: Headers) -> None:
        """A datagram has left: for a while what comes back is its answer. Of ICMP, an answer to what asks."""
        flow = read.flow.reversed()
        tcp = read.status is Status.OK and flow.transport == packets.TCP
        if tcp or not flow.transport or not self.gate.config().present & Present.INBOUND:
            return
        icmp = flow.transport in headers.REQUESTS
        if icmp and not headers.is_icmp(read, headers.REQUESTS):
            return
        key = flow._replace(dport=IcmpKind.ANSWER_IN) if icmp else flow
        known, until = self.gate.inbounds.get(key), self.gate.clock() + ANSWER_NS
        if known is None or (known.opened_by == OpenedBy.OUTSIDE and (icmp or known.verdict in _REFUSED)):
            known = InboundFlow(KernelVerdict.NONE, OpenedBy.HERE)
        if known.opened_by == OpenedBy.HERE:
            self.gate.inbounds.put(key, known._replace(expires=until))

    # ---- what stands around the precedence

    def _counted(self, outcome: Outcome, counter: Counter) -> Judged:
        self.gate.counted[counter] += 1
        return Judged(outcome)

    def _decided(self, socket: Socket) -> Judged | None:
        """What socket storage says of its own flow before anything else is looked up."""
        if _is_accepted(socket) and not self.gate.config().present & Present.INBOUND:
            return Judged(Outcome.PASS)
        # A person may have said something since: that comes first.
        return self._by_socket(socket) if socket.orders == self.gate.config().orders else None

    def _by_socket(self, socket: Socket) -> Judged | None:
        if _is_accepted(socket) and not self.gate.config().present & Present.INBOUND:
            return Judged(Outcome.PASS)
        judged = super()._by_socket(socket)
        if judged is not None and socket.verdict not in _PASSING:
            passes = judged.outcome is Outcome.PASS
            self.gate.counted[Counter.WOULD_DROP if passes else Counter.DROPPED_FLOW] += 1
        return judged

    def _has_nothing_to_wait_for(self, socket: Socket, read: Headers) -> bool:
        """Undecided in this very generation, and no payload: passes before anything else is looked up."""
        undecided = socket.orders == self.gate.config().orders and self._is_undecided(socket)
        if not undecided or read.flow.transport != packets.TCP or read.payload or read.flags & packets.RST:
            return False
        return not socket.flags & FlowFlag.PAYLOAD_PASSED

    def _posture(self, condition: PostureBit, why: Counter, socket: Socket, observe: bool, length: int) -> Judged:
        if not observe and not self.gate.config().open & condition:
            return self._counted(Outcome.DROP, why)
        if socket.stored and length:
            socket.flags |= FlowFlag.PAYLOAD_PASSED
        return self._counted(Outcome.PASS, Counter.PASSED_POSTURE)

    def _apply(self, run: _Run, entry: VerdictEntry, origin: Origin, name: bytes = b"") -> Judged:
        hit, dropped = _APPLIED.get(origin, (Counter.HIT_SET, Counter.DROPPED_SET))
        self.gate.counted[Counter.PASSED_IGNORED if entry.verdict == KernelVerdict.IGNORE else hit] += 1
        if entry.verdict not in _PASSING:
            self.gate.counted[Counter.WOULD_DROP if run.observe else dropped] += 1
        judged = super()._apply(run, entry, origin, name)
        if judged.outcome is not Outcome.DROP or entry.verdict != KernelVerdict.REJECT or self._queued(run):
            return judged
        # The engine tells the sender; the packet is refused already, so nothing waits behind it.
        self.gate.counted[Counter.HELD_REJECT] += 1
        return replace(judged, outcome=super()._hold(run, StageNumber.REJECT, 0).outcome)

    def _queued(self, run: _Run) -> tuple[PostureBit, Counter] | None:
        socket = run.socket
        return self._cannot_hold(run.flow, socket.cookie, socket.identity.tgid if socket.stored else 0)

    def _cannot_hold(self, flow: Tuple, cookie: int, tgid: int) -> tuple[PostureBit, Counter] | None:
        """The condition that keeps a packet from being held, and what counts it."""
        gate, config = self.gate, self.gate.config()
        redirected, taken = gate.hold_queue()
        if gate.clock() - gate.beaten > config.heartbeat_max:
            return PostureBit.ENGINE_ABSENT, Counter.DROPPED_ENGINE_ABSENT
        if redirected - taken >= config.hold_limit or is_another_s(gate, flow, cookie, tgid):
            return PostureBit.HOLD_FULL, Counter.DROPPED_HOLD_FULL
        return None

    def _hold(self, run: _Run, stage: StageNumber, length: int) -> Judged:
        if (why_not := self._queued(run)) is not None:
            return self._posture(*why_not, run.socket, run.observe, length if run.tcp else 0)
        self.gate.counted[self._why(run, stage)] += 1
        held = super()._hold(run, stage, length)
        # The packet's own fate: while observing, a copy is held.
        return Judged(Outcome.PASS) if run.observe else held

    def _why(self, run: _Run, stage: StageNumber) -> Counter:
        if self.gate.plan(run.generation).generation != run.generation and stage is StageNumber.CONNECT:
            return Counter.HELD_CONNECT
        if not run.tcp:
            return Counter.HELD_DATAGRAM
        if stage is StageNumber.AGAIN:
            return Counter.HELD_AGAIN
        if stage is StageNumber.CONNECT:
            return Counter.HELD_CONNECT
        late = run.socket.stored and run.socket.flags & FlowFlag.PAYLOAD_PASSED
        return Counter.HELD_LATE if late else Counter.HELD_PAYLOAD


def is_another_s(gate: SimulatedGate, flow: Tuple, cookie: int, tgid: int) -> bool:
    """Does a frame wait under this tuple that another socket or program sent? One note cannot speak of both."""
    waiting = gate.notes.get(flow)
    if waiting is None or waiting.number < gate.hold_queue()[1]:
        return False
    return (waiting.cookie, waiting.identity.tgid) != (cookie, tgid)


def is_plain(socket: Socket, frame: bytes) -> bool:
    """Is this Ethernet frame, without any option of its network header, of the TCP flow that the storage is about, and
    behind what that was read from?"""
    if not socket.stored or not socket.peer_port or len(frame) < 14 + 20 + 8:
        return False
    kind, ip = frame[12:14], frame[14:]
    if kind == b"\x08\0":
        plain = ip[0] == 0x45 and ip[9] == packets.TCP and not int.from_bytes(ip[6:8], "big") & 0x3FFF
        to, at = _MAPPED + ip[16:20], 20
    elif kind == b"\x86\xdd" and len(ip) >= 48:
        plain, to, at = ip[0] >> 4 == 6 and ip[6] == packets.TCP, ip[24:40], 40
    else:
        return False
    sport, dport = (int.from_bytes(ip[each : each + 2], "big") for each in (at, at + 2))
    if socket.judged != socket.start:
        seq = int.from_bytes(ip[at + 4 : at + 8], "big")
        plain = plain and (seq - socket.judged) & 0xFFFFFFFF < SEEN_LAST
    return plain and _is_of(socket, Tuple(b"", to, sport, dport, packets.TCP))


def _is_of(socket: Socket, flow: Tuple) -> bool:
    return (socket.peer, socket.peer_port) == (flow.dst, flow.dport) and socket.local_port in (0, flow.sport)


def _is_accepted(socket: Socket) -> bool:
    return socket.stored and bool(socket.flags & FlowFlag.INBOUND)


def _opens(read: Headers) -> bool:
    syn = read.flow.transport == packets.TCP and read.flags & packets.SYN
    return bool(syn and not read.flags & packets.ACK)


def _is_bare(socket: Socket, read: Headers) -> bool:
    """A TCP segment without payload and without storage, that opens nothing and ends nothing."""
    tcp = read.flow.transport == packets.TCP
    return not socket.stored and tcp and not read.payload and not read.flags & packets.RST and not _opens(read)


def plain(read: Headers) -> bytes:
    """Return an Ethernet frame without tags, options and extension headers that says the same as what was read."""
    flow, inside = read.flow, read.payload
    if flow.transport == packets.TCP:
        inside = captures.tcp(flow.sport, flow.dport, read.payload, seq=read.seq, flags=read.flags)
    elif flow.transport == packets.UDP:
        inside = captures.udp(flow.sport, flow.dport, read.payload)
    if read.version == 4:
        return captures.ethernet(captures.ipv4(flow.transport, inside, src=_text(flow.src), dst=_text(flow.dst)))
    return captures.ethernet(captures.ipv6(flow.transport, inside, src=_text(flow.src, 6), dst=_text(flow.dst, 6)))


def _text(key: bytes, version: int = 4) -> str:
    return str(ipaddress.IPv6Address(key)) if version == 6 else str(net.from_key(key))
