"""`sallyport policy`: check a policy folder and run its Rego tests, without an engine."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import EXIT_FINDING, EXIT_OK
from engine.policy.bundle import read
from engine.policy.findings import Finding, PolicyRefusedError
from engine.policy.prepare import Examined, examine, report_on
from engine.policy.regotest import TestResult, passed, run_embedded, run_opa

_CHECK = """\
Check a policy folder as the engine does before a policy comes into force: syntax, scopes, unknown facts and functions,
constructs that the two evaluators read differently, and a warm-up on generated inputs. Every error is shown as
file:line:col with what to write instead. A policy that passes is followed by the facts that its verdicts will be kept
under, and which rule widens them.
"""
_CHECK_EPILOG = """\
example:
  sallyport policy check policies

Exit status 0: the policy would come into force; 4: it would be refused. With --json one object: ok, digest, commit,
dirty, default, rules (name, scope, target_scope, effects, reads), verdicts (verdict, scope, added_by), source_deny,
source_allow, scan_limit, flood_limit, findings (file, line, col, message, mend, warning).
"""
_TEST = """\
Run the tests of a policy folder: the rules named test_... in its *_test.rego files. A test passes when it is true, or
an object of cases that are all true.
"""
_TEST_EPILOG = """\
example:
  sallyport policy test policies --evaluator opa

Exit status 0: every test passed; 1: one failed, or there is none; 4: the policy is refused. With --json one object:
ok, evaluator, tests (file, line, name, outcome, detail), findings.
"""

_LISTED = 8


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to the command line's parser."""
    noun = subparsers.add_parser(
        "policy",
        help="check and test a policy folder",
        description="Check a policy folder and run its tests. Needs no engine and no privilege.",
        epilog="example:\n  sallyport policy check policies",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = noun.add_subparsers(dest="verb", metavar="VERB", required=True)
    check = verbs.add_parser(
        "check",
        help="show every error of a policy, and how far its verdicts will reach",
        description=_CHECK,
        epilog=_CHECK_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("folder", metavar="DIR", type=Path, help="the policy folder")
    check.add_argument("--json", action="store_true", help="one JSON object")
    check.set_defaults(handler=run_check)
    test = verbs.add_parser(
        "test",
        help="run a policy's Rego tests",
        description=_TEST,
        epilog=_TEST_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    test.add_argument("folder", metavar="DIR", type=Path, help="the policy folder")
    test.add_argument(
        "--evaluator",
        choices=("embedded", "opa"),
        default="embedded",
        help="who runs the tests: the embedded evaluator (default), or the program opa",
    )
    test.add_argument("--json", action="store_true", help="one JSON object")
    test.set_defaults(handler=run_test)


def run_check(args: argparse.Namespace) -> int:
    """Handle `policy check`."""
    try:
        examined = asyncio.run(examine(args.folder, run_tests=False))
    except PolicyRefusedError as error:
        return _refused(error, args.folder, as_json=args.json)
    if args.json:
        print(json.dumps({"ok": True, **_document(examined)}, indent=2))
        return EXIT_OK
    _show(examined.warnings, args.folder)
    print(f"{args.folder}: {len(examined.rules)} rules, default {_default(examined)}, {examined.identity}")
    for widening in examined.widenings:
        print(f"  {widening}")
    for line in _sources(examined):
        print(f"  {line}")
    return EXIT_OK


def run_test(args: argparse.Namespace) -> int:
    """Handle `policy test`."""
    try:
        results = asyncio.run(_tested(args.folder, args.evaluator))
    except PolicyRefusedError as error:
        return _refused(error, args.folder, as_json=args.json, evaluator=args.evaluator)
    ok = passed(results)
    if args.json:
        tests = [result.document() for result in results]
        print(json.dumps({"ok": ok, "evaluator": args.evaluator, "tests": tests, "findings": []}, indent=2))
        return EXIT_OK if ok else EXIT_FINDING
    for result in results:
        print(_printable(str(result)))
    count = sum(result.outcome == "pass" for result in results)
    print(f"{count} of {len(results)} passed ({args.evaluator})" if results else "there is no test")
    return EXIT_OK if ok else EXIT_FINDING


async def _tested(folder: Path, evaluator: str) -> list[TestResult]:
    bundle = await asyncio.to_thread(read, folder)
    report = await report_on(bundle)
    return await (run_opa(folder) if evaluator == "opa" else run_embedded(bundle, report.tests))


def _refused(error: PolicyRefusedError, folder: Path, *, as_json: bool, evaluator: str = "") -> int:
    if as_json:
        document: dict[str, Any] = {"ok": False, "findings": [finding.document() for finding in error.findings]}
        if evaluator:
            document |= {"evaluator": evaluator, "tests": []}
        print(json.dumps(document, indent=2))
    else:
        _show(error.findings, folder)
        print(error.message, file=sys.stderr)
    return error.exit_code


def _show(findings: Sequence[Finding], folder: Path) -> None:
    for finding in findings:
        where = folder if finding.file == "." else folder / finding.file
        kind = "warning: " if finding.warning else ""
        print(_printable(f"{where}:{finding.line}:{finding.col}: {kind}{finding.message}"))
        if finding.mend:
            print(_printable(f"    {finding.mend}"))


def _printable(text: str) -> str:
    """Return text that cannot drive the terminal: file names and messages come from the policy's author."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _default(examined: Examined) -> str:
    if examined.default is None:
        return "by data.sallyport.decision"
    inbound = f", {examined.inbound.value} for what comes in" if examined.inbound is not None else ""
    return f"{examined.default.value}{inbound}"


def _sources(examined: Examined) -> Iterator[str]:
    """What is judged at the network card. Of a long list only the beginning: it may have a million prefixes."""
    sources = examined.sources
    for word, prefixes in (("denied", sources.deny), ("allowed", sources.allow)):
        if prefixes:
            more = f", and {len(prefixes) - _LISTED} more" if len(prefixes) > _LISTED else ""
            yield f"sources {word} at the network card: {', '.join(islice(prefixes.texts(), _LISTED))}{more}"
    if sources.scan:
        scan = sources.scan
        yield f"a source that tries {scan.ports} ports in {scan.seconds:g} s is blocked for {scan.block_seconds:g} s"
    if sources.flood:
        flood = sources.flood
        yield f"a source that sends {flood.syns} SYNs in {flood.seconds:g} s is blocked for {flood.block_seconds:g} s"


def _document(examined: Examined) -> dict[str, Any]:
    return {
        "digest": examined.bundle.digest,
        "commit": examined.bundle.commit,
        "dirty": examined.bundle.dirty,
        "default": examined.default.value if examined.default is not None else None,
        "inbound": examined.inbound.value if examined.inbound is not None else None,
        "rules": [
            {
                "name": rule.name,
                "file": rule.file,
                "scope": sorted(rule.scope),
                "target_scope": sorted(rule.target_scope) if rule.target_scope is not None else None,
                "effects": sorted(effect.value for effect in rule.effects),
                "reads": sorted(rule.reads),
            }
            for rule in examined.rules
        ],
        "verdicts": [
            {
                "verdict": widening.verdict,
                "scope": sorted(widening.scope),
                "added_by": {name: sorted(facts) for name, facts in widening.added_by.items()},
            }
            for widening in examined.widenings
        ],
        "source_deny": list(examined.sources.deny.texts()),
        "source_allow": list(examined.sources.allow.texts()),
        "scan_limit": msgspec.to_builtins(examined.sources.scan),
        "flood_limit": msgspec.to_builtins(examined.sources.flood),
        "findings": [finding.document() for finding in examined.warnings],
    }
