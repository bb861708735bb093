"""The two evaluators agree on the starter library for generated inputs."""

from __future__ import annotations

import asyncio
from pathlib import Path

from engine.policy import warmup
from engine.policy.bundle import read
from engine.policy.embedded import EmbeddedEvaluator
from engine.policy.evaluator import Question
from engine.policy.opa import OpaEvaluator
from engine.policy.prepare import parse_and_check

LIBRARY = Path(__file__).parents[3] / "policies"


def test_the_library_means_the_same_in_both() -> None:
    async def main() -> None:
        bundle = read(LIBRARY)
        checked = await parse_and_check(bundle)
        questions = [
            Question(rule.name, document)
            for rule in checked.rules
            for document in warmup.generate(checked.program, rule, bundle.data, 400)
        ]
        embedded, opa = EmbeddedEvaluator(timeout=30.0), OpaEvaluator(timeout=30.0)
        try:
            await embedded.load(bundle, checked.rules)
            await opa.load(bundle, checked.rules)
            ours = await embedded.evaluate(questions)
            theirs: list[object] = []
            for start in range(0, len(questions), 100):
                theirs += await opa.evaluate(questions[start : start + 100])
        finally:
            await embedded.close()
            await opa.close()
        assert [answer for answer in ours if answer.error] == []
        for question, one, other in zip(questions, ours, theirs, strict=True):
            assert one == other, question
        # Not vacuous: every rule both denied and let pass.
        for rule in checked.rules:
            said = {
                bool(answer.deny)
                for question, answer in zip(questions, ours, strict=True)
                if question.rule == rule.name
            }
            assert said == {True, False}, rule.name

    asyncio.run(main())
