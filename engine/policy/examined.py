"""A policy that passed every check, without and with an evaluator that holds it."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.model.decision import Verdict
from engine.policy.bundle import Bundle
from engine.policy.evaluator import Evaluator
from engine.policy.findings import Finding
from engine.policy.frames import Part
from engine.policy.judge import MEMORY, Judge
from engine.policy.regotest import TestResult
from engine.policy.rule import Rule, Widening, widenings
from engine.policy.sources import SourceRules


@dataclass(frozen=True)
class Examined:
    """A policy that passed every check. `tests`: the results of its own Rego tests, empty when they were not run.
    `parts`: the rules as an evaluator takes them, each with what it can reach."""

    bundle: Bundle
    rules: tuple[Rule, ...]
    default: Verdict | None
    sources: SourceRules
    warnings: tuple[Finding, ...]
    tests: tuple[TestResult, ...] = ()
    parts: tuple[Part, ...] = ()
    inbound: Verdict | None = None
    """The default for what comes in; None: it is not judged by rules."""

    @property
    def widenings(self) -> list[Widening]:
        """How far verdicts will be kept, and which rule widens them."""
        return widenings(self.rules, self.default, self.inbound)

    @property
    def identity(self) -> str:
        """The generation's name in logs: the git commit, marked when the folder differs from it, or the digest."""
        if self.bundle.commit is None:
            return f"sha256:{self.bundle.digest}"
        return f"{self.bundle.commit}-dirty" if self.bundle.dirty else self.bundle.commit

    @property
    def reads_names(self) -> bool:
        """Return whether any rule can see which names DNS answered."""
        return any("dest_names" in rule.scope for rule in self.rules)

    def reads_field(self, path: str) -> bool:
        """Return whether any rule can see a subfield, such as "exe.sha256"."""
        return any(rule.reads_field(path) for rule in self.rules)


@dataclass(frozen=True)
class Policy(Examined):
    """A policy with an evaluator that holds it."""

    evaluator: Evaluator = field(kw_only=True)

    def judge(self, *, posture: Verdict = Verdict.DENY, memory: int = MEMORY) -> Judge:
        """Return a judge for this generation; `posture` is its verdict where the evaluator gives no answer."""
        return Judge(self.evaluator, self.rules, self.default, inbound=self.inbound, posture=posture, memory=memory)

    async def close(self) -> None:
        """End the evaluator."""
        await self.evaluator.close()
