"""The checker: `python -m engine.policy.checker FD ...`, a throw-away process that examines one candidate policy.

Everything that can go wrong with a candidate happens here: the parser, the lints (a syntax tree is a hundred times
the size of its file), the warm-up, and the first evaluation of each rule. The engine gets values back, stays small,
and goes on deciding meanwhile.
"""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path

import msgspec

from engine.model.net import canonical
from engine.policy import warmup
from engine.policy.bundle import Bundle, Module
from engine.policy.check import Checked, check
from engine.policy.child import limited, serve
from engine.policy.examination import Examine, Network, Report
from engine.policy.findings import Finding
from engine.policy.interpreter import Interpreter, InterpreterError, parse
from engine.policy.regotest import listed
from engine.policy.syntax import words_to_finding


def examine(request: Examine) -> Report:
    """Check, and warm up what passes."""
    trees = {file: _tree(file, text) for file, text in (*request.modules, *request.tests)}
    bundle = Bundle(
        Path(),
        tuple(Module(file, text) for file, text in request.modules),
        tuple(Module(file, text) for file, text in request.tests),
        msgspec.json.decode(request.data),
        {},
        {tuple(path): file for path, file in request.data_files},
        "",
    )
    checked = check(bundle, trees)
    findings = list(checked.findings)
    prefixes: list[str] = []
    if request.warm_up and not checked.errors:
        try:
            prefixes = _evaluated(request, bundle, checked, findings)
        except InterpreterError as error:
            findings.append(words_to_finding(str(error), ".", "mend the rule"))
    return Report(findings, list(checked.rules), checked.default, prefixes, listed(checked.tests))


def _tree(file: str, text: str) -> tuple[bytes, str]:
    try:
        return parse(file, text), ""
    except InterpreterError as error:
        return b"", str(error)


def _evaluated(request: Examine, bundle: Bundle, checked: Checked, findings: list[Finding]) -> list[str]:
    """Evaluate the candidate on generated inputs; add what comes out to the findings, and return source_deny."""
    interpreter = Interpreter(request.modules, request.data, [rule.entry() for rule in checked.rules])
    if checked.default is not None:
        # One evaluation of any rule makes the interpreter look at every module: unsafe variables, undefined rules.
        interpreter.value("data.sallyport.default_verdict")
    prefixes = _source_deny(interpreter, checked, findings) if checked.has_source_deny else []
    inputs = [
        (rule.name, [msgspec.json.encode(document) for document in warmup.generate(checked.program, rule, bundle.data)])
        for rule in checked.rules
    ]
    failures, covered = interpreter.exercise(inputs)
    findings += warmup.failure_findings(failures, checked.rules)
    if not failures:
        findings += warmup.unevaluated(checked.program, covered)
    return prefixes


def _source_deny(interpreter: Interpreter, checked: Checked, findings: list[Finding]) -> list[str]:
    """Return the prefixes of `data.sallyport.source_deny`, evaluated without input, in canonical form and order."""
    place = checked.program.at(("sallyport", "source_deny"))[0].place
    found: set[Network] = set()
    for item in interpreter.value("data.sallyport.source_deny"):
        network = _network(item)
        if network is None:
            mend = "write an address, or a prefix without host bits, such as 192.0.2.0/24"
            findings.append(place.finding(f"source_deny has no prefix: {item!r}", mend))
        else:
            found.add(network)
    return [str(network) for network in sorted(found, key=lambda network: (network.version, network))]


def _network(item: object) -> Network | None:
    if not isinstance(item, str):
        return None
    try:
        network = ipaddress.ip_network(item)
    except ValueError:
        return None
    mapped = network.version == 6 and network.prefixlen >= 96 and canonical(network.network_address)
    if isinstance(mapped, ipaddress.IPv4Address):
        return ipaddress.IPv4Network((int(mapped), network.prefixlen - 96))
    return network


def guarded(request: Examine) -> Report:
    """Examine; a failure of the check itself refuses the policy and says so, instead of looking like a crash."""
    try:
        return examine(request)
    except (Exception, RecursionError) as error:  # noqa: BLE001 - whatever it is, the policy does not come into force
        words = f"the check itself failed: {type(error).__name__}: {error}"
        finding = Finding(".", 0, 0, words, "this is a fault of the check; try with fewer files to find what it is")
        return Report([finding], [], None, [], [])


def main() -> None:
    connection, cpu_seconds = limited(sys.argv)
    serve(connection, cpu_seconds, Examine, guarded)


if __name__ == "__main__":
    main()
