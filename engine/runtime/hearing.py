"""One flow's hearing: who it belongs to, the facts, a person's word, the policy's answer, and the posture where nobody
has one."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from engine.abi.numbers import FlowFlag
from engine.model.decision import Decision, Reason, Stage, Verdict
from engine.model.facts import FLOW_FACTS, Event, Facts, Name, NameState, Transport
from engine.model.posture import TABLE, Condition, Posture
from engine.policy.judge import UNSETTLED
from engine.runtime.flows import Flow
from engine.runtime.force import Force
from engine.runtime.identify import Identifier
from engine.runtime.journal import Journal
from engine.runtime.orders import Orders
from engine.runtime.owners import Owners

_IDENTITY = frozenset({"exe", "cgroup", "user", "process"})
_POSTURES = {NameState.PARTIAL: Condition.PARSER_PARTIAL, NameState.MALFORMED: Condition.PARSER_MALFORMED}
# A plain number: arithmetic on an enumeration is Python code, and a held packet waits for it.
_NO_STORAGE = int(FlowFlag.NO_STORAGE)


class Hearing:
    """Asks on behalf of the gatekeeper, and of a switch to another generation. Writes nothing to the gate."""

    def __init__(
        self, identifier: Identifier, owners: Owners, journal: Journal, posture: Posture, orders: Orders
    ) -> None:
        self._identifier = identifier
        self._owners = owners
        self._journal = journal
        self._posture = posture
        self._orders = orders

    # ---- who

    def find_listener(self, flow: Flow, force: Force) -> None:
        """Whoever listens is who this flow belongs to on this side: looked for only where the policy asks."""
        if flow.held.identity.tgid == 0 and force.judge.reads & _IDENTITY:
            found = self._owners.listener(flow.tuple)
            if found is not None:
                flow.held = flow.held._replace(identity=self._identifier.adopt(found))

    def accepted(self, flow: Flow) -> bool:
        """Is what the gate took for a flow from here one that a listener of this host accepted? With storage the gate
        saw it connect: whoever listens on its local port did not accept it."""
        return bool(flow.held.flags & _NO_STORAGE) and self._owners.complete(flow)

    def adopt(self, flow: Flow) -> None:
        """Follow a program that no hook has seen."""
        if flow.held.identity.tgid and not flow.held.identity.exec_stamp:
            flow.held = flow.held._replace(identity=self._identifier.adopt(flow.held.identity))

    # ---- what

    async def facts(self, flow: Flow, event: Event, name: Name | None, force: Force, moment: datetime) -> Facts:
        """Return the flow's facts as the policy of `force` may read them, at a local time."""
        reads = force.judge.reads
        facts = await self._identifier.facts(
            event, flow.tuple, flow.held, flow.exe, moment, name=name,
            hello=flow.read_hello() if "hello" in reads else None, http=flow.http, began=flow.began, reads=reads,
        )  # fmt: skip
        flow.began = flow.began or facts.dest_names
        if flow.facts is not None and flow.facts.process.comm and not facts.process.pid:
            # Known when it began: who opened a connection may have handed it on and ended since.
            facts = replace(facts, process=flow.facts.process)
        return facts

    async def decide(self, flow: Flow, stage: Stage, event: Event, force: Force) -> tuple[Facts, Decision]:
        """Return the facts of a flow whose packet waits, and what is decided from them."""
        flow.exe = flow.exe or self._identifier.executable(flow.held.identity)
        moment = now()
        facts = await self.facts(flow, event, flow.name, force, moment)
        decision = self._ordered(flow)
        if decision is None:
            judged = await force.judge.decide(facts, stage, now=moment)
            # Asked again: the word may have been given while the policy was thinking.
            decision = self._ordered(flow) or self.by_posture(judged, facts, flow, force)
        return facts, decision

    def _ordered(self, flow: Flow) -> Decision | None:
        """A person's word about the name: the gate reads it itself where it can, and hands over what it cannot read."""
        named = flow.name is not None and flow.name.value and not flow.inbound
        order = self._orders.about_name(flow.name.value) if named and flow.name else None
        flow.by_person = order is not None
        if order is None:
            return None
        reason = Reason("verdict set", order.reason or f"name {order.value} {order.word}")
        return Decision(Verdict(order.word), FLOW_FACTS | {"name"}, (reason,))

    def by_posture(self, decision: Decision, facts: Facts, flow: Flow, force: Force) -> Decision:
        """Return the decision, or the refusal of a posture that is closed: for who is gone, for what no rule speaks
        about, and for everything while the log cannot be written."""
        conditions: list[Condition | None] = []
        if decision.scope & _IDENTITY:
            gone = self._identifier.gone(flow.held.identity, facts, force.judge.reads)
            if gone & decision.scope:
                conditions.append(Condition.IDENTITY_GONE)
                # Judged as unknown: whoever has these facts next may well be known, as may the next one to send on a
                # socket of datagrams that several share.
                ttl = decision.ttl
                if facts.dest.transport is not Transport.TCP:
                    ttl = UNSETTLED if ttl is None else min(ttl, UNSETTLED)
                decision = replace(decision, scope=decision.scope | {"process"}, ttl=ttl)
        if decision.verdict is not Verdict.ALLOW:
            return decision
        conditions.append(self._unspoken(decision, facts))
        if self._journal.failing:
            # Last: an open posture must not take the place of a closed one.
            conditions.append(Condition.DISK_FULL)
        closed = (condition for condition in conditions if condition and not self._posture[condition].passes)
        condition = next(closed, None)
        if condition is None:
            return decision
        reason = Reason("posture", f"{condition.value} is closed: {TABLE[condition].when}")
        return replace(decision, verdict=Verdict.DENY, scope=decision.scope | FLOW_FACTS, reasons=(reason,))

    @staticmethod
    def _unspoken(decision: Decision, facts: Facts) -> Condition | None:
        """Return what the gate could not read of a flow that no rule spoke about."""
        if not all(reason.rule == "default" for reason in decision.reasons):
            return None
        if facts.dest.transport is Transport.OTHER:
            return Condition.UNKNOWN_PROTOCOL
        return _POSTURES.get(facts.name.state)


def now() -> datetime:
    """Return the host's local time, with its zone."""
    return datetime.now().astimezone()
