"""The load pipeline: a folder becomes a policy that may come into force, or a list of reasons why not.

read → static check and warm-up in a throw-away process → Rego tests → evaluator. The
candidate touches nothing that runs: a failure at any step leaves the generation in force as it was.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from engine.errors import EvaluatorError
from engine.model.decision import Verdict
from engine.policy.bundle import Bundle, read
from engine.policy.evaluator import Evaluator
from engine.policy.examination import Report, question
from engine.policy.findings import Finding, PolicyRefusedError
from engine.policy.judge import MEMORY, Judge
from engine.policy.process import Child, ChildError
from engine.policy.regotest import TestResult, run_embedded
from engine.policy.rule import Rule, Widening, widenings

EXAMINE_TIMEOUT = 30.0
"""Seconds for the check and the warm-up of a candidate."""
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
    report = await report_on(bundle)
    results: list[TestResult] = []
    if run_tests and report.tests:
        results = await run_embedded(bundle, report.tests)
        failures = [result for result in results if result.outcome in ("fail", "error")]
        if failures:
            raise PolicyRefusedError([*(_test_finding(result) for result in failures), *report.findings])
    networks = tuple(ipaddress.ip_network(prefix) for prefix in report.source_deny)
    return Examined(bundle, tuple(report.rules), report.default, networks, tuple(report.findings), tuple(results))


async def report_on(bundle: Bundle, *, warm_up: bool = True) -> Report:
    """Have a bundle examined in a process of its own; without `warm_up` by the static check alone.

    Raises PolicyRefusedError with every finding if one of them is an error, or if the process did not survive.
    """
    child: Child | None = None
    try:
        child = await Child.start(module="engine.policy.checker", responses=Report)
        report = await child.request(question(bundle, warm_up=warm_up), Report, EXAMINE_TIMEOUT)
    except ChildError as error:
        if child is None:
            raise EvaluatorError(str(error), hint="check memory and process limits") from error
        # The parser or a rule took the interpreter down: a recursive function, an endless comprehension.
        mend = "look for a function that calls itself, or for a loop over a very large collection"
        finding = Finding(".", 0, 0, f"the interpreter did not survive the policy: {error}", mend)
        raise PolicyRefusedError([finding]) from error
    finally:
        if child is not None:
            await child.end()
    if any(not finding.warning for finding in report.findings):
        raise PolicyRefusedError(report.findings)
    return report


def _test_finding(result: TestResult) -> Finding:
    detail = f": {result.detail}" if result.detail else ""
    word = "fails" if result.outcome == "fail" else "ends in an error"
    return Finding(result.file, result.line, 1, f"the test {result.name} {word}{detail}", "run `sallyport policy test`")
