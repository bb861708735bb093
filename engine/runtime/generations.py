"""Which policy is in force: the first one, and each that follows it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from audit.entry import Generation
from audit.log import AuditLog
from engine.alerts.alert import Kind
from engine.config import Config
from engine.errors import EvaluatorError, PolicyError, SallyportError
from engine.model.decision import Verdict
from engine.model.posture import Condition
from engine.policy.bundle import Bundle
from engine.policy.prepare import Policy, Workshop
from engine.ports import Gate, MapFullError
from engine.runtime.force import Force, Numbering, purge, unused_number
from engine.runtime.gatekeeper import Gatekeeper
from engine.runtime.identify import Identifier
from engine.runtime.journal import Journal
from engine.runtime.reload import Switch
from engine.runtime.sources import Sources
from engine.runtime.statefiles import StateDir
from engine.runtime.troubles import Troubles


class Generations:
    """Prepares candidates and puts them in force, one at a time.

    `ready` is awaited before a candidate is put in force, `changed` afterwards, and when nothing came of it.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        workshop: Workshop,
        gate: Gate,
        numbering: Numbering,
        state: StateDir,
        log: AuditLog,
    ) -> None:
        self._config = config
        self._folder = folder
        self._workshop = workshop
        self._gate = gate
        self._numbering = numbering
        self._state = state
        self._log = log
        self._reloading = asyncio.Lock()
        self.restored = False
        self.candidate: Policy | None = None
        """About to be put in force."""
        self.standing = Generation(0, "")

    def first(self, policy: Policy, on_full: Callable[[MapFullError], None]) -> Force:
        """Return the generation to begin with: the one that stands in the maps if it is this very policy, so that a
        restart judges nothing again, else the next one."""
        standing = self._state.standing()
        number = self._gate.generation()
        self.restored = standing is not None and (standing.number, standing.digest, standing.mode) == (
            number, policy.bundle.digest, self._config.mode.value,
        )  # fmt: skip
        self._on_full = on_full
        force = self._force(number if self.restored else unused_number(self._gate), policy)
        if self.restored:
            force.restore()
        return force

    def attach(
        self, gatekeeper: Gatekeeper, identifier: Identifier, journal: Journal, sources: Sources, troubles: Troubles,
        ready: Callable[[], Awaitable[None]], changed: Callable[[], Awaitable[None]],
    ) -> None:  # fmt: skip
        """Take the rooms that the first generation had to be there for."""
        self._ready = ready
        self._changed = changed
        self._gatekeeper = gatekeeper
        self._identifier = identifier
        self._journal = journal
        self._sources = sources
        self._troubles = troubles

    async def begin(self) -> None:
        """Put the first generation in force."""
        force = self._gatekeeper.force
        policy = force.policy
        force.begin()
        await self._sources.prepare(force.number, policy.sources, standing=self.restored)
        self._gate.set_generation(force.number)
        purge(self._gate, force.number)
        await self._sources.retire(force.number)
        self._say(force.number, policy.bundle)
        self._journal.note(
            "policy", number=force.number, digest=policy.bundle.digest, commit=policy.bundle.commit or "",
            rules=[rule.name for rule in policy.rules], restored=self.restored,
        )  # fmt: skip

    async def reload(self) -> dict[str, Any]:
        """Prepare what the folder holds now and put it in force. Whatever fails leaves the generation as it is."""
        async with self._reloading:
            old = self._gatekeeper.force
            try:
                policy = await self._workshop.prepare(self._folder)
            except (PolicyError, EvaluatorError) as error:
                return self._refused(old, error, f"the policy was refused, generation {old.number} stays")
            if policy.bundle.digest == old.policy.bundle.digest:
                await policy.close()
                self._troubles.over("policy")
                if (policy.bundle.commit, policy.bundle.dirty) != (self.standing.commit or None, self.standing.dirty):
                    # The same rules under another commit: the log says so, and nothing needs to be judged again.
                    self._say(old.number, policy.bundle)
                return {"applied": False, "number": old.number, "unchanged": True}
            force = self._force(unused_number(self._gate), policy)
            self.candidate = policy
            switch = Switch(self._gate, self._gatekeeper, self._identifier, self._sources, self._config.mode)
            try:
                # The gate looks for denied sources before the first one stands, and for what comes in before any of it
                # is judged.
                await self._ready()
                done = await switch.to(force)
            except SallyportError as error:
                self.candidate = None
                await policy.close()
                await self._changed()
                what = f"the policy could not be put in force, generation {old.number} stays"
                return self._refused(old, error, what)
            finally:
                self.candidate = None
            self._troubles.over("policy")
            await self._changed()
            self._say(force.number, policy.bundle)
            self._journal.note(
                "policy", number=force.number, digest=policy.bundle.digest, commit=policy.bundle.commit or "",
                replaced=old.policy.bundle.digest, judged=done.judged, cut=done.cut, seconds=round(done.seconds, 4),
            )  # fmt: skip
            return {"applied": True, "number": force.number, "judged": done.judged, "cut": done.cut}

    def _refused(self, old: Force, error: SallyportError, what: str) -> dict[str, Any]:
        self._troubles.begin("policy", f"{what}: {error.message}", Kind.POLICY_BROKEN)
        self._journal.note("policy", refused=True, error=error.diagnostics(), number=old.number)
        return {"applied": False, "number": old.number, "error": error.diagnostics()}

    def _force(self, number: int, policy: Policy) -> Force:
        posture = self._config.posture[Condition.EVALUATOR_FAILED]
        judge = policy.judge(posture=Verdict.ALLOW if posture.passes else Verdict.DENY)
        return Force(number, policy, judge, self._gate, self._numbering, self._on_full)

    def _say(self, number: int, bundle: Bundle) -> None:
        """Say in the log, and to the next engine, what is in force from now on."""
        self.standing = Generation(number, bundle.digest, bundle.commit or "", bundle.dirty)
        self._log.generation = self.standing
        self._state.write_standing(number, bundle.digest, self._config.mode.value)
