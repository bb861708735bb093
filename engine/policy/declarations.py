"""What a policy declares: the rules with their scopes, and the default."""

from __future__ import annotations

import difflib
from collections.abc import Container, Sequence
from dataclasses import dataclass

from engine.model.decision import Verdict
from engine.model.facts import ALL_FACTS
from engine.policy import schema
from engine.policy.findings import Finding
from engine.policy.reads import Program, Uses
from engine.policy.rule import DECISION, ROOT_PACKAGE, RULES_PACKAGE, Rule
from engine.policy.sources import WORDS
from engine.policy.syntax import Definition, Path, Place, kind

_EFFECTS = {"deny": Verdict.DENY, "reject": Verdict.REJECT, "allow": Verdict.ALLOW}


@dataclass(frozen=True)
class Declared:
    """A rule with the definitions that its answers come from (`bodies` includes the target's)."""

    rule: Rule
    bodies: tuple[Definition, ...]
    target: tuple[Definition, ...]


def default_verdict(program: Program, findings: list[Finding], *, incomplete: bool) -> Verdict | None:
    """Return the policy's default; a missing or unusable one is a finding. None with a single decision.

    `incomplete`: a file could not be parsed, so what is missing may stand there and is not reported.
    """
    definitions = program.at((*ROOT_PACKAGE, "default_verdict"))
    decision = program.at((*ROOT_PACKAGE, DECISION))
    if decision:
        rules = [module for module in program.modules if module.package[:2] == RULES_PACKAGE]
        if definitions or rules:
            findings.append(
                decision[0].place.finding(
                    "a policy is either data.sallyport.decision or rules with a default, not both",
                    "remove the decision, or the rules and the default_verdict",
                )
            )
        return None
    if not definitions:
        if not incomplete:
            mend = 'add to package sallyport: default_verdict := "deny" (or "allow", "reject")'
            findings.append(Finding("sallyport.rego", 0, 0, "the policy does not say its default", mend))
        return None
    return _plain_verdict("default_verdict", definitions, findings)


def inbound_verdict(program: Program, findings: list[Finding]) -> Verdict | None:
    """Return the policy's default for what comes in; None when it does not say one, and so does not judge it."""
    definitions = program.at((*ROOT_PACKAGE, "inbound_verdict"))
    if not definitions:
        return None
    if program.at((*ROOT_PACKAGE, DECISION)):
        findings.append(
            definitions[0].place.finding(
                "a policy of a single decision judges what leaves only",
                "write rules with a default_verdict beside the inbound_verdict, or remove it",
            )
        )
        return None
    return _plain_verdict("inbound_verdict", definitions, findings)


def _plain_verdict(name: str, definitions: Sequence[Definition], findings: list[Finding]) -> Verdict | None:
    definition = definitions[0]
    if len(definitions) > 1:
        findings.append(definitions[1].place.finding(f"a second {name}", "keep one"))
    value = kind(definition.value) if definition.value is not None else None
    said = value[1]["value"] if value is not None and value[0] == "String" else None
    if definition.bodies or definition.form != "value" or said not in ("allow", "deny", "reject"):
        findings.append(
            definition.place.finding(f"{name} is no plain verdict", f'write {name} := "allow", "deny" or "reject"')
        )
        return None
    return Verdict(said)


def declared_rules(
    program: Program, findings: list[Finding], *, incomplete: bool, packages: Container[Path] | None = None
) -> list[Declared]:
    """Return the rules, or those of some packages; what is wrong with their declarations goes to `findings`."""
    decision = program.at((*ROOT_PACKAGE, DECISION))
    found: list[Declared] = []
    if decision and (packages is None or ROOT_PACKAGE in packages):
        found.append(_decision(program, decision))
    places: dict[Path, Place] = {}
    for module in program.modules:
        wanted = packages is None or module.package in packages
        if wanted and module.package[:2] == RULES_PACKAGE and len(module.package) == 3:
            places.setdefault(module.package, module.package_place)
    for package, place in sorted(places.items()):
        if package[2] == DECISION or package[2] in ("default", "posture"):
            findings.append(place.finding(f"no rule can be named {package[2]}", "rename the package"))
            continue
        declared = _rule(program, package, place, findings)
        if declared is not None:
            found.append(declared)
    rootless = not any(program.at((*ROOT_PACKAGE, word)) for word in (*WORDS, "default_verdict"))
    if not found and not places and rootless and not incomplete:
        findings.append(Finding(".", 0, 0, "the policy has no rule", "add package sallyport.rules.<name>"))
    return found


def _decision(program: Program, definitions: list[Definition]) -> Declared:
    uses = program.closure(definitions)
    reads = _reads(uses)
    rule = Rule(
        DECISION,
        "data.sallyport",
        frozenset(read.split(".")[0] for read in reads),
        definitions[0].place.file,
        effects=frozenset(_EFFECTS.values()),
        reads=reads,
        data=_data(program, uses),
        decision=True,
    )
    return Declared(rule, tuple(definitions), ())


def _rule(program: Program, package: Path, place: Place, findings: list[Finding]) -> Declared | None:
    name = package[2]
    before = len(findings)
    scope = _scope(program, (*package, "scope"), findings)
    if scope is None and len(findings) == before:
        findings.append(place.finding(f"rule {name} declares no scope", 'add scope := {"dest"} with what it reads'))
    target_scope = _scope(program, (*package, "target_scope"), findings)
    target = program.at((*package, "target"))
    if target and not program.at((*package, "target_scope")):
        findings.append(
            target[0].place.finding(f"rule {name} has a target but no target_scope", 'add target_scope := {"dest"}')
        )
    if target_scope is not None and not target:
        findings.append(place.finding(f"rule {name} has a target_scope but no target", "add `target if ...`"))
    if scope is not None and target_scope is not None and not target_scope <= scope:
        extra = ", ".join(sorted(target_scope - scope))
        findings.append(
            program.at((*package, "target_scope"))[0].place.finding(
                f"target_scope of rule {name} is not within its scope: {extra}", "add it to the scope"
            )
        )
    findings += _misshapen(target, "target is no condition", "write `target if ...`")
    effects = set()
    bodies = list(target)
    for word, verdict in _EFFECTS.items():
        definitions = program.at((*package, word))
        below = [path for path in program.reached((*package, word)) if path.path != (*package, word)]
        if definitions or below:
            effects.add(verdict)
            bodies += definitions
        findings += [
            definition.place.finding(f"{word} is no set of messages", f"write `{word} contains message if ...`")
            for definition in [*definitions, *below]
            if definition.form != "set" or definition.path != (*package, word)
        ]
    ttl = program.at((*package, "ttl"))
    findings += _misshapen(ttl, "ttl is no number", "write `ttl := 60`, in seconds")
    bodies += ttl
    if not effects:
        findings.append(
            place.finding(
                f"rule {name} neither denies nor allows anything", "add `deny contains message if ...`, or remove it"
            )
        )
    uses = program.closure(bodies)
    if scope is None or not effects:
        return None
    rule = Rule(
        name,
        f"data.{'.'.join(package)}",
        scope,
        place.file,
        target_scope if target else None,
        frozenset(effects),
        bool(ttl),
        _reads(uses),
        _data(program, uses),
    )
    return Declared(rule, tuple(bodies), tuple(target))


def _misshapen(definitions: Sequence[Definition], message: str, mend: str) -> list[Finding]:
    return [
        definition.place.finding(message, mend)
        for definition in definitions
        if definition.form not in ("value", "default")
    ]


def _scope(program: Program, path: Path, findings: list[Finding]) -> frozenset[str] | None:
    """Return the declared set of facts; None when it is missing (no finding) or unusable (with a finding)."""
    definitions = program.at(path)
    word = path[-1]
    if not definitions:
        return None
    if len(definitions) > 1:
        findings.append(definitions[1].place.finding(f"a second {word}", "keep one"))
    definition = definitions[0]
    value = kind(definition.value) if definition.value is not None else None
    if definition.form != "value" or definition.bodies or value is None or value[0] != "Set":
        findings.append(
            definition.place.finding(f"{word} is no plain set of facts", f'write {word} := {{"dest", "exe"}}')
        )
        return None
    facts = _facts(definition, value[1]["items"], word, findings)
    if not facts:
        findings.append(definition.place.finding(f"{word} is empty", "name at least one fact"))
        return None
    return facts


def _facts(definition: Definition, items: Sequence[object], word: str, findings: list[Finding]) -> frozenset[str]:
    facts: set[str] = set()
    for item in items:
        found = kind(item)
        fact = found[1]["value"] if found is not None and found[0] in ("String", "RawString") else None
        if fact not in ALL_FACTS:
            near = difflib.get_close_matches(str(fact), ALL_FACTS, 1)
            findings.append(
                definition.place.finding(
                    f"{word} names no fact: {fact}",
                    f"did you mean {near[0]}?" if near else f"facts are {', '.join(sorted(ALL_FACTS))}",
                )
            )
            # Kept out of the set; the finding already refuses the policy.
            continue
        if fact in facts:
            findings.append(definition.place.finding(f"{word} names {fact} twice", "name it once"))
        facts.add(fact)
    return frozenset(facts)


def _reads(uses: Uses) -> frozenset[str]:
    reads: set[str] = set()
    for read in uses.inputs:
        if not read.path:
            reads |= ALL_FACTS
        elif read.path[0] in schema.SCHEMA:
            reads.add(schema.canonical_read(read.path))
    return frozenset(reads)


def _data(program: Program, uses: Uses) -> frozenset[str]:
    return frozenset(".".join(read.path) for read in uses.data if not program.reached(read.path))
