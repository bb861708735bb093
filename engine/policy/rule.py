"""A rule: one folder, one package `sallyport.rules.<name>`, and the facts that it may read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from engine.model.decision import Verdict
from engine.policy.frames import Entry

RULES_PACKAGE = ("sallyport", "rules")
ROOT_PACKAGE = ("sallyport",)
DECISION = "decision"
"""The name that a policy of a single `data.sallyport.decision` goes by."""


@dataclass(frozen=True)
class Rule:
    """A rule as declared and as read.

    `scope`: the facts it gets. `target_scope`: the facts that its target gets to see decided by, None without a
    target. `effects`: the verdicts it can give. `reads`: every input path it can reach, dotted ("exe.sha256"; "exe"
    alone stands for all its subfields; a bare `input` is every fact). `data`: the data paths it reads. `file`: where
    its scope is declared, or its first definition.
    """

    name: str
    package: str
    scope: frozenset[str]
    file: str
    target_scope: frozenset[str] | None = None
    effects: frozenset[Verdict] = frozenset()
    has_ttl: bool = False
    reads: frozenset[str] = frozenset()
    data: frozenset[str] = frozenset()
    decision: bool = False

    def entry(self) -> Entry:
        """Return what an evaluator must know of it."""
        return Entry(
            self.name,
            self.package,
            self.target_scope is not None,
            Verdict.DENY in self.effects,
            Verdict.REJECT in self.effects,
            Verdict.ALLOW in self.effects,
            self.has_ttl,
            self.decision,
        )

    def reads_field(self, path: str) -> bool:
        """Return whether the rule can see this subfield ("exe.sha256"), by itself or with its whole fact."""
        return path in self.reads or path.partition(".")[0] in self.reads


@dataclass(frozen=True)
class Widening:
    """How far verdicts of one kind will be kept: the joined scope, and which rules add which facts to it."""

    verdict: str
    scope: frozenset[str]
    added_by: dict[str, frozenset[str]]

    def __str__(self) -> str:
        facts = ", ".join(sorted(self.scope)) or "no fact at all"
        by = "; ".join(f"{name} adds {', '.join(sorted(facts))}" for name, facts in sorted(self.added_by.items()))
        return f"{self.verdict} will be kept under {facts}" + (f" ({by})" if by else "")


def widenings(rules: Iterable[Rule], default: Verdict | None, inbound: Verdict | None = None) -> list[Widening]:
    """Return the scopes that verdicts will have: each rule's own, allows and the default joined.

    The joined ones are the widest that can come out: a rule whose target is false adds its target's facts only.
    """
    table = sorted(rules, key=lambda rule: rule.name)
    found = [Widening(f"denies by {rule.name}", rule.scope, {}) for rule in table if Verdict.DENY in rule.effects]
    for rule in table:
        if Verdict.REJECT in rule.effects:
            turning = [other for other in table if other is not rule and Verdict.DENY in other.effects]
            found.append(_joined(f"rejects by {rule.name}", rule.scope, turning))
    for rule in table:
        if Verdict.ALLOW in rule.effects:
            turning = [other for other in table if other is not rule and other.effects & {Verdict.DENY, Verdict.REJECT}]
            found.append(_joined(f"allows by {rule.name}", rule.scope, turning))
    for word, verdict in (("default", default), ("default for what comes in", inbound)):
        if verdict is not None:
            turning = [rule for rule in table if rule.effects - {verdict}]
            found.append(_joined(f"the {word} ({verdict.value})", frozenset(), turning))
    return found


def _joined(verdict: str, own: frozenset[str], turning: list[Rule]) -> Widening:
    added = {rule.name: rule.scope - own for rule in turning if rule.scope - own}
    return Widening(verdict, own.union(*(rule.scope for rule in turning)), added)
