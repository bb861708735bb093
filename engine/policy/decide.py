"""The algebra: answers of rules become one decision with the facts that it depends on. No IO.

Deny overrides reject, reject overrides allow, and the default answers when no rule does (deny-overrides of XACML 3.0
appendix C, with reject as a second refusal). A verdict's scope is the set of facts that a flow must share to get the
same verdict:

- a deny has the scope of one rule that denied: whatever the others say, it stands;
- a reject has that of its rule, joined with every rule that could deny;
- an allow has that of its rule, joined with every rule that could deny or reject;
- the default is joined with every rule that could say something else than it.

Joined means: the rule's scope, or only its target_scope where its target is false. Where several rules give the same
verdict, the one with the scope that is kept longest serves as witness. 12,000 random decisions against brute force:
none too narrow (tests/property/policy/test_algebra.py).

Two stages. At connect, rules that read payload facts are not asked, except for a target that can already be known. A
rule that reads `event` is asked, but what it does not refuse at connect it may refuse at the payload, so that only
its refusals count. A refusal stands; an allow or the default stands only if no rule left open could turn it; else
the decision is `undecided`, with the facts from which that follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from engine.model.decision import Decision, Reason, Stage, Verdict
from engine.model.facts import ALL_FACTS, FLOW_FACTS, FREE_FACTS, PAYLOAD_FACTS
from engine.policy.evaluator import Answer
from engine.policy.rule import Rule

CHANGING_FACTS = PAYLOAD_FACTS | {"event"}
"""Facts that differ between the connect and the payload of one flow."""
_REFUSALS = frozenset({Verdict.DENY, Verdict.REJECT})
_BY_DEFAULT = {verdict: (Reason("default", f"the policy's default is {verdict.value}"),) for verdict in Verdict}


@dataclass(frozen=True, slots=True)
class _Part:
    """One rule at this stage.

    `effects`: the verdicts it could have given to a flow like this one. `scope`: the facts that what is known of it
    was decided from. `open`: a later stage may ask it again. `answer`: what it said, None when it was not asked.
    """

    rule: Rule
    answer: Answer | None
    scope: frozenset[str]
    open: bool

    def said(self, verdict: Verdict) -> tuple[str, ...]:
        if self.answer is None or self.answer.target is False:
            return ()
        if verdict is Verdict.DENY:
            return self.answer.deny
        return self.answer.reject if verdict is Verdict.REJECT else self.answer.allow


def asks(rule: Rule, stage: Stage) -> bool | None:
    """Return whether a rule is to be asked at a stage: True all of it, None its target alone, False not at all."""
    if stage is Stage.PAYLOAD or not rule.scope & PAYLOAD_FACTS:
        return True
    if rule.target_scope is not None and not rule.target_scope & CHANGING_FACTS:
        return None
    return False


def decide(
    rules: Sequence[Rule],
    default: Verdict | None,
    answers: Mapping[str, Answer],
    stage: Stage,
    posture: Verdict = Verdict.DENY,
) -> Decision:
    """Return the decision from the answers of the rules that `asks` names for this stage.

    `default` is None for a policy of a single decision, which has no rule beside it. A failed or missing answer
    makes the decision `failed`: a refusal by another rule stands, else `posture` decides; either way for this flow
    only.
    """
    parts: list[_Part] = []
    broken: list[Reason] = []
    for rule in rules:
        asked = asks(rule, stage)
        answer = answers.get(rule.name) if asked is not False else None
        if asked is not False and (answer is None or answer.error):
            broken.append(Reason(rule.name, answer.error if answer is not None else "was not asked"))
            continue
        parts.append(_part(rule, answer, stage, whole=asked is True))
    if broken:
        return _failed(parts, broken, posture)
    if default is None and not any(part.said(verdict) or part.open for part in parts for verdict in Verdict):
        return _failed(parts, [Reason("decision", "there is no decision and no default")], posture)
    for refusal in (Verdict.DENY, Verdict.REJECT):
        sayers = _sayers(parts, refusal)
        if sayers:
            # Closed or open makes no difference: at its stage a refusal is final.
            turning = [] if refusal is Verdict.DENY else _others(parts, sayers[0], {Verdict.DENY})
            return _decision(refusal, sayers, [part for part in turning if part.answer is not None])
    return _passing(parts, default)


def _part(rule: Rule, answer: Answer | None, stage: Stage, *, whole: bool) -> _Part:
    outside = answer is not None and answer.target is False
    if stage is Stage.PAYLOAD:
        return _Part(rule, answer, _facts(rule, outside=outside), open=False)
    known = rule.target_scope is not None and not rule.target_scope & CHANGING_FACTS
    closed = (outside and known) or (whole and not rule.scope & CHANGING_FACTS)
    if whole:
        return _Part(rule, answer, _facts(rule, outside=outside), open=not closed)
    # Only the target was asked, or nothing: what is known follows from the target's facts.
    facts = rule.target_scope if answer is not None and rule.target_scope is not None else frozenset()
    return _Part(rule, answer, facts, open=not closed)


def _facts(rule: Rule, *, outside: bool) -> frozenset[str]:
    return rule.target_scope if outside and rule.target_scope is not None else rule.scope


def _passing(parts: Sequence[_Part], default: Verdict | None) -> Decision:
    """Decide where nobody refuses: an allow, the default, or not yet."""
    # An open rule's allow may be gone at the payload: it does not count yet.
    allowing = [part for part in _sayers(parts, Verdict.ALLOW) if not part.open]
    outcome = Verdict.ALLOW if allowing else default
    turning_effects = _REFUSALS if outcome is Verdict.ALLOW else set(_REFUSALS | {Verdict.ALLOW}) - {outcome}
    pending = [part for part in parts if part.open and part.rule.effects & turning_effects]
    if pending or outcome is None:
        return _undecided(parts, default, allowing, pending)
    own = allowing[0] if allowing else None
    return _decision(outcome, allowing, _others(parts, own, turning_effects))


def _undecided(
    parts: Sequence[_Part], default: Verdict | None, allowing: Sequence[_Part], pending: Sequence[_Part]
) -> Decision:
    """Join what keeps a flow undecided: nobody refuses, and some open rule stays open and able to turn the outcome."""
    asked = [part for part in parts if asks(part.rule, Stage.CONNECT)]
    joined = [part for part in asked if part.rule.effects & _REFUSALS]
    if default is not Verdict.ALLOW:
        # Whether an allow or the default is at stake decides which open rules matter.
        joined += allowing[:1] or [part for part in asked if Verdict.ALLOW in part.rule.effects and not part.open]
        # A rule that reads `event` gives no allow here, whatever it says: its facts matter by its being open only.
    witness = min(pending, key=lambda part: _breadth(_openness(part)), default=None)
    scope = frozenset().union(*(part.scope for part in joined))
    if witness is not None:
        scope |= _openness(witness)
    return Decision(Verdict.UNDECIDED, frozenset(scope), (), _lifetime(joined))


def _openness(part: _Part) -> frozenset[str]:
    """Return the facts that keep a rule open: those of a target that can be known at connect, else none."""
    target = part.rule.target_scope
    if target is None or target & CHANGING_FACTS:
        return frozenset()
    return target


def _sayers(parts: Iterable[_Part], verdict: Verdict) -> list[_Part]:
    """Return the rules that gave a verdict, the one whose scope is kept longest first."""
    return sorted((part for part in parts if part.said(verdict)), key=lambda part: _breadth(part.scope))


def _breadth(scope: frozenset[str]) -> tuple[bool, bool, int, tuple[str, ...]]:
    """Order scopes by how soon they stop serving: this flow only, until the clock's bucket ends, by key parts."""
    kept = scope - FREE_FACTS
    return bool(kept & FLOW_FACTS), "clock" in scope, len(kept), tuple(sorted(scope))


def _others(parts: Iterable[_Part], own: _Part | None, effects: Iterable[Verdict]) -> list[_Part]:
    wanted = frozenset(effects)
    return [part for part in parts if part is not own and part.rule.effects & wanted]


def _decision(verdict: Verdict, sayers: Sequence[_Part], turning: Sequence[_Part]) -> Decision:
    joined = [*sayers[:1], *turning]
    scope = frozenset().union(*(part.scope for part in joined))
    if not sayers:
        return Decision(verdict, frozenset(scope), _BY_DEFAULT[verdict], _lifetime(joined))
    reasons = [Reason(part.rule.name, message) for part in sayers for message in part.said(verdict)]
    return Decision(verdict, frozenset(scope), tuple(reasons), _lifetime(joined))


def _lifetime(joined: Iterable[_Part]) -> float | None:
    bounds = [part.answer.ttl for part in joined if part.answer is not None and part.answer.ttl is not None]
    return min(bounds, default=None)


def _failed(parts: Sequence[_Part], broken: Sequence[Reason], posture: Verdict) -> Decision:
    reasons = [Reason("posture", f"rule {reason.rule} gave no answer: {reason.message}") for reason in broken]
    for refusal in (Verdict.DENY, Verdict.REJECT):
        sayers = _sayers(parts, refusal)
        if sayers:
            said = [Reason(part.rule.name, message) for part in sayers for message in part.said(refusal)]
            return Decision(refusal, ALL_FACTS, (*said, *reasons), 0.0, failed=True)
    return Decision(posture, ALL_FACTS, tuple(reasons), 0.0, failed=True)
