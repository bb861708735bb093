"""Policy without an engine: a folder becomes a function from facts to decision, in this very process.

For `sallyport inspect --policy` and for tests of policies. There is no watchdog here: a policy that never ends never
ends. The static check is the same as the engine's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from engine.errors import EvaluatorError
from engine.model.decision import Decision, Stage
from engine.model.facts import Facts
from engine.policy.bundle import read
from engine.policy.check import check
from engine.policy.decide import asks, decide
from engine.policy.embedded import to_answer
from engine.policy.evaluator import Answer
from engine.policy.findings import PolicyRefusedError
from engine.policy.frames import Ask


def load(path: Path) -> Callable[[Facts, Stage], Decision]:
    """Read and check a policy folder. Raises PolicyRefusedError with every finding.

    The returned function belongs to the calling thread. Where a rule gives no answer its decision is `failed`, with
    the verdict deny.
    """
    # regorus costs 10 MiB: only who uses this pays.
    from engine.policy.interpreter import Interpreter, InterpreterError, parse  # noqa: PLC0415

    bundle = read(path)
    trees: dict[str, tuple[bytes, str]] = {}
    for module in (*bundle.modules, *bundle.tests):
        try:
            trees[module.file] = parse(module.file, module.text), ""
        except InterpreterError as error:
            trees[module.file] = b"", str(error)
    checked = check(bundle, trees)
    if checked.errors:
        raise PolicyRefusedError(checked.findings)
    try:
        interpreter = Interpreter(
            [(module.file, module.text) for module in bundle.modules],
            msgspec.json.encode(bundle.data),
            [rule.entry() for rule in checked.rules],
        )
    except InterpreterError as error:
        raise EvaluatorError(f"the policy cannot be loaded: {error}", hint="run `sallyport policy check`") from error

    def decided(facts: Facts, stage: Stage) -> Decision:
        answers: dict[str, Answer] = {}
        for rule in checked.rules:
            asked = asks(rule, stage)
            if asked is False:
                continue
            scope = rule.scope if asked else rule.target_scope or frozenset()
            ask = Ask(rule.name, msgspec.json.encode(facts.select(scope)), asked is None)
            answers[rule.name] = to_answer(interpreter.answer(ask), rule)
        return decide(checked.rules, checked.default, answers, stage)

    return decided
