"""The workshop: candidates are made into policies here, each quickly because it remembers what the last ones were.

read → what each module mentions → closures → static check, warm-up and Rego tests of those that are new, in a
throw-away process → evaluator. What is passed over had the same bytes, all that it can reach included, and was
examined by the same build of the interpreter: see closures.py. The candidate touches nothing that runs: a failure at
any step leaves the generation in force as it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from engine.errors import EvaluatorError
from engine.model.decision import Verdict
from engine.policy.bundle import Bundle, git_fields, merged, read_folder
from engine.policy.closures import Closure, Planner
from engine.policy.evaluator import Evaluator
from engine.policy.examination import Found, Given, Report, Summaries, Summarise, Told, Tried, Try, question
from engine.policy.examined import Examined, Policy
from engine.policy.findings import Finding, PolicyRefusedError
from engine.policy.frames import Part
from engine.policy.parts import SHARED_BYTES, divide, part_of
from engine.policy.process import Child, ChildError
from engine.policy.regotest import TestResult, run_part
from engine.policy.rule import Rule
from engine.policy.sources import SourceRules
from engine.policy.summary import Summary, unevaluated

EXAMINE_TIMEOUT = 30.0
"""Seconds for one request to the checker."""
_AT_ONCE = 32
"""Packages in one request: a thousand rules take longer to warm up than one request may."""
_SPARE_SECONDS = 10.0
"""A process started for a change that does not come is ended."""


class Workshop:
    """Makes policies out of folders. `make`: a fresh evaluator for each, None where `examine` is all that is wanted.

    One candidate at a time.
    """

    def __init__(self, make: Callable[[], Evaluator] | None) -> None:
        self._make = make
        self._planner = Planner()
        self._build = ""
        self._read: Bundle | None = None
        self._summaries: dict[str, tuple[str, Summary]] = {}
        self._found: dict[str, Found] = {}
        self._passed: dict[str, tuple[TestResult, ...]] = {}
        self._open: dict[str, tuple[str, ...]] = {}
        """By closure: its own files of which its warm-up did not reach everything."""
        self._parts: dict[str, Part] = {}
        self._checker: asyncio.Task[Child | None] | None = None
        self._evaluator: asyncio.Task[Evaluator] | None = None
        self._dropping: asyncio.TimerHandle | None = None

    # ---- what is started before it is needed

    def expect(self) -> None:
        """Be told that something changes in the folder: start the processes that a candidate will need, while the
        folder comes to rest."""
        loop = asyncio.get_running_loop()
        if self._checker is None:
            self._checker = loop.create_task(_started())
        if self._evaluator is None and self._make is not None:
            self._evaluator = loop.create_task(_expecting(self._make(), list(self._parts.values())))
        if self._dropping is not None:
            self._dropping.cancel()
        self._dropping = loop.call_later(_SPARE_SECONDS, self._drop)

    def _drop(self) -> None:
        self._closing = asyncio.get_running_loop().create_task(self.close())

    async def close(self) -> None:
        """End the processes that wait for a candidate."""
        if self._dropping is not None:
            self._dropping.cancel()
        checker, self._checker = self._checker, None
        evaluator, self._evaluator = self._evaluator, None
        if checker is not None and (child := await checker) is not None:
            await child.end()
        if evaluator is not None:
            await (await evaluator).close()

    async def _expected(self) -> Evaluator:
        """Return the evaluator that waits for the candidate."""
        assert self._make is not None  # noqa: S101 - who prepares gives it
        waiting, self._evaluator = self._evaluator, None
        # A candidate that takes longer than a spare may wait has seen it go.
        return await waiting if waiting is not None else self._make()

    async def _child(self) -> Child:
        """Return a checker: the one that waits, or a new one."""
        waiting, self._checker = self._checker, None
        child = await waiting if waiting is not None else None
        if child is not None and not child.ended:
            return child
        try:
            return await Child.start(module="engine.policy.checker", responses=Told)
        except ChildError as error:
            raise EvaluatorError(str(error), hint="check memory and process limits") from error

    # ---- a candidate

    async def prepare(self, folder: Path, *, run_tests: bool = True) -> Policy:
        """Read, check, warm up and test a folder, and load it into a fresh evaluator.

        Raises PolicyRefusedError with every finding, or EvaluatorError when the evaluator itself is at fault. Nothing
        is left behind then.
        """
        # The evaluator's process starts beside the check.
        self.expect()
        try:
            examined = await self.examine(folder, run_tests=run_tests)
            evaluator = await self._expected()
        except BaseException:
            await asyncio.shield(self.close())
            raise
        try:
            await evaluator.load(examined.bundle, examined.rules, examined.parts)
        except BaseException:
            await asyncio.shield(evaluator.close())
            raise
        self._parts = {part.key: part for part in examined.parts}
        return Policy(**vars(examined), evaluator=evaluator)

    async def examine(self, folder: Path, *, run_tests: bool = True) -> Examined:
        """Do everything that `prepare` does but load an evaluator. Raises PolicyRefusedError."""
        bundle = await asyncio.to_thread(read_folder, folder, self._read)
        self._read = bundle
        # git is asked beside the check: both take their time in other processes.
        git = asyncio.get_running_loop().create_task(asyncio.to_thread(git_fields, folder))
        child: Child | None = await self._child()
        try:
            assert child is not None  # noqa: S101 - just made
            summaries = await self._summarised(child, bundle)
            closures = self._planner.divide(bundle, summaries)
            await self._try(child, bundle, closures)
            found = [self._found[closure.key] for closure in closures]
            refused = [finding for each in found if each.refused for finding in each.findings]
            default, rules = _joined(found)
            if refused or default is None or any(rule.decision for rule in rules):
                # The check of the whole policy says it with a view of all files; it has no doubts where there are none.
                await self._check_whole(child, bundle, refused)
            results: list[TestResult] = []
            if run_tests:
                results, child = await self._tested(child, bundle, closures)
        except ChildError as error:
            # The parser or a rule took the interpreter down: a recursive function, an endless comprehension.
            raise not_survived(error) from error
        finally:
            if child is not None:
                await child.end()
            fields = await asyncio.shield(git)
        warnings = [finding for each in found for finding in each.findings]
        warnings += self._unreached(closures, summaries)
        failures = [result for result in results if result.outcome in ("fail", "error")]
        if failures:
            raise PolicyRefusedError([*(_test_finding(result) for result in failures), *warnings])
        self._forget(closures)
        sources = next((each.sources for each in found if each.sources != SourceRules()), SourceRules())
        return Examined(
            replace(bundle, **fields), tuple(rules), default, sources, tuple(sorted(set(warnings))),
            tuple(results), tuple(self._divided(bundle, closures)),
            next((each.inbound for each in found if each.inbound), None),
        )  # fmt: skip

    async def _summarised(self, child: Child, bundle: Bundle) -> dict[str, Summary]:
        """Return the summary of each module and test. Raises PolicyRefusedError if one cannot be parsed."""
        texts = bundle.texts
        before = self._summaries
        known = {file: before[file][1] for file in texts if before.get(file, ("",))[0] == bundle.digests[file]}
        told = await self._ask_summaries(child, [(file, text) for file, text in texts.items() if file not in known])
        if told.build != self._build:
            # Nothing that another interpreter found out counts.
            self._build, self._found, self._passed, self._open = told.build, {}, {}, {}
            if known:
                told = await self._ask_summaries(child, list(texts.items()))
                known = {}
        known |= {summary.file: summary for summary in told.summaries}
        if any(summary.words for summary in known.values()):
            await self._check_whole(child, bundle, [])
        self._summaries = {file: (bundle.digests[file], summary) for file, summary in known.items()}
        return {file: known[file] for file in texts}

    async def _ask_summaries(self, child: Child, modules: list[tuple[str, str]]) -> Summaries:
        return await child.request(Summarise(modules), Summaries, EXAMINE_TIMEOUT)

    async def _try(self, child: Child, bundle: Bundle, closures: Sequence[Closure]) -> None:
        """Have those closures examined of which nothing is known."""
        unknown = [closure for closure in closures if closure.key not in self._found]
        tests = {module.file for module in bundle.tests}
        for start in range(0, len(unknown), _AT_ONCE):
            some = unknown[start : start + _AT_ONCE]
            request = Try([_given(bundle, closure, tests) for closure in some])
            tried = await child.request(request, Tried, EXAMINE_TIMEOUT)
            self._found |= {closure.key: found for closure, found in zip(some, tried.found, strict=True)}

    async def _check_whole(self, child: Child, bundle: Bundle, refused: Sequence[Finding]) -> None:
        """Raise PolicyRefusedError with all that the check of the whole policy finds, or with `refused` if it finds
        nothing."""
        report = await child.request(question(bundle), Report, EXAMINE_TIMEOUT)
        if any(not finding.warning for finding in report.findings):
            raise PolicyRefusedError(report.findings)
        if refused:
            raise PolicyRefusedError([*refused, *report.findings])

    async def _tested(
        self, child: Child | None, bundle: Bundle, closures: Sequence[Closure]
    ) -> tuple[list[TestResult], Child | None]:
        """Run the tests of those closures of which it is not known that they pass."""
        results: list[TestResult] = []
        for closure in closures:
            tests = self._found[closure.key].tests
            known = self._passed.get(closure.key)
            if known is None and tests:
                found, child = await run_part(part_of(bundle, closure), tests, child)
                known = tuple(found)
                if all(result.outcome in ("pass", "skip") for result in found):
                    self._passed[closure.key] = known
            results += known or ()
        return results, child

    def _divided(self, bundle: Bundle, closures: Sequence[Closure]) -> list[Part]:
        large = frozenset(file for file, document in bundle.documents.items() if document.size >= SHARED_BYTES)
        pairs = [(closure, rule) for closure in closures for rule in self._found[closure.key].rules]
        return divide(bundle, pairs, self._parts, large)

    def _unreached(self, closures: Sequence[Closure], summaries: dict[str, Summary]) -> list[Finding]:
        """Return what no warm-up reached: a library's body may be reached by one rule and not by another."""
        open_files: list[str] = []
        for closure in closures:
            if closure.test:
                continue
            known = self._open.get(closure.key)
            if known is None:
                covered = self._found[closure.key].covered
                known = tuple(file for file in closure.own if unevaluated(summaries[file], covered.get(file, ())))
                self._open[closure.key] = known
            open_files += known
        found = [self._found[closure.key] for closure in closures] if open_files else []
        return [
            finding
            for file in open_files
            for finding in unevaluated(summaries[file], {line for each in found for line in each.covered.get(file, ())})
        ]

    def _forget(self, closures: Iterable[Closure]) -> None:
        """Keep what is known of this candidate alone."""
        keys = {closure.key for closure in closures}
        self._found = {key: found for key, found in self._found.items() if key in keys}
        self._passed = {key: results for key, results in self._passed.items() if key in keys}
        self._open = {key: files for key, files in self._open.items() if key in keys}


async def _started() -> Child | None:
    try:
        child = await Child.start(module="engine.policy.checker", responses=Told)
    except ChildError:
        return None  # whoever needs one will say why there is none
    try:
        await child.request(Summarise([]), Summaries, EXAMINE_TIMEOUT)
    except ChildError:
        # Its answer may still come, and would be taken for that to the next question.
        await child.end()
        return None
    return child


async def _expecting(evaluator: Evaluator, parts: Sequence[Part]) -> Evaluator:
    await evaluator.expect(parts)
    return evaluator


def _given(bundle: Bundle, closure: Closure, tests: set[str]) -> Given:
    texts = bundle.texts
    documents = {file: bundle.documents[file] for file in closure.data}
    return Given(
        closure.package,
        [(file, texts[file]) for file in closure.modules if file not in tests],
        [(file, texts[file]) for file in closure.own if file in tests],
        msgspec.json.encode(merged(documents, [])),
    )


def _joined(found: Iterable[Found]) -> tuple[Verdict | None, list[Rule]]:
    """Return the default and the rules, in the order of their packages: a decision, then rules by name."""
    default = next((each.default for each in found if each.default is not None), None)
    return default, [rule for each in found for rule in each.rules]


def not_survived(error: ChildError) -> PolicyRefusedError:
    """Return the refusal of a policy that ended the process which examined it."""
    mend = "look for a function that calls itself, or for a loop over a very large collection"
    return PolicyRefusedError([Finding(".", 0, 0, f"the interpreter did not survive the policy: {error}", mend)])


def _test_finding(result: TestResult) -> Finding:
    detail = f": {result.detail}" if result.detail else ""
    word = "fails" if result.outcome == "fail" else "ends in an error"
    return Finding(result.file, result.line, 1, f"the test {result.name} {word}{detail}", "run `sallyport policy test`")
