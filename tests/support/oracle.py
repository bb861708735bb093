"""The whole of gate_egress in plain Python: Egress (the precedence) with what stands around it in the program.

Headers, modes, the posture, the hold queue, the heartbeat, and the counter of each packet. tests/kernel/test_oracle.py
holds it to the program itself, so that what is proved with Egress is true of the kernel too.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace

from engine.abi.numbers import Counter, FlowFlag, KernelVerdict, Mode, Origin, PostureBit, StageNumber
from engine.abi.records import VerdictEntry
from engine.model import net
from engine.protocols import packet as packets
from tests.support import captures, headers
from tests.support.egress import Egress, Judged, Outcome, Socket, _Run
from tests.support.headers import Headers, Status

_PASSING = (KernelVerdict.ALLOW, KernelVerdict.IGNORE)
_APPLIED = {
    Origin.FLOW: (Counter.HIT_FLOW, Counter.DROPPED_FLOW),
    Origin.DEST: (Counter.HIT_DEST, Counter.DROPPED_DEST),
    Origin.NAME: (Counter.HIT_NAME, Counter.DROPPED_NAME),
}
"""Origin -> what is counted when it is met, and when it drops; any other origin is a person's word."""


@dataclass
class Oracle(Egress):
    """Counts into `gate.counted`. `beaten` of the gate is the heartbeat."""

    link: int = 14

    def packet(self, socket: Socket, frame: bytes) -> Judged:
        config = self.gate.config()
        observe = config.mode == Mode.OBSERVE or bool(socket.stored and socket.flags & FlowFlag.OBSERVE)
        if config.mode == Mode.PANIC:
            return self._counted(Outcome.PASS, Counter.PASSED_PANIC)
        if (decided := self._decided(socket, observe)) is not None:
            return decided
        read = headers.read(frame, self.link)
        if read.status is Status.NOT_IP:
            return self._counted(Outcome.PASS, Counter.PASSED_NOT_IP)
        if read.status is Status.LINK_CONTROL:
            return self._counted(Outcome.PASS, Counter.PASSED_LINK_CONTROL)
        if read.status is Status.FRAGMENT:
            if observe or config.open & PostureBit.FRAGMENT:
                return self._counted(Outcome.PASS, Counter.PASSED_FRAGMENT)
            return self._counted(Outcome.DROP, Counter.DROPPED_FRAGMENT)
        if read.status is Status.MALFORMED:
            return self._posture(PostureBit.MALFORMED, Counter.DROPPED_MALFORMED, socket, observe, 0)
        if self._has_nothing_to_wait_for(socket, read):
            return Judged(Outcome.PASS)
        judged = super().packet(socket, plain(read))
        if judged.origin is Origin.NEVER_DENY:
            self.gate.counted[Counter.PASSED_NEVER_DENY] += 1
        elif _is_answer(socket, read):
            self.gate.counted[Counter.PASSED_INBOUND] += 1
        return judged

    def _counted(self, outcome: Outcome, counter: Counter) -> Judged:
        self.gate.counted[counter] += 1
        return Judged(outcome)

    def _decided(self, socket: Socket, observe: bool) -> Judged | None:
        """What socket storage says before anything is read of the packet."""
        if not socket.stored:
            return None
        if socket.flags & FlowFlag.INBOUND:
            return Judged(Outcome.PASS)
        if socket.generation != self.gate.generation() or not self._unexpired(socket.expires):
            return None
        if socket.verdict in _PASSING:
            return Judged(Outcome.PASS)
        if socket.verdict in (KernelVerdict.NONE, KernelVerdict.UNDECIDED):
            return None
        if observe:
            return self._counted(Outcome.PASS, Counter.WOULD_DROP)
        return self._counted(Outcome.DROP, Counter.DROPPED_FLOW)

    def _has_nothing_to_wait_for(self, socket: Socket, read: Headers) -> bool:
        """Undecided in this very generation, and no payload: passes before anything else is looked up."""
        undecided = (
            socket.stored
            and socket.verdict == KernelVerdict.UNDECIDED
            and socket.generation == self.gate.generation()
            and self._unexpired(socket.expires)
        )
        if not undecided or read.flow.transport != packets.TCP or read.payload or read.flags & packets.RST:
            return False
        if read.flags & packets.SYN and not read.flags & packets.ACK:
            socket.start = (read.seq + 1) & 0xFFFFFFFF
            socket.flags |= FlowFlag.STARTED
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
        if judged.outcome is not Outcome.DROP or entry.verdict != KernelVerdict.REJECT or self._cannot_hold():
            return judged
        # The engine tells the sender; the packet is refused already, so nothing waits behind it.
        self.gate.counted[Counter.HELD_REJECT] += 1
        return replace(judged, outcome=super()._hold(run, StageNumber.REJECT, 0).outcome)

    def _cannot_hold(self) -> tuple[PostureBit, Counter] | None:
        """The condition that keeps a packet from being held, and what counts it."""
        gate, config = self.gate, self.gate.config()
        redirected, taken = gate.hold_queue()
        if gate.clock() - gate.beaten > config.heartbeat_max:
            return PostureBit.ENGINE_ABSENT, Counter.DROPPED_ENGINE_ABSENT
        if redirected - taken >= config.hold_limit:
            return PostureBit.HOLD_FULL, Counter.DROPPED_HOLD_FULL
        return None

    def _hold(self, run: _Run, stage: StageNumber, length: int) -> Judged:
        if (why_not := self._cannot_hold()) is not None:
            return self._posture(*why_not, run.socket, run.observe, length)
        self.gate.counted[self._why(run, stage)] += 1
        held = super()._hold(run, stage, length)
        # The packet's own fate: while observing, a copy is held.
        return Judged(Outcome.PASS) if run.observe else held

    def _why(self, run: _Run, stage: StageNumber) -> Counter:
        if self.gate.plan(run.generation).generation != run.generation and stage is StageNumber.CONNECT:
            return Counter.HELD_CONNECT
        if not run.tcp:
            return Counter.HELD_DATAGRAM
        if stage is StageNumber.CONNECT:
            return Counter.HELD_CONNECT
        late = run.socket.stored and run.socket.flags & FlowFlag.PAYLOAD_PASSED
        return Counter.HELD_LATE if late else Counter.HELD_PAYLOAD


def _is_answer(socket: Socket, read: Headers) -> bool:
    """A TCP segment without payload and without storage, that opens nothing."""
    opens = read.flags & packets.SYN and not read.flags & packets.ACK
    return (
        not socket.stored
        and read.flow.transport == packets.TCP
        and not read.payload
        and not read.flags & packets.RST
        and not opens
    )


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
