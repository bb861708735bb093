"""Held packets: read, judged, released or discarded.

One held frame belongs to one flow. A flow is judged at its first packet and, if the policy leaves it undecided, at its
first payload; until then its frames wait in order, within the bounds of the hold. The verdict is written before the
frames leave, so that what follows them finds it.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace

from engine.abi.numbers import FlowFlag, KernelVerdict, StageNumber
from engine.abi.records import Tuple
from engine.alerts.dispatcher import Dispatcher
from engine.config import Hold as HoldBounds
from engine.model.decision import Decision, Reason, Stage, Verdict
from engine.model.facts import FLOW_FACTS, Event, Facts, Name, NameState
from engine.model.posture import Posture
from engine.ports import Cutter, Gate, Releaser
from engine.protocols import packet as packets
from engine.protocols.packet import Packet
from engine.protocols.stream import Outcome
from engine.protocols.tls import HelloReading, stated
from engine.runtime.carried import Carried
from engine.runtime.entries import FLOW_ONLY, numbers, place, reach
from engine.runtime.first_payload import FirstPayload, begins_nothing
from engine.runtime.flows import IDLE, Flow, FlowTable, Frame, Waiting, first_byte
from engine.runtime.force import Force, Installed
from engine.runtime.hearing import Hearing, now
from engine.runtime.identify import Identifier
from engine.runtime.journal import Journal
from engine.runtime.notices import Notices
from engine.runtime.orders import Order, Orders
from engine.runtime.owners import Owners
from engine.runtime.way import VNET_BYTES, Way

# Plain numbers: arithmetic on enumerations is Python code, and a held packet waits for it.
_INBOUND, _STARTED = int(FlowFlag.INBOUND), int(FlowFlag.STARTED)
_PAYLOAD_PASSED, _NO_STORAGE = int(FlowFlag.PAYLOAD_PASSED), int(FlowFlag.NO_STORAGE)
_OBSERVED = int(FlowFlag.CLONED | FlowFlag.OBSERVE)
_FLOWS_AT_ONCE = 64
"""Ending one takes some hundred microseconds."""


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
        self.force = force
        self._gate = gate
        self._way = Way(gate, releaser, cutter, identifier)
        self.hearing = Hearing(identifier, owners, journal, posture, orders)
        self.notices = Notices(identifier, journal, alerts, lambda: self.force.number)
        self.flows = flows
        self._bounds = bounds
        self._orders = orders
        self.previous: Force | None = None
        """The generation before: a flow in progress still refers to the entry that it passed by."""
        self.counts = HeldCounts()
        self._payloads = FirstPayload(bounds)
        self._carried = Carried(gate)
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
        if held.flags & _INBOUND:
            # Known by what comes in, whichever way this frame goes; its socket may not even exist yet.
            held = held._replace(cookie=0)
            if held.answer:
                tuple_ = tuple_.reversed()
        flow = self.flows.get((tuple_, held.cookie))
        if flow is not None and flow.is_another(held, packet):
            self._abandon(flow)
            flow = None
        if flow is None:
            flow = Flow(tuple_, held)
            self.flows.add(flow)
        else:
            flow.held = held
        if packet.protocol == packets.TCP and packet.flags & packets.SYN:
            flow.start = first_byte(packet)
        elif held.flags & _STARTED:
            flow.start = held.start
        if packet.protocol == packets.TCP and not flow.inbound and self._comes_again(flow, waits, packet):
            return
        if self._stands(flow, waits, packet):
            self._answer_again(flow, waits, packet)
            return
        if not self._room(flow, waits):
            return
        # A sleeping evaluator takes as long to wake up as this frame to be read.
        self.force.judge.rouse(Stage.CONNECT if held.stage == StageNumber.CONNECT else Stage.PAYLOAD)
        self._queue(flow, waits)
        if flow.waiting.judging is None:
            self._read(flow, waits, packet)

    def _comes_again(self, flow: Flow, frame: Frame, packet: Packet) -> bool:
        """Compare a segment that brings again what its flow was judged by. True: that was all there was to do."""
        held = flow.held
        passed = bool(held.flags & _PAYLOAD_PASSED)
        if held.judged != held.start:
            flow.judged = held.judged
        elif passed and not held.flags & _NO_STORAGE:
            flow.judged = None
        only = held.stage == StageNumber.AGAIN
        if not only and not (passed or flow.passed):
            return False  # it is still being read
        if not only and not flow.comes_again(packet):
            flow.progressed(packet)
            return False
        if flow.decision is not None and flow.decision.verdict in (Verdict.DENY, Verdict.REJECT):
            return False
        wrong = self._carried.contradiction(flow, packet)
        if not wrong and only and held.generation == self.force.number:
            self._way.release(flow, frame)
            return True
        if not wrong:
            return False
        if flow.waiting.judging is not None:
            self.counts.discarded += 1
            return True
        self._queue(flow, frame)
        flow.waiting.contradiction = wrong
        self._start(flow, Stage.PAYLOAD, Event.LATE)
        return True

    def _stands(self, flow: Flow, frame: Frame, packet: Packet) -> bool:
        """Is this flow decided in the generation in force? A frame that was on its way when the verdict was written."""
        decision = flow.decision
        if decision is None or flow.generation != self.force.number or decision.verdict is Verdict.UNDECIDED:
            return False
        entry = self.force.entry(flow.verdict_id)
        # None: it expired and was swept away, or was a person's word that is gone.
        if entry is None or (entry.expires and _monotonic() >= entry.expires):
            return False
        if packet.protocol != packets.UDP or not (flow.by_payload or self._orders.speak_of_names):
            return True
        # The gate hands over whatever may begin a QUIC connection on a flow that was decided by its name.
        return self._payloads.continues(flow, frame, packet)

    def _answer_again(self, flow: Flow, frame: Frame, packet: Packet) -> None:
        decision = flow.decision
        if decision is None:
            return
        self.force.repeat(flow.verdict_id, place(flow, self.force.number))
        if decision.verdict.passes and not flow.comes_instead(packet):
            self._way.release(flow, frame)
        else:
            self.counts.discarded += 1
            if decision.verdict is Verdict.REJECT:
                self.counts.refused += self._way.refuse(frame)

    def forget(self, flow: Flow) -> None:
        """It is over: nothing of it is sent again."""
        self.flows.forget(flow)
        self._carried.forget(flow)

    def _abandon(self, flow: Flow) -> None:
        """Another connection has the flow's tuple and socket now: what waits of this one must not meet it."""
        flow.abandoned = True
        self.counts.discarded += len(flow.waiting.frames)
        if flow.waiting.timer is not None:
            flow.waiting.timer.cancel()
        flow.waiting = IDLE
        self.forget(flow)

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
        if flow.inbound and flow.held.answer:
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
        if flow.passed or flow.held.flags & _PAYLOAD_PASSED:
            return True
        if flow.inbound:
            return False
        # A socket that the gate never saw connect: older than the gate, or outside of its control group.
        unknown = flow.held.flags & _NO_STORAGE and flow.decision is None
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
        flow.waiting.read = len(flow.waiting.frames)
        if flow.waiting.timer is not None:
            flow.waiting.timer.cancel()
            flow.waiting.timer = None
        task = asyncio.get_running_loop().create_task(self._judge(flow, stage, event))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.notices.fault(error)

    async def _judge(self, flow: Flow, stage: Stage, event: Event) -> None:
        hearing = self.hearing
        if event is Event.LATE:
            self._recall_name(flow)
        if flow.inbound:
            hearing.find_listener(flow, self.force)
        elif flow.waiting.contradiction:
            reason = Reason("sent again", flow.waiting.contradiction)
            facts = await hearing.facts(flow, event, flow.name, self.force, now())
            self._conclude(flow, self.force, facts, Decision(Verdict.DENY, FLOW_FACTS, (reason,)), stage)
            return
        elif event is Event.LATE:
            if hearing.accepted(flow):
                if not self.force.judges_inbound:
                    facts = await hearing.facts(flow, event, flow.name, self.force, now())
                    self._conclude(flow, self.force, facts, _INBOUND_PASSES, stage)
                    return
                self._turn(flow)
            hearing.adopt(flow)
        while True:
            force = self.force
            facts, decision = await hearing.decide(flow, stage, event, force)
            if force is self.force:
                break
            # The generation changed while this one was asked: its answer is nobody's any more.
        self._conclude(flow, force, facts, decision, stage)

    def _turn(self, flow: Flow) -> None:
        """What was held is this host's answer: the flow was opened from outside, before the gate could see it."""
        self.flows.forget(flow)
        flow.tuple = flow.tuple.reversed()
        flow.held = flow.held._replace(cookie=0, flags=flow.held.flags | _INBOUND)
        self.flows.add(flow)

    def _recall_name(self, flow: Flow) -> None:
        """The name of a flow that the kernel passed by a standing verdict: the entry that it passed by knows."""
        if flow.name is None:
            entry = self.entry(flow.held.verdict_id)
            flow.name = entry.name if entry is not None and entry.name.value else Name("", NameState.UNSEEN)

    def entry(self, number: int) -> Installed | None:
        return self.force.entry(number) or (self.previous.entry(number) if self.previous else None)

    async def obey(self, order: Order) -> int:
        """A verdict was just set: end the flows in progress that it refuses. Return how many.

        The gate itself asks anew about each of them from now on, so this may take its time: thousands took seconds, in
        which no held packet was judged.
        """
        if order.word == "allow":
            return 0
        cut = 0
        for number, flow in enumerate(self.flows):
            if number % _FLOWS_AT_ONCE == 0:
                await asyncio.sleep(0)
            if order.by == "name" and not flow.inbound:
                refused = flow.name is not None and order == self._orders.about_name(flow.name.value)
            elif order.by == "dest":
                refused = order.covers(flow.tuple)
            else:
                refused = False
            if not refused or flow.decision is None or not flow.decision.verdict.passes:
                continue
            reason = Reason("verdict set", order.reason or f"{order.by} {order.value} {order.word}")
            flow.decision = Decision(Verdict(order.word), FLOW_FACTS, (reason,))
            flow.by_person = True
            where = place(flow, self.force.number)
            flow.verdict_id = self.force.install(flow.decision, FLOW_ONLY, where, flow.name or Name())
            observed = bool(flow.held.flags & _OBSERVED)
            if not observed:
                cut += self.cut(flow)
            self.notices.decided(flow, flow.decision, flow.stage, observed=observed)
        return cut

    def _conclude(self, flow: Flow, force: Force, facts: Facts, decision: Decision, stage: Stage) -> None:
        """Write the verdict, then let the frames go or discard them, then tell."""
        if flow.abandoned:
            return
        waiting = flow.waiting
        observed = bool(flow.held.flags & _OBSERVED)
        self.counts.judged += 1
        if facts.event is Event.LATE and decision.unanswered and not decision.verdict.passes and not observed:
            self._ask_later(flow, facts, decision, stage)
            return
        flow.facts, flow.decision, flow.generation, flow.stage = facts, decision, force.number, stage
        where = reach(decision, facts, stage, numbers(flow), force.number)
        if flow.by_payload and decision.verdict is Verdict.ALLOW and waiting.stream is not None and not flow.inbound:
            self._carried.keep(flow, self._payloads.read(flow))
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
                    self._way.expect_answers(flow, waiting.frames)
                for at, frame in enumerate(waiting.frames):
                    if at < waiting.read or not self._instead(flow, frame):
                        self._way.release(flow, frame)
                    else:
                        self.counts.discarded += 1
            elif stage is Stage.CONNECT:
                self._refuse(flow, decision.verdict, stage, waiting.frames)
        self.notices.decided(flow, decision, stage, observed=observed, held_ns=held_ns)

    def _ask_later(self, flow: Flow, facts: Facts, decision: Decision, stage: Stage) -> None:
        """An evaluator's failure ends no connection in progress: nothing of it leaves, and what it sends again asks
        again."""
        self.counts.discarded += len(flow.waiting.frames)
        flow.waiting = IDLE
        flow.facts = facts
        self.notices.decided(flow, decision, stage, observed=False)

    def _instead(self, flow: Flow, frame: Frame) -> bool:
        """Would a frame that came while its flow was judged take the place of what was read of it?"""
        packet = packets.parse(frame.data[VNET_BYTES:])
        if not isinstance(packet, Packet):
            return False
        return flow.comes_instead(packet) or (
            flow.comes_again(packet) and bool(self._carried.contradiction(flow, packet))
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

    async def settle(self) -> None:
        """Wait until nothing is being judged."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)


_INBOUND_PASSES = Decision(Verdict.ALLOW, FLOW_FACTS, (Reason("inbound", "the connection was opened from outside"),))


def _monotonic() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)
