"""gate_ingress in plain Python, over the simulated maps: what would the kernel do with this packet that comes in?

The order: is it judged at all, headers, never-deny by the peer's address, what is known of the flow, a person's word on
the destination, connect verdicts for what comes in, hold. Sockets are the kernel's to look up: of a segment in the
middle of an unknown stream the caller says what the socket table would.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.abi.numbers import (
    Counter,
    DestinationClass,
    EventType,
    FlowFlag,
    Hook,
    IcmpKind,
    KernelVerdict,
    Mode,
    OpenedBy,
    Origin,
    PostureBit,
    Present,
    Shape,
    StageNumber,
)
from engine.abi.records import DestinationKey, Held, InboundFlow, Tuple, VerdictEntry, VerdictEvent
from engine.protocols import packet as packets
from tests.support import headers
from tests.support.egress import NOBODY, Outcome, key_of, quic_long_header
from tests.support.headers import Headers, Status
from tests.support.oracle import ANSWER_NS, is_another_s
from tests.support.simulator import SimulatedGate

_PASSING = (KernelVerdict.ALLOW, KernelVerdict.IGNORE)
TIME_WAIT, LISTENS, SYN_RECEIVED = 6, 10, 12
"""States of a socket (net/tcp_states.h)."""
_APPLIED = {Origin.DEST: Counter.HIT_DEST}


@dataclass
class Ingress:
    """One guarded interface. Counts into `gate.counted`; `told` is what the ring would carry."""

    gate: SimulatedGate
    ifindex: int
    link: int = 14
    told: list[VerdictEvent] = field(default_factory=list)

    def packet(self, frame: bytes, *, found: int = 0, accepted: bool = False, mark: int = 0) -> Outcome:
        """`found`, `accepted`: the state of the socket that a TCP segment comes in for (0: there is none), and whether
        its connection was opened from outside."""
        gate, config = self.gate, self.gate.config()
        present, self._observe = Present(config.present), config.mode == Mode.OBSERVE
        if config.mode == Mode.PANIC:
            return Outcome.PASS
        if mark and mark == config.release_mark:
            return self._passed(Counter.PASSED_RELEASED)
        if Present.INBOUND not in present:
            return Outcome.PASS
        self._generation = gate.generation()
        plan = gate.plan(self._generation)
        planned = plan.generation == self._generation
        if planned and not plan.inbound:
            return Outcome.PASS
        read = headers.read(frame, self.link)
        if read.status in (Status.NOT_IP, Status.LINK_CONTROL):
            return Outcome.PASS
        if read.status is Status.FRAGMENT:
            return self._posture(PostureBit.FRAGMENT, Counter.DROPPED_FRAGMENT)
        if read.status is Status.MALFORMED:
            return self._posture(PostureBit.MALFORMED, Counter.DROPPED_MALFORMED)
        flow, tcp = read.flow, read.flow.transport == packets.TCP
        if Present.NEVER_DENY in present and self._destination(DestinationClass.NEVER_DENY, flow, flow.src):
            return self._passed(Counter.PASSED_NEVER_DENY)
        opening = tcp and bool(read.flags & packets.SYN) and not read.flags & packets.ACK
        if tcp and read.flags & packets.RST:
            return Outcome.PASS
        if headers.is_icmp(read, headers.ERRORS):
            return self._passed(Counter.PASSED_REPLY)
        key = _key(read)
        known = gate.inbounds.get(key)
        start = (read.seq + 1) & 0xFFFFFFFF if opening else 0
        again = found == SYN_RECEIVED and (known is None or known.start == start)
        if opening and found not in (0, LISTENS, TIME_WAIT) and not again:
            return self._passed(Counter.PASSED_REPLY)  # the connection is there already: the stack challenges it
        if opening and known is not None and (known.start != start or known.by_name):
            known = None
        if tcp and not opening and known is None and not (accepted or found in (LISTENS, SYN_RECEIVED)):
            return self._passed(Counter.PASSED_REPLY)
        urgent = tcp and not read.payload and read.flags & packets.URG
        if gate.config().open & PostureBit.MALFORMED:
            urgent = 0  # judged as any other
        if urgent and known is not None and known.verdict == KernelVerdict.UNDECIDED:
            return self._posture(PostureBit.MALFORMED, Counter.DROPPED_MALFORMED)  # which byte no server reads
        if not tcp and known is not None and known.opened_by == OpenedBy.HERE:
            if gate.clock() < known.expires:
                gate.inbounds.put(key, known._replace(expires=gate.clock() + ANSWER_NS))
                return self._passed(Counter.PASSED_REPLY)
            known = None
        started = tcp and (opening or known is not None)
        run = _Run(flow, key, tcp, start, read, FlowFlag.STARTED if started else FlowFlag(0))
        if known is not None:
            run.before, run.start = known.verdict_id, start if opening else known.start
            if known.generation == self._generation and self._unexpired(known.expires):
                return self._stands(run, known)
        if Present.SET_DEST in present and (entry := self._destination(DestinationClass.SET, flow, flow.dst)):
            return self._apply(run, entry, Origin.SET)
        if tcp and not opening and (known is None or known.verdict != KernelVerdict.UNDECIDED):
            run.flags |= FlowFlag.PAYLOAD_PASSED
        if not planned or (tcp and not opening):
            return self._hold(run, StageNumber.CONNECT)
        entry = None
        for shape in plan.connect_shapes:
            if entry is None and shape & Shape.INBOUND:
                key = key_of(shape & ~Shape.INBOUND, self._generation, None, flow)
                entry = gate.standing(gate.connects.get(key._replace(shape=shape))) if key is not None else None
        if entry is None:
            return self._hold(run, StageNumber.CONNECT)
        if entry.verdict != KernelVerdict.UNDECIDED:
            return self._apply(run, entry, Origin.DEST)
        if tcp:
            undecided = InboundFlow(
                KernelVerdict.UNDECIDED, OpenedBy.OUTSIDE, self._generation, 0, run.start, int(FlowFlag.STARTED),
                judged=run.start,
            )  # fmt: skip
            gate.inbounds.put(run.key, undecided)
            if not read.payload:
                return Outcome.PASS
        return self._hold(run, StageNumber.PAYLOAD)

    def _stands(self, run: _Run, known: InboundFlow) -> Outcome:
        if known.verdict in _PASSING:
            again = not run.tcp and known.by_name and quic_long_header(run.read.payload)
            if again:
                return self._hold(run, StageNumber.PAYLOAD)
            behind = run.tcp and run.read.payload and known.judged != known.start
            if not behind or (run.read.seq - known.judged) & 0xFFFFFFFF < 1 << 31:
                return Outcome.PASS
            # What decided the stream has been handed on: nothing else may take its place.
            return self._refused()
        if known.verdict == KernelVerdict.UNDECIDED:
            return Outcome.PASS if run.tcp and not run.read.payload else self._hold(run, StageNumber.PAYLOAD)
        return self._refused()

    def _refused(self) -> Outcome:
        if self._observe:
            return self._passed(Counter.WOULD_DROP)
        self.gate.counted[Counter.DROPPED_INBOUND] += 1
        return Outcome.DROP

    # ---- look-ups

    def _unexpired(self, expires: int) -> bool:
        return not expires or self.gate.clock() < expires

    def _destination(self, kind: DestinationClass, flow: Tuple, address: bytes) -> VerdictEntry | None:
        for transport, port in ((flow.transport, flow.dport), (flow.transport, 0), (0, 0)):
            found = self.gate.longest_destination(DestinationKey(kind, transport, port, address))
            if entry := self.gate.standing(found):
                return entry
        return None

    # ---- what becomes of it

    def _passed(self, counter: Counter) -> Outcome:
        self.gate.counted[counter] += 1
        return Outcome.PASS

    def _posture(self, condition: PostureBit, why: Counter) -> Outcome:
        if self._observe or self.gate.config().open & condition:
            return self._passed(Counter.PASSED_POSTURE)
        self.gate.counted[why] += 1
        return Outcome.DROP

    def _apply(self, run: _Run, entry: VerdictEntry, origin: Origin) -> Outcome:
        passes = entry.verdict in _PASSING
        run.flags = FlowFlag.PAYLOAD_PASSED if passes or self._observe else FlowFlag(0)
        state = InboundFlow(
            entry.verdict, OpenedBy.OUTSIDE, self._generation, entry.id, run.start, int(run.flags), entry.expires,
            entry.by_name, run.start,
        )  # fmt: skip
        if passes or self._observe or run.tcp:  # a refused datagram is no flow
            self.gate.inbounds.put(run.key, state)
        flags = FlowFlag.NO_STORAGE | FlowFlag.INBOUND | (FlowFlag.OBSERVE if self._observe else FlowFlag(0))
        self.told.append(
            VerdictEvent(
                0, EventType.VERDICT, NOBODY, run.flow, self.ifindex, self._generation, 0, entry.id, entry.verdict,
                origin, StageNumber.CONNECT, int(flags), 0,
            )
        )  # fmt: skip
        ignored = entry.verdict == KernelVerdict.IGNORE
        self.gate.counted[Counter.PASSED_IGNORED if ignored else _APPLIED.get(origin, Counter.HIT_SET)] += 1
        if passes:
            return Outcome.PASS
        if self._observe:
            return self._passed(Counter.WOULD_DROP)
        self.gate.counted[Counter.DROPPED_INBOUND] += 1
        if entry.verdict != KernelVerdict.REJECT or self._cannot_hold(run):
            return Outcome.DROP
        self.gate.counted[Counter.HELD_REJECT] += 1
        return self._note(run, StageNumber.REJECT)

    def _cannot_hold(self, run: _Run) -> tuple[PostureBit, Counter] | None:
        gate, config = self.gate, self.gate.config()
        redirected, taken = gate.hold_queue()
        if gate.clock() - gate.beaten > config.heartbeat_max:
            return PostureBit.ENGINE_ABSENT, Counter.DROPPED_ENGINE_ABSENT
        if redirected - taken >= config.hold_limit or is_another_s(gate, run.flow, 0, 0):
            return PostureBit.HOLD_FULL, Counter.DROPPED_HOLD_FULL
        return None

    def _hold(self, run: _Run, stage: StageNumber) -> Outcome:
        if (why_not := self._cannot_hold(run)) is not None:
            return self._posture(*why_not)
        self.gate.counted[Counter.HELD_INBOUND] += 1
        return self._note(run, stage)

    def _note(self, run: _Run, stage: StageNumber) -> Outcome:
        flags = FlowFlag.INBOUND | FlowFlag.NO_STORAGE | run.flags
        if self._observe:
            flags |= FlowFlag.CLONED | FlowFlag.OBSERVE
        note = Held(
            NOBODY, 0, 0, self.ifindex, self._generation, run.before, 0, run.start, stage, int(flags), Hook.INGRESS, 0,
            0, self.gate.redirected,
        )  # fmt: skip
        self.gate.notes.put(run.flow, note)
        self.gate.redirected += 1
        return Outcome.PASS if self._observe else Outcome.HOLD


@dataclass
class _Run:
    flow: Tuple
    key: Tuple
    tcp: bool
    start: int
    read: Headers
    flags: FlowFlag
    before: int = 0


def _key(read: Headers) -> Tuple:
    """The key in inbound_flows: an answer to a ping is another flow than a ping."""
    if read.flow.transport not in headers.ANSWERS:
        return read.flow
    answers = headers.is_icmp(read, headers.ANSWERS)
    return read.flow._replace(dport=IcmpKind.ANSWER_IN if answers else IcmpKind.REQUEST_IN)
