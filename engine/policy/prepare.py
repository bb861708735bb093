"""The load pipeline: a folder becomes a policy that may come into force, or a list of reasons why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engine.errors import EvaluatorError
from engine.policy.bundle import Bundle
from engine.policy.evaluator import Evaluator
from engine.policy.examination import Report, Told, question
from engine.policy.examined import Examined, Policy
from engine.policy.findings import PolicyRefusedError
from engine.policy.process import Child, ChildError
from engine.policy.workshop import EXAMINE_TIMEOUT, Workshop, not_survived

__all__ = ["Examined", "Policy", "Workshop", "examine", "prepare", "report_on"]


async def prepare(folder: Path, evaluator_factory: Callable[[], Evaluator], *, run_tests: bool = True) -> Policy:
    """Make a folder into a policy once. Raises PolicyRefusedError with every finding, or EvaluatorError when the
    evaluator itself is at fault. Nothing is left behind then."""
    return await Workshop(evaluator_factory).prepare(folder, run_tests=run_tests)


async def examine(folder: Path, *, run_tests: bool = True) -> Examined:
    """Do everything that `prepare` does but load an evaluator. Raises PolicyRefusedError."""
    return await Workshop(None).examine(folder, run_tests=run_tests)


async def report_on(bundle: Bundle) -> Report:
    """Have a bundle checked statically, as a whole, in a process of its own.

    Raises PolicyRefusedError with every finding if one of them is an error, or if the process did not survive.
    """
    child: Child | None = None
    try:
        child = await Child.start(module="engine.policy.checker", responses=Told)
        report = await child.request(question(bundle), Report, EXAMINE_TIMEOUT)
    except ChildError as error:
        if child is None:
            raise EvaluatorError(str(error), hint="check memory and process limits") from error
        raise not_survived(error) from error
    finally:
        if child is not None:
            await child.end()
    if any(not finding.warning for finding in report.findings):
        raise PolicyRefusedError(report.findings)
    return report
