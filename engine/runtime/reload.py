"""From one generation to the next.

The order is argued by the harm that another order would do:

1. The plan and the new generation's entries are written first: a number without them would hold every flow.
2. Flows in progress are judged under the new policy before it is in force; the allowed ones get their verdict, so that
   the switch holds none of them up.
3. Sockets of flows that are now denied are ended before the drop takes force: afterwards their resets would be all that
   the peer gets to see.
4. One write puts the generation in force.
5. What began between 2 and 4 is judged and cut now.
6. The old entries go some seconds later, when no program can still be reading them.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from engine.abi.numbers import FlowFlag
from engine.config import Mode
from engine.errors import SallyportError
from engine.model.decision import Decision, Stage, Verdict
from engine.model.facts import Event, Name, NameState
from engine.ports import Gate
from engine.protocols import packet as packets
from engine.runtime.entries import numbers, place, reach
from engine.runtime.flows import Flow
from engine.runtime.force import Force
from engine.runtime.gatekeeper import Gatekeeper
from engine.runtime.hearing import now
from engine.runtime.identify import Identifier
from engine.runtime.sources import Sources

_KEEP_OLD = 5.0
"""Seconds: far beyond any program run, and time for frames held under the old generation to be answered."""


@dataclass
class Switched:
    """What a switch did to the flows in progress."""

    judged: int = 0
    cut: int = 0
    seconds: float = 0.0


class Switch:
    """Puts a prepared generation in force."""

    def __init__(
        self, gate: Gate, gatekeeper: Gatekeeper, identifier: Identifier, sources: Sources, mode: Mode
    ) -> None:
        self._gate = gate
        self._sources = sources
        self._gatekeeper = gatekeeper
        self._identifier = identifier
        self._enforcing = mode is Mode.ENFORCE
        self._closing: set[asyncio.Task[None]] = set()

    async def to(self, force: Force) -> Switched:
        began = time.monotonic()
        done = Switched()
        gatekeeper = self._gatekeeper
        old = gatekeeper.force
        force.begin()
        try:
            await self._sources.prepare(force.number, force.policy.sources)
        except SallyportError:
            # Nobody would ever look it up, or remove it.
            force.withdraw()
            raise
        await self._judge_all(force, done)
        self._gate.set_generation(force.number)
        gatekeeper.force = force
        gatekeeper.previous = old
        await self._judge_all(force, done)
        done.seconds = time.monotonic() - began
        asyncio.get_running_loop().call_later(_KEEP_OLD, self._retire, old)
        return done

    async def _judge_all(self, force: Force, done: Switched) -> None:
        for flow in self._gatekeeper.flows:
            decision = flow.decision
            if flow.generation == force.number or decision is None or flow.by_person:
                continue
            if flow.inbound and not force.judges_inbound:
                continue  # the gate lets it be
            if decision.verdict is Verdict.UNDECIDED or flow.waiting.judging is not None:
                continue  # its next packet, or the judging under way, meets the new generation by itself
            stage, judged = await self._judge(flow, force)
            done.judged += 1
            observed = not self._enforcing or bool(flow.held.flags & (FlowFlag.CLONED | FlowFlag.OBSERVE))
            costs = decision.verdict.passes and not judged.verdict.passes
            if costs and judged.unanswered and flow.tuple.transport == packets.TCP:
                # Nobody has said that it must end. What it sends next waits for an answer.
                self._gatekeeper.notices.decided(flow, judged, stage, observed=observed)
                continue
            where = reach(judged, flow.facts, stage, numbers(flow), force.number) if flow.facts else None
            if where is not None:
                flow.verdict_id = force.install(judged, where, place(flow, force.number), flow.name or Name())
            flow.decision, flow.generation, flow.stage = judged, force.number, stage
            if costs and flow.facts is not None:
                if not observed and self._gatekeeper.cut(flow):
                    done.cut += 1
                self._gatekeeper.notices.decided(flow, judged, stage, observed=observed)

    async def _judge(self, flow: Flow, force: Force) -> tuple[Stage, Decision]:
        """Judge a flow in progress as the new policy would have from its start."""
        hearing, moment = self._gatekeeper.hearing, now()
        transport = flow.tuple.transport
        flow.exe = flow.exe or self._identifier.executable(flow.held.identity)
        if transport == packets.TCP:
            opening = Event.ACCEPT if flow.inbound else Event.CONNECT
            flow.facts = await hearing.facts(flow, opening, None, force, moment)
            judged = await force.judge.decide(flow.facts, Stage.CONNECT, now=moment)
            if judged.verdict is not Verdict.UNDECIDED:
                return Stage.CONNECT, hearing.by_posture(judged, flow.facts, flow, force)
        event = Event.DATAGRAM if transport == packets.UDP else Event.PAYLOAD if flow.name else Event.LATE
        name = flow.name or Name("", NameState.UNSEEN)
        flow.facts = await hearing.facts(flow, event, name, force, moment)
        judged = await force.judge.decide(flow.facts, Stage.PAYLOAD, now=moment)
        return Stage.PAYLOAD, hearing.by_posture(judged, flow.facts, flow, force)

    def _retire(self, old: Force) -> None:
        old.withdraw()
        task = asyncio.get_running_loop().create_task(self._close(old))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _close(self, old: Force) -> None:
        await self._sources.retire(self._gatekeeper.force.number)
        await old.policy.close()
