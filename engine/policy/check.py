"""The static check: everything about a policy that can be refused without evaluating it.

A policy that passes means the same in both evaluators, depends only on what it declares, and cannot be volatile.
Every file is read and every lint runs, so that an author sees all errors at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from engine.model.decision import Verdict
from engine.model.facts import ALL_FACTS
from engine.policy import schema
from engine.policy.bundle import Bundle, Module
from engine.policy.calls import call_findings
from engine.policy.declarations import Declared, declared_rules, default_verdict, inbound_verdict
from engine.policy.findings import Finding
from engine.policy.reads import Program, Read
from engine.policy.rule import ROOT_PACKAGE, RULES_PACKAGE, Rule
from engine.policy.source_check import source_findings
from engine.policy.syntax import (
    Definition,
    ParsedModule,
    Path,
    kind,
    long_lines,
    nodes,
    read_module,
    words_to_finding,
)
from engine.policy.totality import Totality

_MISREAD_KEYWORDS = frozenset({"not", "and", "or"})


@dataclass(frozen=True)
class Checked:
    """The outcome of the static check. With an error among `findings` the rest is what could be made out.

    `default` is None for a policy of a single decision, `inbound` where what comes in is not judged.
    """

    findings: tuple[Finding, ...]
    rules: tuple[Rule, ...]
    default: Verdict | None
    program: Program
    tests: tuple[ParsedModule, ...]
    inbound: Verdict | None = None

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if not finding.warning)


def check(bundle: Bundle, trees: dict[str, tuple[bytes, str]]) -> Checked:
    """Check a bundle. `trees`: for each file of modules and tests its syntax tree or the parser's words."""
    findings: list[Finding] = []
    modules = _parsed(bundle.modules, trees, findings)
    tests = _parsed(bundle.tests, trees, findings)
    broken = any(not finding.warning for finding in findings)
    program = Program(modules)
    findings += _findings(program, modules, tests, bundle)
    default = default_verdict(program, findings, incomplete=broken)
    declared = declared_rules(program, findings, incomplete=broken)
    return _checked(program, declared, default, findings, tests)


def check_package(program: Program, package: Path, tests: list[ParsedModule], bundle: Bundle) -> Checked:
    """Check one package of a program that holds everything which the package can reach; `tests`: those of the
    package, if it is one of tests. What it says of the package is what `check` says of it within the whole policy."""
    own = [] if tests else [module for module in program.modules if module.package == package]
    findings = _findings(program, own, tests, bundle)
    default = default_verdict(program, findings, incomplete=True) if package == ROOT_PACKAGE and own else None
    declared = declared_rules(program, findings, incomplete=True, packages={package}) if own else []
    return _checked(program, declared, default, findings, tests)


def _findings(
    program: Program, modules: list[ParsedModule], tests: list[ParsedModule], bundle: Bundle
) -> list[Finding]:
    findings: list[Finding] = []
    for module in modules:
        findings += _module_findings(program, module, bundle)
    findings += _data_at_rules(modules, bundle)
    findings += _recursion(program, modules)
    findings += _packages(program, modules, tests)
    return findings


def _checked(
    program: Program,
    declared: list[Declared],
    default: Verdict | None,
    findings: list[Finding],
    tests: list[ParsedModule],
) -> Checked:
    for rule in declared:
        findings += _scope_findings(program, rule)
    findings += source_findings(program)
    inbound = inbound_verdict(program, findings)
    return Checked(
        tuple(sorted(set(findings))),
        tuple(item.rule for item in declared),
        default,
        program,
        tuple(tests),
        inbound,
    )


def _parsed(
    modules: tuple[Module, ...], trees: dict[str, tuple[bytes, str]], findings: list[Finding]
) -> list[ParsedModule]:
    read: list[ParsedModule] = []
    for module in modules:
        too_long = long_lines(module)
        tree, words = trees[module.file]
        findings += too_long
        if not words:
            read.append(read_module(module, tree))
        elif not too_long:
            findings.append(words_to_finding(words, module.file, "mend the syntax (`opa fmt` may say more)"))
    return read


def _module_findings(program: Program, module: ParsedModule, bundle: Bundle) -> Iterator[Finding]:
    for path, place in module.keywords:
        if path[:2] == ("future", "keywords") and path[-1] in _MISREAD_KEYWORDS:
            yield place.finding(
                f"import of future.keywords.{path[-1]} is accepted and misread by the embedded evaluator",
                "remove it and write the condition as rules of its own",
            )
    reader = program.reader(module)
    totality = Totality(program, module, bundle.data)
    for definition in module.definitions:
        uses = program.uses(definition)
        for call in uses.calls:
            yield from call_findings(call, program, module)
        for read in uses.inputs:
            yield from _input_findings(read)
        for read in uses.data:
            yield from _data_findings(program, module, read, bundle.data)
        for body in [list(definition.bodies), definition.value]:
            yield from totality.findings(body)
            yield from _operator_findings(body, reader.place)
        for modifiers in _with_modifiers(list(definition.bodies)) + _with_modifiers(definition.value):
            yield reader.place(modifiers["refr"]).finding(
                "`with` outside tests makes a rule depend on what it was not given", "use `with` in *_test.rego only"
            )


def _input_findings(read: Read) -> Iterator[Finding]:
    if read.path and schema.lookup(read.path) is None:
        known = schema.suggestions(read.path)
        wrong = read.path[0] if read.path[0] not in schema.SCHEMA else read.path[min(1, len(read.path) - 1)]
        near = difflib.get_close_matches(wrong, known, 1)
        yield read.place.finding(
            f"no fact input.{'.'.join(read.path)}",
            f"did you mean {near[0]}?" if near else f"known here: {', '.join(known) or 'nothing below'}",
        )


def _data_findings(program: Program, module: ParsedModule, read: Read, data: dict[str, Any]) -> Iterator[Finding]:
    if not read.path:
        yield read.place.finding("bare `data` reads every rule", "name the document that is meant")
        return
    own_rule = module.package[:3] if module.package[:2] == RULES_PACKAGE else None
    if read.path[:2] == RULES_PACKAGE and read.path[:3] != own_rule:
        reached = program.reached(read.path)
        if not reached or program.closure(reached).inputs:
            yield read.place.finding(
                f"reads another rule's package, data.{'.'.join(read.path)}, which reads input",
                "move what both rules need into a package of its own, such as data.lib.<name>",
            )
            return
    if program.reached(read.path):
        return
    value: Any = data
    for depth, part in enumerate(read.path):
        if not isinstance(value, dict):
            return
        if part not in value:
            near = difflib.get_close_matches(part, value, 1)
            yield read.place.finding(
                f"no rule or data at data.{'.'.join(read.path[: depth + 1])}",
                f"did you mean {near[0]}?" if near else "add it to a JSON file, or use object.get on its parent",
            )
            return
        value = value[part]


def _operator_findings(node: Any, place: Any) -> Iterator[Finding]:
    for membership in nodes(node, "Membership"):
        if membership.get("key") is not None:
            yield place({"Membership": membership}).finding(
                "`key, value in collection` differs between the evaluators for sets",
                "write collection[key] == value",
            )
    for comparison in nodes(node, "BoolExpr"):
        sides = (kind(comparison["lhs"]), kind(comparison["rhs"]))
        if comparison["op"] not in ("Eq", "Ne") and any(
            side is not None and side[0] in ("Set", "SetCompr") for side in sides
        ):
            yield place({"BoolExpr": comparison}).finding(
                "the order of sets differs between the evaluators", "compare counts, or the sets for equality"
            )
    for arithmetic in nodes(node, "ArithExpr"):
        floats = any(
            side is not None and side[0] == "Number" and isinstance(side[1]["value"], float)
            for side in (kind(arithmetic["lhs"]), kind(arithmetic["rhs"]))
        )
        if arithmetic["op"] == "Div" or floats:
            yield place({"ArithExpr": arithmetic}).finding(
                "arithmetic on fractions differs between the evaluators", "use whole numbers"
            )


def _with_modifiers(node: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if isinstance(node, dict):
        found += node.get("with_mods") or []
        for inner in node.values():
            found += _with_modifiers(inner)
    elif isinstance(node, list):
        for inner in node:
            found += _with_modifiers(inner)
    return found


def _data_at_rules(modules: list[ParsedModule], bundle: Bundle) -> Iterator[Finding]:
    for definition in (definition for module in modules for definition in module.definitions):
        value: Any = bundle.data
        for depth, part in enumerate(definition.path):
            if not isinstance(value, dict) or part not in value:
                break
            value = value[part]
            last = depth == len(definition.path) - 1
            if last or not isinstance(value, dict):
                # A file that brought a whole object is known by the path of that object.
                prefixes = (definition.path[:length] for length in range(depth + 1, 0, -1))
                owner = next((bundle.data_files[path] for path in prefixes if path in bundle.data_files), "a file")
                yield definition.place.finding(
                    f"{owner} has data at the path of the rule data.{'.'.join(definition.path)} and would replace it",
                    "rename the rule or move the data file",
                )


def _recursion(program: Program, modules: list[ParsedModule]) -> Iterator[Finding]:
    for definition in (definition for module in modules for definition in module.definitions):
        if program.cycle(definition):
            yield definition.place.finding(
                f"{definition.name} may refer to itself, which OPA refuses",
                "rename a local variable that has a rule's name, or break the cycle",
                warning=True,
            )


def _packages(program: Program, modules: list[ParsedModule], tests: list[ParsedModule]) -> Iterator[Finding]:
    for module in modules:
        package = module.package
        if package[:2] == RULES_PACKAGE and len(package) != 3:
            yield module.package_place.finding(
                f"package {'.'.join(package)} is no rule: a rule is package sallyport.rules.<name>",
                "give it one name below sallyport.rules; libraries belong under another root, such as lib",
            )
        if package[:1] == ("sallyport_host",):
            yield module.package_place.finding("the package sallyport_host belongs to the engine", "rename it")
        if not module.file.endswith("_test.rego"):
            for definition in module.definitions:
                if definition.name.startswith(("test_", "todo_test_")) and package[:2] == RULES_PACKAGE:
                    yield definition.place.finding(
                        f"the test {definition.name} stands outside a test file", "move it to a *_test.rego file"
                    )
    for module in tests:
        for definition in module.definitions:
            if not definition.name.startswith(("test_", "todo_test_")) and program.at(definition.path):
                yield definition.place.finding(
                    f"the test file defines data.{'.'.join(definition.path)}, which the policy defines",
                    "rename it, so that the tests see the rule that will be in force",
                )


def _scope_findings(program: Program, item: Declared) -> Iterator[Finding]:
    rule = item.rule
    if rule.decision:
        return
    yield from _outside(program, item.bodies, rule.scope, rule, "scope")
    if rule.target_scope is not None:
        yield from _outside(program, item.target, rule.target_scope, rule, "target_scope")


def _outside(
    program: Program, roots: tuple[Definition, ...], scope: frozenset[str], rule: Rule, word: str
) -> Iterator[Finding]:
    for read in program.closure(roots).inputs:
        if not read.path:
            yield read.place.finding(
                f"bare `input` in rule {rule.name}", "name the field: input.<fact>.<field>, within the scope"
            )
        elif read.path[0] in ALL_FACTS and read.path[0] not in scope:
            yield read.place.finding(
                f"rule {rule.name} reads input.{'.'.join(read.path)}, but its {word} is {{{', '.join(sorted(scope))}}}",
                f'add "{read.path[0]}" to its {word}, or do not read it',
            )
