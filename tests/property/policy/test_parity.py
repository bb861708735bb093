"""What passes the check means the same in both evaluators: the starter library, and the right way beside every lint."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from engine.policy import warmup
from engine.policy.embedded import EmbeddedEvaluator
from engine.policy.evaluator import Answer, Question
from engine.policy.opa import OpaEvaluator
from tests.support.lints import DATA, LINTS, WIDE
from tests.support.policies import rule, statically, write_folder

LIBRARY = Path(__file__).parents[3] / "policies"


def answered(folder: Path, inputs: int) -> list[tuple[Question, Answer, Answer]]:
    """Return (question, embedded answer, OPA answer) for generated inputs of every rule of a folder."""

    async def main() -> list[tuple[Question, Answer, Answer]]:
        bundle, checked = statically(folder)
        assert checked.errors == ()
        questions = [
            Question(rule.name, document)
            for rule in checked.rules
            for document in warmup.generate(checked.program, rule, bundle.data, inputs)
        ]
        embedded, opa = EmbeddedEvaluator(timeout=30.0), OpaEvaluator(timeout=30.0)
        try:
            await embedded.load(bundle, checked.rules)
            await opa.load(bundle, checked.rules)
            ours: Sequence[Answer] = await embedded.evaluate(questions)
            theirs: list[Answer] = []
            for start in range(0, len(questions), 200):
                theirs += await opa.evaluate(questions[start : start + 200])
        finally:
            await embedded.close()
            await opa.close()
        return list(zip(questions, ours, theirs, strict=True))

    return asyncio.run(main())


def test_the_library_means_the_same_in_both() -> None:
    found = answered(LIBRARY, 400)
    for question, ours, theirs in found:
        assert ours.error == ""
        assert ours == theirs, question
    # Not vacuous: every rule both denied and let pass.
    for name in {question.rule for question, _, _ in found}:
        assert {bool(ours.deny) for question, ours, _ in found if question.rule == name} == {True, False}, name


def test_the_right_way_beside_every_lint_means_the_same_in_both(tmp_path: Path) -> None:
    files = {f"r{number}.rego": rule(lint.passes, name=f"r{number}", scope=WIDE) for number, lint in enumerate(LINTS)}
    for question, ours, theirs in answered(write_folder(tmp_path, {**files, **DATA}), 60):
        assert ours.error == ""
        assert ours == theirs, question
