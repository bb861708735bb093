"""One conformance suite, which the embedded evaluator and a real OPA server both pass."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ConfigError, EvaluatorError
from engine.policy.embedded import EmbeddedEvaluator
from engine.policy.evaluator import Answer, Evaluator, Question
from engine.policy.opa import OpaEvaluator
from engine.policy.opa_server import find_program
from tests.support.policies import Write, rule, statically, stop, write_folder

DEST = {"address": "192.0.2.1", "port": 443, "transport": "tcp", "locality": "public"}
EXE = {"path": "/usr/bin/a", "sha256": ""}


@pytest.fixture(params=["embedded", "opa"])
def make(request: pytest.FixtureRequest) -> Callable[[], EmbeddedEvaluator | OpaEvaluator]:
    if request.param == "embedded":
        return lambda: EmbeddedEvaluator(timeout=5.0, patience=30.0)
    return lambda: OpaEvaluator(timeout=5.0)


def ask(make: Callable[[], Evaluator], folder: Path, use: Callable[[Evaluator], Awaitable[Any]]) -> Any:
    """Load a folder that passes the check and use the evaluator; it is closed whatever happens."""

    async def main() -> Any:
        bundle, checked = statically(folder)
        assert checked.errors == ()
        evaluator = make()
        try:
            await evaluator.load(bundle, checked.rules)
            return await use(evaluator)
        finally:
            await evaluator.close()

    return asyncio.run(main())


def test_every_word_of_a_rule_is_answered(make: Callable[[], Evaluator], write: Write) -> None:
    folder = write(
        {
            "one.rego": rule(
                'deny contains "d1" if input.dest.port == 443\n'
                'deny contains "d0" if input.dest.port == 443\n'
                'reject contains sprintf("r %d", [input.dest.port]) if input.dest.port > 400\n'
                'allow contains "a" if input.dest.address == "192.0.2.1"\n'
                "ttl := 60 if input.dest.port == 443"
            )
        }
    )
    questions = [Question("one", {"dest": DEST}), Question("one", {"dest": DEST | {"port": 80}})]
    answers = ask(make, folder, lambda evaluator: evaluator.evaluate(questions))
    assert list(answers) == [
        Answer(deny=("d0", "d1"), reject=("r 443",), allow=("a",), ttl=60.0),
        Answer(allow=("a",)),
    ]


def test_a_false_target_keeps_the_body_from_being_evaluated(make: Callable[[], Evaluator], write: Write) -> None:
    folder = write(
        {
            "one.rego": rule(
                'target_scope := {"dest"}\ntarget if input.dest.port == 443\ndeny contains 1 / 0 if input.exe.path\n',
                scope='{"dest", "exe"}',
            ).replace("1 / 0", 'sprintf("%d", [count(net.cidr_expand(input.exe.path))])')
        }
    )
    inputs = {"dest": DEST | {"port": 80}, "exe": EXE}
    (answer,) = ask(make, folder, lambda evaluator: evaluator.evaluate([Question("one", inputs)]))
    assert answer == Answer(target=False)


def test_only_the_target_is_answered_from_the_targets_facts_alone(make: Callable[[], Evaluator], write: Write) -> None:
    folder = write(
        {
            "one.rego": rule(
                'target_scope := {"dest"}\ntarget if input.dest.port == 443\n'
                'deny contains "d" if input.exe.path != ""\n',
                scope='{"dest", "exe"}',
            )
        }
    )
    questions = [
        Question("one", {"dest": DEST}, only_target=True),
        Question("one", {"dest": DEST | {"port": 80}}, only_target=True),
        Question("one", {"dest": DEST, "exe": EXE}),
    ]
    answers = ask(make, folder, lambda evaluator: evaluator.evaluate(questions))
    assert list(answers) == [Answer(target=True), Answer(target=False), Answer(target=True, deny=("d",))]


def test_an_error_in_one_rule_is_its_own_failed_answer(make: Callable[[], Evaluator], write: Write) -> None:
    folder = write(
        {
            "one.rego": rule(
                'deny contains "d" if net.cidr_contains(input.exe.path, input.dest.address)', scope='{"dest", "exe"}'
            ),
            "two.rego": rule('deny contains "fine"', name="two"),
        }
    )
    questions = [Question("one", {"dest": DEST, "exe": EXE}), Question("two", {"dest": DEST})]
    broken, whole = ask(make, folder, lambda evaluator: evaluator.evaluate(questions))
    assert broken.error
    assert (broken.deny, broken.allow) == ((), ())
    assert whole == Answer(deny=("fine",))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('decision := "deny" if input.dest.port == 443', Answer(deny=("the decision is deny",))),
        (
            'decision := {"verdict": "reject", "reasons": ["b", "a"], "ttl": 5}',
            Answer(reject=("a", "b"), ttl=5.0),
        ),
        ('decision := "allow"', Answer(allow=("the decision is allow",))),
    ],
)
def test_a_single_decision_is_answered(
    make: Callable[[], Evaluator], write: Write, body: str, expected: Answer
) -> None:
    folder = write({"sallyport.rego": f"package sallyport\n\n{body}\n"})
    (answer,) = ask(make, folder, lambda evaluator: evaluator.evaluate([Question("decision", {"dest": DEST})]))
    assert answer == expected


@pytest.mark.parametrize(
    "body",
    [
        'decision := "deny" if input.dest.port == 1',
        'decision := "permit"',
        'decision := {"verdict": "allow", "reason": "one too few letters"}',
        'decision := {"verdict": "allow", "ttl": -1}',
        "decision := true",
    ],
)
def test_a_decision_that_is_undefined_or_no_verdict_is_no_answer(
    make: Callable[[], Evaluator], write: Write, body: str
) -> None:
    folder = write({"sallyport.rego": f"package sallyport\n\n{body}\n"})
    (answer,) = ask(make, folder, lambda evaluator: evaluator.evaluate([Question("decision", {"dest": DEST})]))
    assert answer.error
    assert answer.allow == ()


def test_a_ttl_that_is_no_number_is_no_answer(make: Callable[[], Evaluator], write: Write) -> None:
    folder = write({"one.rego": rule('allow contains "a"\nttl := "soon"')})
    (answer,) = ask(make, folder, lambda evaluator: evaluator.evaluate([Question("one", {"dest": DEST})]))
    assert "ttl" in answer.error


def test_a_target_that_is_no_boolean_is_no_answer(make: Callable[[], Evaluator], write: Write) -> None:
    folder = write({"one.rego": rule('target_scope := {"dest"}\ntarget := input.dest.port\ndeny contains "d"')})
    (answer,) = ask(make, folder, lambda evaluator: evaluator.evaluate([Question("one", {"dest": DEST})]))
    assert "target" in answer.error


def test_data_and_libraries_of_other_folders_are_there(make: Callable[[], Evaluator], write: Write) -> None:
    folder = write(
        {
            # "a.rego" is pushed before the library whose function it calls.
            "a.rego": rule(
                "import data.lib.ports\n\ndeny contains name if some name in ports.names(input.dest.port)"
            ).replace('scope := {"dest"}\n\nimport data.lib.ports\n', 'import data.lib.ports\n\nscope := {"dest"}\n'),
            "lib/ports.rego": (
                "package lib.ports\n\nnames(port) := {name | some name, listed in data.lists.ports; listed == port}\n"
            ),
            "lists/ports.json": {"ports": {"https": 443, "http": 80}},
        }
    )
    (answer,) = ask(make, folder, lambda evaluator: evaluator.evaluate([Question("one", {"dest": DEST})]))
    assert answer == Answer(deny=("https",))


def test_a_second_load_replaces_the_first(make: Callable[[], Evaluator], write: Write) -> None:
    async def reload(evaluator: Evaluator) -> list[Answer]:
        found = [*await evaluator.evaluate([Question("one", {"dest": DEST})])]
        bundle, checked = statically(write({"one.rego": rule('allow contains "new"')}))
        await evaluator.load(bundle, checked.rules)
        return [*found, *await evaluator.evaluate([Question("one", {"dest": DEST})])]

    folder = write({"one.rego": rule('deny contains "old"')})
    assert ask(make, folder, reload) == [Answer(deny=("old",)), Answer(allow=("new",))]


def test_a_rule_that_is_not_loaded_has_no_answer(make: Callable[[], Evaluator], write: Write) -> None:
    folder = write({"one.rego": rule('allow contains "a"')})
    (answer,) = ask(make, folder, lambda evaluator: evaluator.evaluate([Question("two", {"dest": DEST})]))
    assert answer.error


def test_a_killed_evaluator_answers_with_failures_and_comes_back(
    make: Callable[[], EmbeddedEvaluator | OpaEvaluator], write: Write
) -> None:
    question = [Question("one", {"dest": DEST})]

    async def kill(evaluator: Any) -> list[Answer]:
        first = evaluator.pid
        os.kill(first, signal.SIGKILL)
        # Whether the kill is noticed before or after the question is sent, there is never a made-up answer.
        answers = []
        for _ in range(200):
            answers += await evaluator.evaluate(question)
            if not answers[-1].error and evaluator.pid != first:
                break
        assert evaluator.restarts == 1
        return answers

    folder = write({"one.rego": rule('deny contains "d"')})
    answers = ask(make, folder, kill)
    assert answers[-1] == Answer(deny=("d",))
    assert {bool(answer.error) or answer.deny == ("d",) for answer in answers} == {True}


def test_a_hung_evaluator_is_replaced(make: Callable[[], EmbeddedEvaluator | OpaEvaluator], write: Write) -> None:
    async def hang(evaluator: Any) -> list[Answer]:
        evaluator._timeout = 0.1
        if isinstance(evaluator, OpaEvaluator):
            evaluator._asking._session._timeout = type(evaluator._asking._session._timeout)(total=0.1)
        first = evaluator.pid
        stop(first)
        answers = []
        for _ in range(200):
            answers += await evaluator.evaluate([Question("one", {"dest": DEST})])
            if not answers[-1].error:
                break
        assert evaluator.pid != first
        assert evaluator.restarts >= 1
        return answers

    folder = write({"one.rego": rule('deny contains "d"')})
    answers = ask(make, folder, hang)
    assert answers[-1] == Answer(deny=("d",))
    assert "did not answer" in answers[0].error


def test_a_stopped_evaluator_is_a_failed_answer(
    make: Callable[[], EmbeddedEvaluator | OpaEvaluator], write: Write
) -> None:
    async def stopped(evaluator: Any) -> Answer:
        evaluator._timeout = 0.2
        if isinstance(evaluator, OpaEvaluator):
            evaluator._asking._session._timeout = type(evaluator._asking._session._timeout)(total=0.2)
        stop(evaluator.pid)
        (answer,) = await evaluator.evaluate([Question("one", {"dest": DEST})])
        return answer

    folder = write({"one.rego": rule('allow contains "a"')})
    answer = ask(make, folder, stopped)
    assert "did not answer" in answer.error
    assert answer.allow == ()


def test_nothing_is_asked_of_an_evaluator_without_questions(make: Callable[[], Evaluator], write: Write) -> None:
    folder = write({"one.rego": rule('allow contains "a"')})
    assert list(ask(make, folder, lambda evaluator: evaluator.evaluate([]))) == []


def test_no_process_is_left(make: Callable[[], EmbeddedEvaluator | OpaEvaluator], write: Write) -> None:
    async def pid(evaluator: Any) -> int:
        return int(evaluator.pid)

    left = ask(make, write({"one.rego": rule('allow contains "a"')}), pid)
    assert not Path(f"/proc/{left}").exists()


def test_opa_needs_its_program(write: Write) -> None:
    bundle, checked = statically(write({"one.rego": rule('allow contains "a"')}))
    with pytest.raises(EvaluatorError, match="no program named opa-that-is-not-there"):
        asyncio.run(OpaEvaluator(binary="opa-that-is-not-there").load(bundle, checked.rules))


def test_opa_asks_for_its_token(write: Write) -> None:
    async def stranger(evaluator: Any) -> Answer:
        server = evaluator._server
        other = OpaEvaluator(url=f"http://127.0.0.1:{server.port}", token="wrong")  # noqa: S106 - that it is wrong is the point
        with pytest.raises(EvaluatorError):
            await other.load(*evaluator._loaded)
        (answer,) = await evaluator.evaluate([Question("one", {"dest": DEST})])
        return answer

    folder = write({"one.rego": rule('deny contains "still here"')})
    assert ask(OpaEvaluator, folder, stranger) == Answer(deny=("still here",))


def test_a_given_opa_server_is_used_and_cleaned_of_the_policy_before(tmp_path: Path) -> None:
    folders = [
        {"one.rego": rule('deny contains "first"'), "two.rego": rule('deny contains "left behind"', name="two")},
        {"a.rego": rule('deny contains "second"', name="two")},
    ]

    async def share(evaluator: Any) -> list[Answer]:
        server = evaluator._server
        other = OpaEvaluator(url=f"http://127.0.0.1:{server.port}", token=server.token, timeout=5.0)
        found = []
        try:
            for number, files in enumerate(folders):
                bundle, checked = statically(write_folder(tmp_path / str(number), files))
                await other.load(bundle, checked.rules)
                found += await other.evaluate([Question("two", {"dest": DEST})])
        finally:
            await other.close()
        assert server.running
        return found

    folder = write_folder(tmp_path / "own", {"sallyport.rego": 'package sallyport\n\ndecision := "deny"\n'})
    # The server's own modules go too: it holds one policy.
    assert ask(OpaEvaluator, folder, share) == [Answer(deny=("left behind",)), Answer(deny=("second",))]


@pytest.mark.parametrize(
    "url", ["opa.example:8181", "ftp://opa.example", "http://", "http://a/path", "http://u:p@a", "http://a:port"]
)
def test_an_address_that_is_no_opa_server_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="no address of an OPA server"):
        OpaEvaluator(url=url)


def test_decisions_do_not_go_through_a_proxy(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    folder = write({"one.rego": rule('deny contains "d"')})
    (answer,) = ask(
        lambda: OpaEvaluator(timeout=5.0), folder, lambda it: it.evaluate([Question("one", {"dest": DEST})])
    )
    assert answer == Answer(deny=("d",))


def test_an_opa_server_that_is_not_there_is_an_error_at_load_and_no_answer_later(write: Write) -> None:
    bundle, checked = statically(write({"one.rego": rule('allow contains "a"')}))
    with pytest.raises(EvaluatorError, match="OPA did not"):
        asyncio.run(OpaEvaluator(url="http://127.0.0.1:9").load(bundle, checked.rules))


def test_opa_is_found_beside_the_engines_python_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "opa"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert find_program("opa") == str(program)
    program.unlink()
    assert find_program("sh").endswith("/sh")
