"""Rego tests: `test_` rules of `*_test.rego` files, on the embedded evaluator or by the real `opa test`.

A test passes when it is true, or an object of sub-cases that are all true (as in OPA 1.2 and later); `todo_test_` is
skipped; undefined and false fail; an error is an error, so that a test cannot pass by raising.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import EvaluatorError, PolicyError
from engine.policy.bundle import Bundle
from engine.policy.examination import RegoTest
from engine.policy.frames import Load, Part, Queried, Query, Ready
from engine.policy.opa_server import find_program
from engine.policy.process import Child, ChildError

TEST_TIMEOUT = 5.0
"""Seconds for one test, as in `opa test`."""
OPA_TIMEOUT = 300.0


@dataclass(frozen=True)
class TestResult:
    """`outcome`: pass, fail, error or skip. `detail`: which sub-cases failed, or the interpreter's words."""

    __test__ = False

    file: str
    line: int
    name: str
    outcome: str
    detail: str = ""

    def __str__(self) -> str:
        text = f"{self.outcome.upper()} {self.file}:{self.line} {self.name}"
        return f"{text}: {self.detail}" if self.detail else text

    def document(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        return asdict(self)


def passed(results: Sequence[TestResult]) -> bool:
    """Return whether no test failed; without any test there is nothing that passed."""
    return bool(results) and all(result.outcome in ("pass", "skip") for result in results)


async def run_embedded(bundle: Bundle, tests: Sequence[RegoTest]) -> list[TestResult]:
    """Run the tests of a bundle in a child of their own."""
    modules = [(module.file, module.text) for module in (*bundle.modules, *bundle.tests)]
    part = Part("tests", modules, msgspec.json.encode(bundle.test_data), [])
    results, child = await run_part(part, tests, None)
    if child is not None:
        await child.end()
    return results


async def run_part(part: Part, tests: Sequence[RegoTest], child: Child | None) -> tuple[list[TestResult], Child | None]:
    """Run tests in a child; one that hangs or crashes is an error and does not stop the others.

    `child`: one that serves; it is ended when a test breaks it. Returns the results and a child that still serves.
    """
    results: list[TestResult] = []
    loaded = False
    try:
        for test in tests:
            name, file, line = test.name, test.file, test.line
            if name.rpartition(".")[2].startswith("todo_"):
                results.append(TestResult(file, line, name, "skip"))
                continue
            try:
                if child is None:
                    child, loaded = await Child.start(), False
                if not loaded:
                    ready = await child.request(Load([part]), Ready, TEST_TIMEOUT)
                    if ready.error:
                        results.append(TestResult(file, line, name, "error", _one_line(ready.error)))
                        continue
                    loaded = True
                queried = await child.request(Query(part.key, [f"data.{name}"]), Queried, TEST_TIMEOUT)
            except ChildError as error:
                results.append(TestResult(file, line, name, "error", str(error)))
                if child is not None:
                    await child.end()
                child = None
                continue
            results.append(TestResult(file, line, name, *_outcome(*queried.results[0])))
    except BaseException:
        if child is not None:
            await asyncio.shield(child.end())
        raise
    return results, child


def _outcome(value: bytes, error: str) -> tuple[str, str]:
    if error:
        return "error", _one_line(error)
    if not value:
        return "fail", ""
    decoded = msgspec.json.decode(value)
    if decoded is True:
        return "pass", ""
    if isinstance(decoded, dict) and decoded:
        wrong = _wrong(decoded, ())
        return ("fail", f"sub-case {', '.join(wrong)}") if wrong else ("pass", "")
    return "fail", ""


def _wrong(cases: dict[str, Any], path: tuple[str, ...]) -> list[str]:
    wrong: list[str] = []
    for name, value in cases.items():
        if isinstance(value, dict) and value:
            wrong += _wrong(value, (*path, name))
        elif value is not True:
            wrong.append("/".join((*path, name)))
    return wrong


def _one_line(words: str) -> str:
    return " ".join(words.split())


async def run_opa(folder: Path, binary: str = "opa") -> list[TestResult]:
    """Run the real `opa test` on the folder. Raises EvaluatorError without opa, PolicyError when it cannot load."""
    process = await asyncio.create_subprocess_exec(
        find_program(binary), "test", "--format", "json", "--ignore", ".*", ".",
        cwd=folder, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        stdout, stderr = await asyncio.wait_for(process.communicate(), OPA_TIMEOUT)
    except BaseException as error:
        process.kill()
        await process.wait()
        if isinstance(error, asyncio.TimeoutError):
            raise EvaluatorError(f"opa test took longer than {OPA_TIMEOUT:g} s", hint="find the slow test") from error
        raise
    try:
        cases = msgspec.json.decode(stdout or b"null")
    except msgspec.DecodeError:
        cases = None
    if not isinstance(cases, list):
        words = _one_line((stderr or stdout).decode(errors="replace"))
        raise PolicyError(f"opa test cannot load the policy: {words}", hint="run `opa check --strict` on the folder")
    return [_from_opa(case) for case in cases]


def _from_opa(case: dict[str, Any]) -> TestResult:
    package = str(case.get("package", "")).removeprefix("data.")
    location = case.get("location", {})
    outcome, detail = "pass", ""
    if case.get("skip"):
        outcome = "skip"
    elif case.get("error"):
        error = case["error"]
        outcome, detail = "error", str(error.get("message", error) if isinstance(error, dict) else error)
    elif case.get("fail"):
        outcome = "fail"
    name = f"{package}.{case.get('name', '')}"
    return TestResult(str(location.get("file", "")), int(location.get("row", 0)), name, outcome, detail)
