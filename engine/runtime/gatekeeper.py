"""Held packets: read, judged, released or discarded.

One held frame belongs to one flow. A flow is judged at its first packet and, if the policy leaves it undecided, at its
first payload; until then its frames wait in order, within the bounds of the hold. The verdict is written before the
frames leave, so that what follows them finds it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from dataclasses import dataclass, replace
from datetime import datetime

from engine.abi.numbers import FlowFlag, Hook, KernelVerdict, StageNumber
from engine.abi.records import FlowKey, Held, Identity, Tuple
from engine.alerts.alert import Alert, Kind, Severity
from engine.alerts.dispatcher import Dispatcher
from engine.config import Hold as HoldBounds
from engine.model import net
from engine.model.decision import Decision, Reason, Stage, Verdict
from engine.model.facts import FLOW_FACTS, Direction, Event, Facts, Name, NameState, Transport
from engine.model.posture import TABLE, Condition, Posture
from engine.ports import Cutter, Gate, Releaser
from engine.protocols import packet as packets
from engine.protocols.packet import Packet
from engine.protocols.stream import Outcome
from engine.protocols.tls import HelloReading, stated
from engine.runtime.entries import FLOW_ONLY, InboundPlace, Numbers, reach
from engine.runtime.first_payload import FirstPayload, begins_nothing
from engine.runtime.flows import IDLE, Flow, FlowTable, Frame, Waiting
from engine.runtime.force import Force, Installed
from engine.runtime.identify import Identifier, direction_of, transport_of
from engine.runtime.journal import Journal
from engine.runtime.orders import Order, Orders
from engine.runtime.owners import Owners
from engine.runtime.way import VNET_BYTES, Way

_POSTURES = {NameState.PARTIAL: Condition.PARSER_PARTIAL, NameState.MALFORMED: Condition.PARSER_MALFORMED}


@dataclass
class HeldCounts:
    """Frames by what became of them."""

    unclaimed: int = 0
    """The gate has no note of this flow: the frame is not ours to release."""
    unreadable: int = 0
    duplicates: int = 0
    refused: int = 0
    """Its sender was told."""
    discarded: int = 0
    judged: int = 0


class Gatekeeper:
    """Belongs to the event loop's thread. `force` is the generation in force; a reload replaces it."""

    def __init__(
        self,
        *,
        gate: Gate,
        releaser: Releaser,
        cutter: Cutter,
        identifier: Identifier,
        owners: Owners,
        journal: Journal,
        alerts: Dispatcher,
        flows: FlowTable,
        bounds: HoldBounds,
        posture: Posture,
        orders: Orders,
        force: Force,
    ) -> None:
        self._gate = gate
        self._way = Way(gate, releaser, cutter, identifier)
        self._identifier = identifier
        self._owners = owners
        self._journal = journal
        self._alerts = alerts
        self.flows = flows
        self._bounds = bounds
        self._posture = posture
        self._orders = orders
        self.force = force
        self.previous: Force | None = None
        """The generation before: a flow in progress still refers to the entry that it passed by."""
        self.counts = HeldCounts()
        self._payloads = FirstPayload(bounds)
        self._tasks: set[asyncio.Task[None]] = set()

    # ---- frames in

    def frame(self, frame: bytes) -> None:
        """Take one held frame, its virtio-net header in front."""
        packet = packets.parse(frame[VNET_BYTES:])
        if not isinstance(packet, Packet):
            self.counts.unreadable += 1
            return
        tuple_ = Tuple(packet.source_key, packet.dest_key, packet.sport, packet.dport, packet.protocol)
        held = self._gate.held(tuple_)
        if held is None:
            self.counts.unclaimed += 1
            return
        waits = Frame(frame, held.ifindex, held.hook)
        if held.stage == StageNumber.REJECT:
            self.counts.refused += self._way.refuse(waits)
            return
        if held.flags & FlowFlag.INBOUND:
            # Known by what comes in, whichever way this frame goes; its socket may not even exist yet.
            held = held._replace(cookie=0)
            if held.hook == Hook.EGRESS:
                tuple_ = tuple_.reversed()
        flow = self.flows.get((tuple_, held.cookie))
        if flow is not None and _another(flow, held, packet):
            self._abandon(flow)
            flow = None
        if flow is None:
            flow = Flow(tuple_, held)
            self.flows.add(flow)
        else:
            flow.held = held
        if packet.protocol == packets.TCP and packet.flags & packets.SYN:
            flow.start = _first_byte(packet)
        elif held.flags & FlowFlag.STARTED:
            flow.start = held.start
        if self._stands(flow, waits, packet):
            self._answer_again(flow, waits)
            return
        if not self._room(flow, waits):
            return
        self._queue(flow, waits)
        if flow.waiting.judging is None:
            self._read(flow, waits, packet)

    def _stands(self, flow: Flow, frame: Frame, packet: Packet) -> bool:
        """Is this flow decided in the generation in force? A frame that was on its way when the verdict was written."""
        decision = flow.decision
        if decision is None or flow.generation != self.force.number or decision.verdict is Verdict.UNDECIDED:
            return False
        entry = self.force.entry(flow.verdict_id)
        # None: it expired and was swept away, or was a person's word that is gone.
        if entry is None or (entry.expires and _monotonic() >= entry.expires):
            return False
        if packet.protocol != packets.UDP or "name" not in decision.scope:
            return True
        # The gate hands over whatever may begin a QUIC connection on a flow that was decided by its name.
        return self._payloads.continues(flow, frame, packet)

    def _answer_again(self, flow: Flow, frame: Frame) -> None:
        decision = flow.decision
        if decision is None:
            return
        self.force.repeat(flow.verdict_id, place(flow, self.force.number))
        if decision.verdict.passes:
            self._way.release(flow, frame)
        else:
            self.counts.discarded += 1
            if decision.verdict is Verdict.REJECT:
                self.counts.refused += self._way.refuse(frame)

    def _abandon(self, flow: Flow) -> None:
        """Another connection has the flow's tuple and socket now: what waits of this one must not meet it."""
        flow.abandoned = True
        self.counts.discarded += len(flow.waiting.frames)
        if flow.waiting.timer is not None:
            flow.waiting.timer.cancel()
        flow.waiting = IDLE
        self.flows.forget(flow)

    def _room(self, flow: Flow, frame: Frame) -> bool:
        """Bound what one flow may have waiting beyond its first frame, which segmentation offload makes as long as it
        likes. A full flow is judged with what was read of it: not whole."""
        waiting = flow.waiting
        if not waiting.frames or waiting.bytes + len(frame.data) <= self._bounds.bytes:
            return True
        self.counts.discarded += 1
        if waiting.judging is None:
            self._read_so_far(flow, f"no whole hello in {self._bounds.bytes} held bytes")
        return False

    def _queue(self, flow: Flow, frame: Frame) -> None:
        if flow.waiting is IDLE:
            flow.waiting = Waiting(since=flow.held.time)
        waiting = flow.waiting
        waiting.frames.append(frame)
        waiting.bytes += len(frame.data)

    # ---- reading the first payload

    def _read(self, flow: Flow, frame: Frame, packet: Packet) -> None:
        """Take in the newest frame: judge the flow, or wait for more of its hello."""
        if flow.inbound and frame.hook == Hook.EGRESS:
            # This host's own words say nothing about who came in.
            self._start(flow, Stage.PAYLOAD, Event.LATE)
        elif packet.protocol == packets.UDP:
            self._read_datagram(flow, frame, packet)
        elif packet.protocol != packets.TCP:
            self._judge_payload(flow, stated(NameState.NOT_TLS, "not TCP or UDP"))
        elif self._late(flow, packet):
            self._start(flow, Stage.PAYLOAD, Event.LATE)
        elif flow.held.stage == StageNumber.CONNECT and not self._connected(flow):
            self._start(flow, Stage.CONNECT, Event.ACCEPT if flow.inbound else Event.CONNECT)
        elif packet.payload_end > packet.payload_offset:
            self._read_segment(flow, packet)
        else:
            # Undecided and without payload: the handshake and its acknowledgements carry nothing to judge.
            self._unqueue(flow)
            self._way.release(flow, frame)

    def _connected(self, flow: Flow) -> bool:
        decision = flow.decision
        return decision is not None and decision.verdict is Verdict.UNDECIDED and flow.generation == self.force.number

    def _late(self, flow: Flow, packet: Packet) -> bool:
        """Has this flow's first payload gone by already? Then nothing that comes now may be read as its hello."""
        if flow.passed or flow.held.flags & FlowFlag.PAYLOAD_PASSED:
            return True
        if flow.inbound:
            return False
        # A socket that the gate never saw connect: older than the gate, or outside of its control group.
        unknown = flow.held.flags & FlowFlag.NO_STORAGE and flow.decision is None
        return bool(unknown) and not packet.flags & packets.SYN

    def _read_segment(self, flow: Flow, packet: Packet) -> None:
        reading = self._payloads.segment(flow, packet, requests="http" in self.force.judge.reads)
        if isinstance(reading, Outcome):
            # Sent again because we hold it: the first copy is the one that leaves.
            self.counts.duplicates += 1
            self._unqueue(flow)
        else:
            self._judge_payload(flow, reading)

    def _read_datagram(self, flow: Flow, frame: Frame, packet: Packet) -> None:
        if flow.name is not None and flow.waiting.quic is None and begins_nothing(frame, packet):
            # Its verdict has ended, not its connection: what it said at its start still is its name.
            self._start(flow, Stage.PAYLOAD, Event.DATAGRAM)
        else:
            self._judge_payload(flow, self._payloads.datagram(flow, frame, packet))

    def _await_more(self, flow: Flow) -> None:
        if flow.waiting.timer is None:
            loop = asyncio.get_running_loop()
            flow.waiting.timer = loop.call_later(
                self._bounds.milliseconds / 1000,
                self._read_so_far,
                flow,
                f"no whole hello within {self._bounds.milliseconds} ms",
            )

    def _read_so_far(self, flow: Flow, why: str) -> None:
        if flow.waiting.judging is None:
            self._judge_payload(flow, self._payloads.so_far(flow, why))

    def _judge_payload(self, flow: Flow, reading: HelloReading | None) -> None:
        if reading is None:
            self._await_more(flow)
            return
        flow.name = reading.name
        flow.reading = reading
        self._payloads.settle(flow)
        event = Event.PAYLOAD if flow.tuple.transport == packets.TCP else Event.DATAGRAM
        self._start(flow, Stage.PAYLOAD, event)

    # ---- judging

    def _start(self, flow: Flow, stage: Stage, event: Event) -> None:
        if flow.waiting is IDLE:
            flow.waiting = Waiting(since=flow.held.time)
        flow.waiting.judging = stage
        if flow.waiting.timer is not None:
            flow.waiting.timer.cancel()
            flow.waiting.timer = None
        task = asyncio.get_running_loop().create_task(self._judge(flow, stage, event))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            # A fault of ours: the frames stay held, which is closed, and everybody hears of it.
            self._alert(Kind.POSTURE, Severity.CRITICAL, f"a flow could not be judged: {task.exception()!r}")
            self._journal.note("failure", what="judging a flow", error=repr(task.exception()))

    async def _judge(self, flow: Flow, stage: Stage, event: Event) -> None:
        if event is Event.LATE:
            self._recall_name(flow)
        if flow.inbound:
            self._find_listener(flow)
        elif event is Event.LATE:
            # With storage the gate saw it connect: whoever listens on its local port did not accept it.
            if flow.held.flags & FlowFlag.NO_STORAGE and self._owners.complete(flow):
                if not self.force.judges_inbound:
                    facts = await self._facts(flow, event, self.force)
                    self._conclude(flow, self.force, facts, _INBOUND, stage)
                    return
                self._turn(flow)
            if flow.held.identity.tgid and not flow.held.identity.exec_stamp:
                flow.held = flow.held._replace(identity=self._identifier.adopt(flow.held.identity))
        flow.exe = flow.exe or self._identifier.executable(flow.held.identity)
        while True:
            force = self.force
            facts = await self._facts(flow, event, force)
            decision = self._ordered(flow)
            if decision is None:
                judged = await force.judge.decide(facts, stage, now=now())
                # Asked again: the word may have been given while the policy was thinking.
                decision = self._ordered(flow) or self.by_posture(judged, facts)
            if force is self.force:
                break
            # The generation changed while this one was asked: its answer is nobody's any more.
        self._conclude(flow, force, facts, decision, stage)

    async def _facts(self, flow: Flow, event: Event, force: Force) -> Facts:
        reads = force.judge.reads
        hello = flow.read_hello() if "hello" in reads else None
        facts = await self._identifier.facts(
            event, flow.tuple, flow.held, flow.exe, now(), name=flow.name, hello=hello, http=flow.http,
            began=flow.began, reads=reads,
        )  # fmt: skip
        flow.began = flow.began or facts.dest_names
        return facts

    def _turn(self, flow: Flow) -> None:
        """What was held is this host's answer: the flow was opened from outside, before the gate could see it."""
        self.flows.forget(flow)
        flow.tuple = flow.tuple.reversed()
        flow.held = flow.held._replace(cookie=0, flags=flow.held.flags | FlowFlag.INBOUND)
        self.flows.add(flow)

    def _find_listener(self, flow: Flow) -> None:
        """Whoever listens is who this flow belongs to on this side: looked for only where the policy asks."""
        if flow.held.identity.tgid == 0 and self.force.judge.reads & _IDENTITY:
            found = self._owners.listener(flow.tuple)
            if found is not None:
                flow.held = flow.held._replace(identity=self._identifier.adopt(found))

    def _recall_name(self, flow: Flow) -> None:
        """The name of a flow that the kernel passed by a standing verdict: the entry that it passed by knows."""
        if flow.name is None:
            entry = self.entry(flow.held.verdict_id)
            flow.name = entry.name if entry is not None and entry.name.value else Name("", NameState.UNSEEN)

    def entry(self, number: int) -> Installed | None:
        return self.force.entry(number) or (self.previous.entry(number) if self.previous else None)

    def _ordered(self, flow: Flow) -> Decision | None:
        """A person's word about the name: the gate reads it itself where it can, and hands over what it cannot read."""
        named = flow.name is not None and flow.name.value and not flow.inbound
        order = self._orders.about_name(flow.name.value) if named and flow.name else None
        flow.by_person = order is not None
        if order is None:
            return None
        reason = Reason("verdict set", order.reason or f"name {order.value} {order.word}")
        return Decision(Verdict(order.word), FLOW_FACTS | {"name"}, (reason,))

    def obey(self, order: Order) -> int:
        """A verdict was just set: end the flows in progress that it refuses. Return how many."""
        if order.word == "allow":
            return 0
        cut = 0
        for flow in self.flows:
            if order.by == "name" and not flow.inbound:
                refused = flow.name is not None and order == self._orders.about_name(flow.name.value)
            elif order.by == "dest":
                refused = _falls_under(flow, order)
            else:
                refused = False
            if not refused or flow.decision is None or not flow.decision.verdict.passes:
                continue
            reason = Reason("verdict set", order.reason or f"{order.by} {order.value} {order.word}")
            flow.decision = Decision(Verdict(order.word), FLOW_FACTS, (reason,))
            flow.by_person = True
            where = place(flow, self.force.number)
            flow.verdict_id = self.force.install(flow.decision, FLOW_ONLY, where, flow.name or Name())
            observed = bool(flow.held.flags & (FlowFlag.CLONED | FlowFlag.OBSERVE))
            if not observed:
                cut += self.cut(flow)
            self.tell(flow, flow.decision, flow.stage, observed=observed)
        return cut

    def by_posture(self, decision: Decision, facts: Facts) -> Decision:
        """What no rule speaks about, and nobody can answer for: the posture does."""
        if decision.verdict is not Verdict.ALLOW:
            return decision
        condition = None
        if self._journal.failing:
            condition = Condition.DISK_FULL
        elif all(reason.rule == "default" for reason in decision.reasons):
            condition = _POSTURES.get(facts.name.state)
            if facts.dest.transport is Transport.OTHER:
                condition = Condition.UNKNOWN_PROTOCOL
        if condition is None or self._posture[condition].passes:
            return decision
        reason = Reason("posture", f"{condition.value} is closed: {TABLE[condition].when}")
        return replace(decision, verdict=Verdict.DENY, scope=decision.scope | FLOW_FACTS, reasons=(reason,))

    def _conclude(self, flow: Flow, force: Force, facts: Facts, decision: Decision, stage: Stage) -> None:
        """Write the verdict, then let the frames go or discard them, then tell."""
        if flow.abandoned:
            return
        waiting = flow.waiting
        observed = bool(flow.held.flags & (FlowFlag.CLONED | FlowFlag.OBSERVE))
        self.counts.judged += 1
        flow.facts, flow.decision, flow.generation, flow.stage = facts, decision, force.number, stage
        where = reach(decision, facts, stage, numbers(flow), force.number)
        # Allowed at connect, but a person spoke about names: the flow stays open until its name is read.
        passes = decision.verdict is Verdict.ALLOW
        open_name = passes and stage is Stage.CONNECT and not flow.inbound and self._orders.speak_of_names
        refused = decision.verdict in (Verdict.DENY, Verdict.REJECT) and not observed
        if refused and stage is Stage.PAYLOAD:
            # Before the drop takes force: a reset that tells the peer would be dropped with the rest.
            self._refuse(flow, decision.verdict, stage, waiting.frames)
        flow.verdict_id = force.install(
            decision, where, place(flow, force.number), facts.name,
            flow_verdict=KernelVerdict.UNDECIDED if open_name else None,
        )  # fmt: skip
        if open_name:
            flow.decision = replace(decision, verdict=Verdict.UNDECIDED)
        elif decision.verdict is Verdict.ALLOW or observed:
            flow.passed = flow.passed or decision.verdict is not Verdict.UNDECIDED
        held_ns = _monotonic() - waiting.since if waiting.since else 0
        if decision.verdict is Verdict.UNDECIDED or open_name:
            waiting.judging = None
            self._read_again(flow)
        else:
            flow.waiting = IDLE
            if decision.verdict is Verdict.ALLOW or observed:
                if force.judges_inbound and not flow.inbound and flow.tuple.transport != packets.TCP:
                    self._way.expect_answers(flow)
                for frame in waiting.frames:
                    self._way.release(flow, frame)
            elif stage is Stage.CONNECT:
                self._refuse(flow, decision.verdict, stage, waiting.frames)
        self.tell(flow, decision, stage, observed=observed, held_ns=held_ns)
        if decision.failed:
            self._alert(
                Kind.EVALUATOR_FAILED,
                Severity.CRITICAL,
                f"the evaluator gave no usable answer: {decision.reasons[0].message if decision.reasons else '?'}",
            )

    def _refuse(self, flow: Flow, verdict: Verdict, stage: Stage, frames: list[Frame]) -> None:
        """Discard what waits. Who opens a flow that is rejected is told at once; one in progress is ended."""
        self.counts.discarded += len(frames)
        opening = flow.tuple.transport != packets.TCP or stage is Stage.CONNECT
        if verdict is Verdict.REJECT and opening:
            told = [self._way.refuse(frame) for frame in frames]
            self.counts.refused += sum(told)
            if any(told):
                return
        self._way.cut(flow, frames)

    def _read_again(self, flow: Flow) -> None:
        """Undecided at connect: the frames with payload (Fast Open) are read now, the others leave."""
        frames, flow.waiting = flow.waiting.frames, Waiting(since=flow.waiting.since)
        for frame in frames:
            packet = packets.parse(frame.data[VNET_BYTES:])
            if not isinstance(packet, Packet):
                continue
            if packet.payload_end == packet.payload_offset:
                self._way.release(flow, frame)
                continue
            self._queue(flow, frame)
            if flow.waiting.judging is None:
                self._read_segment(flow, packet)

    # ---- the way out

    @staticmethod
    def _unqueue(flow: Flow) -> None:
        """Take the newest frame back. Not by its bytes: an older one may have the same."""
        flow.waiting.bytes -= len(flow.waiting.frames.pop().data)

    def cut(self, flow: Flow) -> bool:
        """End the socket of a denied flow: its program hears of it at once, and its peer too."""
        return self._way.cut(flow, flow.waiting.frames)

    # ---- telling

    def tell(self, flow: Flow, decision: Decision, stage: Stage, *, observed: bool, held_ns: int = 0) -> None:
        """Journal a decision about a flow, and alert on a refusal: with what the decision did without."""
        if flow.facts is not None:
            flow.facts = self._identifier.completed(flow.facts, flow.read_hello())
        facts = flow.facts or self._identifier.outline(
            Event.CONNECT if stage is Stage.CONNECT else Event.PAYLOAD, flow.tuple, flow.held.identity,
            flow.name or Name("", NameState.UNSEEN), direction_of(flow.held.flags),
        )  # fmt: skip
        self._journal.decision(facts, decision, stage, observed=observed, held_ns=held_ns, cookie=flow.held.cookie)
        if not decision.verdict.passes:
            self.violation(facts, decision.verdict, decision.reasons, observed=observed)

    def violation(
        self, facts: Facts, verdict: Verdict, reasons: tuple[Reason, ...], *, observed: bool, repeat: bool = False
    ) -> None:
        where = facts.name.value or f"{facts.dest.address} port {facts.dest.port}"
        rule = reasons[0].rule if reasons else ""
        why = reasons[0].message if reasons else "a standing verdict"
        done = "would be refused" if observed else "refused"
        self._alerts.submit(
            Alert(
                time=time.time_ns(),
                kind=Kind.VIOLATION,
                severity=Severity.WARNING,
                summary=f"{_who(facts)} to {where} {done}: {why}",
                details={
                    "dest": f"{facts.dest.address}:{facts.dest.port}/{facts.dest.transport.value}",
                    "name": facts.name.value,
                    "exe": facts.exe.path,
                    "pid": facts.process.pid,
                    "uid": facts.user.uid,
                    "verdict": verdict.value,
                    "observed": observed,
                    "standing": repeat,
                },
                rule=rule,
                generation=self.force.number,
            )
        )

    def _alert(self, kind: Kind, severity: Severity, summary: str) -> None:
        self._alerts.submit(Alert(time.time_ns(), kind, severity, summary, generation=self.force.number))

    async def settle(self) -> None:
        """Wait until nothing is being judged."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)


_INBOUND = Decision(Verdict.ALLOW, FLOW_FACTS, (Reason("inbound", "the connection was opened from outside"),), ttl=None)


_IDENTITY = frozenset({"exe", "cgroup", "user", "process"})


def numbers(flow: Flow) -> Numbers:
    """Return a flow's facts as kernel keys hold them."""
    identity = flow.held.identity
    if flow.inbound:
        # The gate does not know who listens: a verdict that depends on it is the flow's alone.
        return Numbers(flow.tuple, 0, 0, 0, known=False, inbound=True)
    return Numbers(flow.tuple, identity.cgroup, flow.exe, identity.uid, identity.tgid != 0)


def place(flow: Flow, generation: int) -> FlowKey | InboundPlace:
    """Return where the gate looks a flow's own verdict up."""
    return InboundPlace(flow.tuple, flow.start or 0) if flow.inbound else flow_key(flow, generation)


def _who(facts: Facts) -> str:
    if facts.direction is Direction.INGRESS:
        return facts.source.address
    return facts.exe.path or "an unknown program"


def flow_key(flow: Flow, generation: int) -> FlowKey:
    """Return the key under which the gate looks the verdict of a flow up that was opened here.

    For datagrams with the executable that is known by now, not with the one that the gate knew when it held: under 0
    the verdict would serve every other program on a shared socket that nobody has looked up yet.
    """
    part = flow.held.part if flow.tuple.transport == packets.TCP else flow.exe or flow.held.part
    return FlowKey(flow.tuple, generation, part, flow.held.cookie)


def _another(flow: Flow, held: Held, packet: Packet) -> bool:
    """Is this not the flow that is known by this tuple and socket? A TCP socket may connect anew from the same port
    (connect() with AF_UNSPEC ends the connection before), and a UDP socket may be shared by several programs."""
    if packet.protocol != packets.TCP:
        return _program(flow.held.identity) != _program(held.identity)
    if packet.flags & packets.SYN and not packet.flags & packets.ACK and flow.start != _first_byte(packet):
        return True
    return not held.flags & FlowFlag.NO_STORAGE and flow.held.part != held.part


def _program(identity: Identity) -> Identity:
    """Who it is, whichever thread asked and whether or not the executable has been looked up yet."""
    return identity._replace(tid=0, exe=0)


def _first_byte(packet: Packet) -> int:
    return (packet.seq + 1) & 0xFFFFFFFF


def _monotonic() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def _falls_under(flow: Flow, order: Order) -> bool:
    if order.port and order.port != flow.tuple.dport:
        return False
    if order.transport and order.transport != transport_of(flow.tuple.transport).value:
        return False
    return net.from_key(flow.tuple.dst) in ipaddress.ip_network(order.value)


def now() -> datetime:
    """Return the host's local time, with its zone."""
    return datetime.now().astimezone()
