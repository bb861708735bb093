"""What is said of a decision: an entry in the log, and an alert where it refuses."""

from __future__ import annotations

import time
from collections.abc import Callable

from engine.alerts.alert import Alert, Kind, Severity
from engine.alerts.dispatcher import Dispatcher
from engine.model.decision import Decision, Reason, Stage, Verdict
from engine.model.facts import Direction, Event, Facts, Name, NameState
from engine.runtime.flows import Flow
from engine.runtime.identify import Identifier, direction_of
from engine.runtime.journal import Journal


class Notices:
    """`generation`: the number in force, which alerts carry."""

    def __init__(
        self, identifier: Identifier, journal: Journal, alerts: Dispatcher, generation: Callable[[], int]
    ) -> None:
        self._identifier = identifier
        self._journal = journal
        self._alerts = alerts
        self._generation = generation

    def decided(self, flow: Flow, decision: Decision, stage: Stage, *, observed: bool, held_ns: int = 0) -> None:
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
        if decision.failed:
            why = decision.reasons[0].message if decision.reasons else "?"
            self._alert(Kind.EVALUATOR_FAILED, f"the evaluator gave no usable answer: {why}")

    def violation(
        self, facts: Facts, verdict: Verdict, reasons: tuple[Reason, ...], *, observed: bool, repeat: bool = False
    ) -> None:
        """Alert on a refusal. `repeat`: by a verdict that stood."""
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
                generation=self._generation(),
            )
        )

    def fault(self, error: BaseException) -> None:
        """A fault of ours: the frames of a flow stay held, which is closed, and everybody hears of it."""
        self._alert(Kind.POSTURE, f"a flow could not be judged: {error!r}")
        self._journal.note("failure", what="judging a flow", error=repr(error))

    def _alert(self, kind: Kind, summary: str) -> None:
        self._alerts.submit(Alert(time.time_ns(), kind, Severity.CRITICAL, summary, generation=self._generation()))


def _who(facts: Facts) -> str:
    if facts.direction is Direction.INGRESS:
        return facts.source.address
    return facts.exe.path or "an unknown program"
