"""What the kernel tells: the event ring's records, in order, into the flow table, the journal and the alerts."""

from __future__ import annotations

import struct
from collections.abc import Callable

from engine.abi.numbers import EventType, FlowFlag, KernelVerdict, Origin, StageNumber
from engine.abi.records import Held, ProcessEvent, SocketEvent, VerdictEvent
from engine.model.decision import Decision, Reason, Stage, Verdict
from engine.model.facts import FLOW_FACTS, Clock, Direction, Event, Exe, Facts, Name, NameState, User
from engine.model.facts import Process as ProcessFacts
from engine.model.name import normalise
from engine.runtime.flows import Flow
from engine.runtime.gatekeeper import Gatekeeper
from engine.runtime.identify import Identifier
from engine.runtime.journal import Journal

_TYPE = struct.Struct("<QI")
_VERDICTS = {
    KernelVerdict.ALLOW: Verdict.ALLOW,
    KernelVerdict.IGNORE: Verdict.ALLOW,
    KernelVerdict.DENY: Verdict.DENY,
    KernelVerdict.REJECT: Verdict.REJECT,
}
_NO_CLOCK = Clock(0, "")


class Telling:
    """Handles one record at a time. `reason_of`: what a person's entry stands for, by its number."""

    def __init__(
        self,
        gatekeeper: Gatekeeper,
        identifier: Identifier,
        journal: Journal,
        reason_of: Callable[[int], Reason | None],
        *,
        sockets: bool = True,
    ) -> None:
        self._gatekeeper = gatekeeper
        self._identifier = identifier
        self._journal = journal
        self._reason_of = reason_of
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

    def _process(self, event: ProcessEvent) -> None:
        exe = self._identifier.executed(event.identity) if event.type == EventType.EXEC else 0
        if self._sockets:
            self._journal.process(event, exe)

    def _socket(self, event: SocketEvent) -> None:
        if event.type == EventType.CLOSE:
            flow = self._gatekeeper.flows.by_cookie(event.cookie)
            if flow is not None and not flow.waiting.frames:
                self._gatekeeper.flows.forget(flow)
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
        name = Name(value, NameState.COMPLETE if value else NameState.UNSEEN)
        self._journal.verdict(event, name, reasons)
        verdict = _VERDICTS.get(KernelVerdict(event.verdict), Verdict.ALLOW)
        observed = bool(event.flags & FlowFlag.OBSERVE)
        facts = self._facts(event, name)
        if event.type != EventType.REFUSED:
            self._remember(event, name, facts, verdict, reasons)
        if not verdict.passes:
            self._gatekeeper.violation(facts, verdict, reasons, observed=observed, repeat=True)
            if not observed and event.type != EventType.REFUSED:
                flow = self._gatekeeper.flows.by_cookie(event.cookie)
                if flow is not None:
                    self._gatekeeper.cut(flow)

    def _remember(
        self, event: VerdictEvent, name: Name, facts: Facts, verdict: Verdict, reasons: tuple[Reason, ...]
    ) -> None:
        """A flow that the kernel decided by itself: a reload must find it too."""
        held = Held(
            event.identity, event.cookie, event.time, event.ifindex, event.generation, event.verdict_id, 0,
            event.stage, event.flags,
        )  # fmt: skip
        flow = Flow(event.tuple, held, exe=event.identity.exe)
        flow.name = name if name.value else None
        flow.facts = facts
        flow.decision = Decision(verdict, FLOW_FACTS, reasons)
        flow.generation = event.generation
        flow.stage = Stage.PAYLOAD if event.stage == StageNumber.PAYLOAD else Stage.CONNECT
        flow.verdict_id = event.verdict_id
        flow.by_person = event.origin in (Origin.SET, Origin.STRATEGY)
        self._gatekeeper.flows.add(flow)

    def _facts(self, event: VerdictEvent, name: Name) -> Facts:
        """What an alert shows of the flow; the policy is never asked with these."""
        identity = event.identity
        record = self._identifier.identities.record(identity.exe) if identity.exe else None
        return Facts(
            Event.PAYLOAD if event.stage == StageNumber.PAYLOAD else Event.CONNECT,
            Direction.EGRESS,
            self._identifier.dest(event.tuple),
            _NO_CLOCK,
            exe=Exe(record.path if record else ""),
            user=User(identity.uid if identity.tgid else -1),
            name=name,
            process=ProcessFacts(identity.tgid),
        )
