"""What the kernel tells: the event ring's records, in order, into the flow table, the journal and the alerts."""

from __future__ import annotations

import struct
from collections.abc import Callable

from engine.abi.numbers import EventType, FlowFlag, KernelVerdict, Origin, StageNumber
from engine.abi.records import DnsEvent, Held, ProcessEvent, SocketEvent, VerdictEvent
from engine.model.decision import Decision, Reason, Stage, Verdict
from engine.model.facts import FLOW_FACTS, Event, Name, NameState
from engine.model.name import normalise
from engine.runtime.flows import Flow
from engine.runtime.gatekeeper import Gatekeeper
from engine.runtime.identify import Identifier, direction_of
from engine.runtime.journal import Journal
from engine.runtime.resolutions import Resolutions

_TYPE = struct.Struct("<QI")
# Plain numbers: at 50,000 events a second an enumeration's own arithmetic is a tenth of the time.
_VERDICTS = {
    int(KernelVerdict.ALLOW): Verdict.ALLOW,
    int(KernelVerdict.IGNORE): Verdict.ALLOW,
    int(KernelVerdict.DENY): Verdict.DENY,
    int(KernelVerdict.REJECT): Verdict.REJECT,
}
_UNSEEN = Name("", NameState.UNSEEN)
_OBSERVE = int(FlowFlag.OBSERVE)
_INBOUND = int(FlowFlag.INBOUND)
_BY_PERSON = frozenset({int(Origin.SET), int(Origin.STRATEGY)})


class Telling:
    """Handles one record at a time. `reason_of`: what a person's entry stands for, by its number."""

    def __init__(
        self,
        gatekeeper: Gatekeeper,
        identifier: Identifier,
        journal: Journal,
        reason_of: Callable[[int], Reason | None],
        *,
        resolutions: Resolutions | None = None,
        sockets: bool = True,
    ) -> None:
        self._gatekeeper = gatekeeper
        self._identifier = identifier
        self._journal = journal
        self._reason_of = reason_of
        self._resolutions = resolutions
        self._sockets = sockets
        self.handled = 0

    def record(self, data: bytes) -> None:
        self.handled += 1
        kind = _TYPE.unpack_from(data)[1]
        if kind in (EventType.OPEN, EventType.CLOSE):
            self._socket(SocketEvent.unpack(data))
        elif kind in (EventType.EXEC, EventType.EXIT):
            self._process(ProcessEvent.unpack(data))
        elif kind == EventType.VERDICT_NAME:
            self._verdict(VerdictEvent.unpack_named(data))
        elif kind in (EventType.VERDICT, EventType.REFUSED):
            self._verdict(VerdictEvent.unpack(data))
        elif kind == EventType.DNS and self._resolutions is not None:
            self._resolutions.observe(DnsEvent.unpack(data))

    def _process(self, event: ProcessEvent) -> None:
        exe = self._identifier.executed(event.identity) if event.type == EventType.EXEC else 0
        if self._sockets:
            self._journal.process(event, exe)

    def _socket(self, event: SocketEvent) -> None:
        if event.type == EventType.CLOSE:
            flows = self._gatekeeper.flows
            inbound = event.flags & _INBOUND
            flow = flows.get((event.tuple.reversed(), 0)) if inbound else flows.by_cookie(event.cookie)
            if flow is not None and not flow.waiting.frames:
                self._gatekeeper.forget(flow)
        if self._sockets:
            self._journal.socket(event)

    def _verdict(self, event: VerdictEvent) -> None:
        # The verdict needed no executable, or the gate did not know it yet: who reads the log wants to.
        exe = self._identifier.executable(event.identity)
        event = event._replace(identity=event.identity._replace(exe=exe))
        entry = self._gatekeeper.entry(event.verdict_id)
        reasons = entry.reasons if entry is not None else ()
        if not reasons:
            by_person = self._reason_of(event.verdict_id)
            reasons = (by_person,) if by_person else ()
        value = normalise(event.name)[0] if event.name else ""
        name = Name(value, NameState.COMPLETE) if value else _UNSEEN
        self._journal.verdict(event, name, reasons)
        verdict = _VERDICTS.get(event.verdict, Verdict.ALLOW)
        flow = self._remember(event, name, verdict, reasons) if event.type != EventType.REFUSED else None
        if verdict.passes:
            return
        observed = bool(event.flags & _OBSERVE)
        payload = event.stage == StageNumber.PAYLOAD
        facts = self._identifier.outline(
            Event.PAYLOAD if payload else Event.CONNECT, event.tuple, event.identity, name, direction_of(event.flags)
        )
        self._gatekeeper.notices.violation(facts, verdict, reasons, observed=observed, repeat=True)
        # Whoever opens a flow that is rejected hears of it by the frame itself.
        if flow is not None and not observed and (payload or verdict is not Verdict.REJECT):
            self._gatekeeper.cut(flow)

    def _remember(self, event: VerdictEvent, name: Name, verdict: Verdict, reasons: tuple[Reason, ...]) -> Flow:
        """A flow that the kernel decided by itself: a reload must find it too."""
        inbound = event.flags & _INBOUND
        flows = self._gatekeeper.flows
        known = flows.get((event.tuple, 0)) if inbound else flows.by_cookie(event.cookie)
        if known is not None and known.tuple == event.tuple and known.waiting.frames:
            return known  # its held frames are being judged, and the answer will stand here
        held = Held(
            event.identity, event.cookie, event.time, event.ifindex, event.generation, event.verdict_id, event.part,
            0, event.stage, event.flags & ~int(FlowFlag.STARTED),
        )  # fmt: skip
        if inbound:
            held = held._replace(cookie=0)
        flow = Flow(event.tuple, held, exe=event.identity.exe)
        flow.name = name if name.value else None
        flow.decision = Decision(verdict, FLOW_FACTS, reasons)
        flow.generation = event.generation
        flow.stage = Stage.PAYLOAD if event.stage == StageNumber.PAYLOAD else Stage.CONNECT
        flow.verdict_id = event.verdict_id
        flow.by_person = event.origin in _BY_PERSON
        flow.passed = verdict.passes or bool(event.flags & _OBSERVE)
        self._gatekeeper.flows.add(flow)
        return flow
