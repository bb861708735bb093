"""The checker: `python -m engine.policy.checker FD ...`, a throw-away process that examines one candidate policy.

Everything that can go wrong with a candidate happens here: the parser, the lints (a syntax tree is a hundred times
the size of its file), the warm-up, the Rego tests, and the first evaluation of each rule. The engine gets values back,
stays small, and goes on deciding meanwhile.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from pathlib import Path

import msgspec

from engine.policy import warmup
from engine.policy.bundle import Bundle, Module
from engine.policy.check import Checked, check, check_package
from engine.policy.child import Served, limited, serve
from engine.policy.examination import (
    Asked,
    Examine,
    Found,
    Given,
    RegoTest,
    Report,
    Summaries,
    Summarise,
    Told,
    Tried,
    Try,
)
from engine.policy.findings import Finding
from engine.policy.interpreter import Interpreter, InterpreterError, build, parse
from engine.policy.reads import Program
from engine.policy.rule import ROOT_PACKAGE
from engine.policy.source_check import source_rules
from engine.policy.sources import SourceRules
from engine.policy.summarise import summarise
from engine.policy.summary import Summary
from engine.policy.syntax import ParsedModule, read_module, words_to_finding

_TREES = 64
"""Modules kept as trees: a library that every rule reaches is parsed once, and a thousand rules are not all held."""
_READY = ("engine.rego", "package sallyport_host\n\nready := true\n")
"""One evaluation of any rule makes the interpreter look at every module: unsafe variables, undefined rules."""


def summaries(request: Summarise) -> Summaries:
    """Summarise modules; one that cannot be parsed has the parser's words instead."""
    return Summaries([_summary(file, text) for file, text in request.modules], build())


def _summary(file: str, text: str) -> Summary:
    try:
        return summarise(_parsed(file, text))
    except (Exception, RecursionError) as error:  # noqa: BLE001 - the check of the whole policy says what it is
        return Summary(file, words=str(error) or type(error).__name__)


@lru_cache(maxsize=_TREES)
def _parsed(file: str, text: str) -> ParsedModule:
    return read_module(Module(file, text), parse(file, text))


def report(request: Examine) -> Report:
    """Check a whole policy, without evaluating it."""
    trees = {file: _tree(file, text) for file, text in (*request.modules, *request.tests)}
    bundle = _bundle(request.modules, request.tests, request.data)
    bundle.data_files.update({tuple(path): file for path, file in request.data_files})
    checked = check(bundle, trees)
    return Report(list(checked.findings), list(checked.rules), checked.default, listed(checked))


def _tree(file: str, text: str) -> tuple[bytes, str]:
    try:
        return parse(file, text), ""
    except InterpreterError as error:
        return b"", str(error)


def _bundle(modules: list[tuple[str, str]], tests: list[tuple[str, str]], data: bytes) -> Bundle:
    return Bundle(
        Path(),
        tuple(Module(file, text) for file, text in modules),
        tuple(Module(file, text) for file, text in tests),
        msgspec.json.decode(data),
        {},
        {},
        "",
    )


def tried(given: Given) -> Found:
    """Check one package, and evaluate its rule on generated inputs if the check finds nothing."""
    bundle = _bundle(given.modules, given.tests, given.data)
    program = Program([_parsed(file, text) for file, text in given.modules])
    tests = [_parsed(file, text) for file, text in given.tests]
    checked = check_package(program, given.package, tests, bundle)
    findings = list(checked.findings)
    covered: dict[str, tuple[int, ...]] = {}
    sources = SourceRules()
    if not checked.errors and not tests:
        try:
            interpreter = Interpreter([*given.modules, _READY], given.data, [rule.entry() for rule in checked.rules])
            interpreter.value("data.sallyport_host.ready")
            if given.package == ROOT_PACKAGE:
                sources = source_rules(interpreter, program, findings)
            covered = _exercised(interpreter, bundle, checked, findings)
        except InterpreterError as error:
            findings.append(words_to_finding(str(error), given.modules[0][0], "mend the rule"))
    return Found(
        tuple(findings), checked.rules, checked.default, sources, tuple(listed(checked)), covered,
        checked.inbound,
    )  # fmt: skip


def _exercised(
    interpreter: Interpreter, bundle: Bundle, checked: Checked, findings: list[Finding]
) -> dict[str, tuple[int, ...]]:
    inputs = [
        (rule.name, [msgspec.json.encode(document) for document in warmup.generate(checked.program, rule, bundle.data)])
        for rule in checked.rules
    ]
    if not inputs:
        return {}
    failures, covered = interpreter.exercise(inputs)
    findings += warmup.failure_findings(failures, checked.rules)
    return {file: tuple(lines) for file, lines in covered.items() if lines and file != _READY[0]}


def listed(checked: Checked) -> list[RegoTest]:
    """Return every test rule, each once."""
    found: dict[str, RegoTest] = {}
    for module in checked.tests:
        for definition in module.definitions:
            if definition.name.startswith(("test_", "todo_test_")):
                name = ".".join((*module.package, definition.name))
                found.setdefault(name, RegoTest(name, module.file, definition.place.line))
    return list(found.values())


class Checker(Served):
    """Answers for the check, and for the tests as the evaluator child does."""

    def told(self, request: Asked) -> Told:
        """Answer; a failure of the check itself refuses the policy and says so, instead of looking like a crash."""
        if isinstance(request, Summarise):
            return summaries(request)
        if isinstance(request, Examine):
            try:
                return report(request)
            except (Exception, RecursionError) as error:  # noqa: BLE001 - whatever it is, the policy is refused
                return Report([_fault(error)], [], None, [])
        if isinstance(request, Try):
            return Tried([_guarded(given) for given in request.given])
        return self.answer(request)


def _guarded(given: Given) -> Found:
    try:
        return tried(given)
    except (Exception, RecursionError) as error:  # noqa: BLE001 - whatever it is, the policy is refused
        return Found((_fault(error),))


def _fault(error: BaseException) -> Finding:
    words = f"the check itself failed: {type(error).__name__}: {error}"
    return Finding(".", 0, 0, words, "this is a fault of the check; try with fewer files to find what it is")


def main() -> None:
    # Not with the engine's own priority: connections that wait for a verdict come before a candidate.
    os.setpriority(os.PRIO_PROCESS, 0, max(0, os.getpriority(os.PRIO_PROCESS, 0)))
    connection, cpu_seconds = limited(sys.argv)
    serve(connection, cpu_seconds, Asked, Checker().told)


if __name__ == "__main__":
    main()
