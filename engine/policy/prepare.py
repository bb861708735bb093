"""The load pipeline: a folder becomes a policy that may come into force, or a list of reasons why not.

read → parse → static check → load and warm up in a throw-away child → source_deny → Rego tests → evaluator. The
candidate touches nothing that runs: a failure at any step leaves the generation in force as it was.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from engine.errors import EvaluatorError
from engine.model.decision import Verdict
from engine.model.net import canonical
from engine.policy import warmup
from engine.policy.bundle import Bundle, read
from engine.policy.check import Checked, check
from engine.policy.evaluator import Evaluator
from engine.policy.findings import Finding, PolicyRefusedError
from engine.policy.frames import Exercise, Exercised, Load, Parse, Parsed, Queried, Query, Ready
from engine.policy.judge import MEMORY, Judge
from engine.policy.process import Child, ChildError
from engine.policy.regotest import TestResult, run_embedded
from engine.policy.rule import Rule, Widening, widenings
from engine.policy.syntax import words_to_finding

STEP_TIMEOUT = 30.0
"""Seconds for one step of the throw-away child."""
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Examined:
    """A policy that passed every check. `tests`: the results of its own Rego tests, empty when they were not run."""

    bundle: Bundle
    rules: tuple[Rule, ...]
    default: Verdict | None
    source_deny: tuple[Network, ...]
    warnings: tuple[Finding, ...]
    tests: tuple[TestResult, ...] = ()

    @property
    def widenings(self) -> list[Widening]:
        """How far verdicts will be kept, and which rule widens them."""
        return widenings(self.rules, self.default)

    @property
    def identity(self) -> str:
        """The generation's name in logs: the git commit, marked when the folder differs from it, or the digest."""
        if self.bundle.commit is None:
            return f"sha256:{self.bundle.digest}"
        return f"{self.bundle.commit}-dirty" if self.bundle.dirty else self.bundle.commit

    def reads_field(self, path: str) -> bool:
        """Return whether any rule can see a subfield, such as "exe.sha256"."""
        return any(rule.reads_field(path) for rule in self.rules)


@dataclass(frozen=True)
class Policy(Examined):
    """A policy with an evaluator that holds it."""

    evaluator: Evaluator = field(kw_only=True)

    def judge(self, *, posture: Verdict = Verdict.DENY, memory: int = MEMORY) -> Judge:
        """Return a judge for this generation; `posture` is its verdict where the evaluator gives no answer."""
        return Judge(self.evaluator, self.rules, self.default, posture=posture, memory=memory)

    async def close(self) -> None:
        """End the evaluator."""
        await self.evaluator.close()


async def prepare(folder: Path, evaluator_factory: Callable[[], Evaluator], *, run_tests: bool = True) -> Policy:
    """Read, check, warm up and test a folder, and load it into a fresh evaluator.

    Raises PolicyRefusedError with every finding, or EvaluatorError when the evaluator itself is at fault. Nothing is
    left behind then.
    """
    examined = await examine(folder, run_tests=run_tests)
    evaluator = evaluator_factory()
    try:
        await evaluator.load(examined.bundle, examined.rules)
    except BaseException:
        await asyncio.shield(evaluator.close())
        raise
    return Policy(
        examined.bundle, examined.rules, examined.default, examined.source_deny, examined.warnings, examined.tests,
        evaluator=evaluator,
    )  # fmt: skip


async def examine(folder: Path, *, run_tests: bool = True) -> Examined:
    """Do everything that `prepare` does but load an evaluator. Raises PolicyRefusedError."""
    bundle = await asyncio.to_thread(read, folder)
    child = await _child()
    try:
        checked = await _checked(child, bundle)
        if checked.errors:
            raise PolicyRefusedError(checked.findings)
        warnings = list(checked.findings)
        warnings += await _warmed_up(child, bundle, checked)
        source_deny = await _source_deny(child, checked)
    except ChildError as error:
        # The parser or a rule took the interpreter down: a recursive function, an endless comprehension.
        finding = Finding(".", 0, 0, f"the interpreter did not survive the policy: {error}", _SURVIVE)
        raise PolicyRefusedError([finding]) from error
    finally:
        await child.end()
    results: list[TestResult] = []
    if run_tests and bundle.tests:
        results = await run_embedded(bundle, checked.tests)
        failures = [result for result in results if result.outcome in ("fail", "error")]
        if failures:
            raise PolicyRefusedError([_test_finding(result) for result in failures] + warnings)
    return Examined(bundle, checked.rules, checked.default, source_deny, tuple(warnings), tuple(results))


_SURVIVE = "look for a function that calls itself, or for a loop over a very large collection"


async def parse_and_check(bundle: Bundle) -> Checked:
    """Return the outcome of the static check alone. Raises PolicyRefusedError when the parser itself dies."""
    child = await _child()
    try:
        return await _checked(child, bundle)
    except ChildError as error:
        raise PolicyRefusedError([Finding(".", 0, 0, str(error), _SURVIVE)]) from error
    finally:
        await child.end()


async def _child() -> Child:
    try:
        return await Child.start()
    except ChildError as error:
        raise EvaluatorError(str(error), hint="check memory and process limits") from error


async def _checked(child: Child, bundle: Bundle) -> Checked:
    files = [(module.file, module.text) for module in (*bundle.modules, *bundle.tests)]
    parsed = await child.request(Parse(files), Parsed, STEP_TIMEOUT)
    trees = {file: tree for (file, _), tree in zip(files, parsed.trees, strict=True)}
    # In a thread: the lints take some milliseconds, and flows are being decided meanwhile.
    return await asyncio.to_thread(check, bundle, trees)


async def _warmed_up(child: Child, bundle: Bundle, checked: Checked) -> list[Finding]:
    load = Load(
        [(module.file, module.text) for module in bundle.modules],
        msgspec.json.encode(bundle.data),
        [rule.entry() for rule in checked.rules],
    )
    ready = await child.request(load, Ready, STEP_TIMEOUT)
    if ready.error:
        raise PolicyRefusedError([words_to_finding(ready.error, ".", "mend the conflict"), *checked.findings])
    # One evaluation of any rule makes the interpreter look at every module: unsafe variables, undefined rules.
    first = "data.sallyport.default_verdict" if checked.default is not None else "data.sallyport.decision"
    if checked.default is not None:
        queried = await child.request(Query([first]), Queried, STEP_TIMEOUT)
        words = queried.results[0][1]
        if words:
            raise PolicyRefusedError([words_to_finding(words, ".", "mend the rule"), *checked.findings])
    inputs = await asyncio.to_thread(_inputs, bundle, checked)
    exercised = await child.request(Exercise(inputs), Exercised, STEP_TIMEOUT)
    failures = warmup.failure_findings(exercised.failures, checked.rules)
    if failures:
        raise PolicyRefusedError([*failures, *checked.findings])
    return warmup.unevaluated(checked.program, exercised.covered)


def _inputs(bundle: Bundle, checked: Checked) -> list[tuple[str, list[bytes]]]:
    return [
        (rule.name, [msgspec.json.encode(document) for document in warmup.generate(checked.program, rule, bundle.data)])
        for rule in checked.rules
    ]


async def _source_deny(child: Child, checked: Checked) -> tuple[Network, ...]:
    """Return the prefixes of `data.sallyport.source_deny`, evaluated without input; a wrong one refuses the policy."""
    if not checked.has_source_deny:
        return ()
    definition = checked.program.at(("sallyport", "source_deny"))[0]
    queried = await child.request(Query(["data.sallyport.source_deny"]), Queried, STEP_TIMEOUT)
    value, words = queried.results[0]
    if words or not value:
        raise PolicyRefusedError([words_to_finding(words or "undefined", definition.place.file, "mend source_deny")])
    found: set[Network] = set()
    findings: list[Finding] = []
    for item in msgspec.json.decode(value):
        network = _network(item)
        if network is None:
            mend = "write an address, or a prefix without host bits, such as 192.0.2.0/24"
            findings.append(definition.place.finding(f"source_deny has no prefix: {item!r}", mend))
        else:
            found.add(network)
    if findings:
        raise PolicyRefusedError(findings)
    return tuple(sorted(found, key=lambda network: (network.version, network)))


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


def _test_finding(result: TestResult) -> Finding:
    detail = f": {result.detail}" if result.detail else ""
    word = "fails" if result.outcome == "fail" else "ends in an error"
    return Finding(result.file, result.line, 1, f"the test {result.name} {word}{detail}", "run `sallyport policy test`")
