"""The workshop: what it passes over is what did not change, and what it says is what a first look would say."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.policy.embedded import EmbeddedEvaluator
from engine.policy.evaluator import Question
from engine.policy.examination import Examine, Given, Summaries, Summarise, Try
from engine.policy.findings import PolicyRefusedError
from engine.policy.frames import Load, Query
from engine.policy.prepare import Examined, examine
from engine.policy.process import Child, ChildError
from engine.policy.workshop import Workshop
from tests.support.policies import DEFAULT, Write, rule, statically

DEST = {"address": "192.0.2.1", "port": 443, "transport": "tcp", "locality": "public"}
TEST = 'package {name}_test\n\ntest_it if count(data.sallyport.rules.{name}.deny) >= 0 with input as {{"dest": {{}}}}\n'
FOLDER = {
    "one.rego": rule('deny contains "d" if data.lib.ports.closed[input.dest.port]'),
    "one_test.rego": TEST.format(name="one"),
    "two.rego": rule('deny contains "d" if input.dest.address in data.lists.addresses', name="two"),
    "two_test.rego": TEST.format(name="two"),
    "three.rego": rule('deny contains "d" if input.dest.port == 23', name="three"),
    "ports.rego": "package lib.ports\n\nclosed contains 25\n",
    "lists/addresses.json": {"addresses": ["192.0.2.7"]},
}


class Asked:
    """What the processes were asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.messages: list[Any] = []
        real = Child.request

        async def request(child: Child, message: Any, *rest: Any) -> Any:
            self.messages.append(message)
            return await real(child, message, *rest)

        monkeypatch.setattr(Child, "request", request)

    def take(self) -> tuple[set[str], set[str]]:
        """Return the packages that were tried and the tests that were run since the last time."""
        given: list[Given] = [each for message in self.messages if isinstance(message, Try) for each in message.given]
        paths = [path for message in self.messages if isinstance(message, Query) for path in message.paths]
        self.messages.clear()
        return {each.package[-1] for each in given}, set(paths)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)


def run(use: Callable[[Workshop], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        workshop = Workshop(lambda: EmbeddedEvaluator(timeout=5.0, patience=30.0))
        try:
            return await use(workshop)
        finally:
            await workshop.close()

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("file", "content", "tried", "tests"),
    [
        ("three.rego", rule('deny contains "d" if input.dest.port == 24', name="three"), {"three"}, set()),
        ("ports.rego", "package lib.ports\n\nclosed contains 26\n", {"ports", "one", "one_test"}, {"one_test.test_it"}),
        ("lists/addresses.json", '{"addresses": []}', {"two", "two_test"}, {"two_test.test_it"}),
        ("one_test.rego", f"{TEST.format(name='one')}\ntest_more if true\n", {"one_test"},
         {"one_test.test_it", "one_test.test_more"}),
        ("lists/other.json", '{"others": []}', set(), set()),
        ("more.rego", "package lib.addresses\n\nx := 1\n", {"addresses"}, set()),
        # What `data.lib.ports.closed` stands for is in two files from now on.
        ("more.rego", "package lib.ports\n\nclosed contains 27\n", {"ports", "one", "one_test"}, {"one_test.test_it"}),
        # A definition at a rule's path is the rule's, whatever package it stands in.
        ("more.rego", "package lib\n\nports.opened contains 1\n", {"lib"}, set()),
    ],
)  # fmt: skip
def test_only_what_can_reach_a_change_is_examined_again(
    write: Write, asked: Asked, file: str, content: str, tried: set[str], tests: set[str]
) -> None:
    async def use(workshop: Workshop) -> tuple[set[str], set[str]]:
        folder = write(FOLDER)
        await workshop.examine(folder)
        assert asked.take() == (
            {"sallyport", "one", "two", "three", "ports", "one_test", "two_test"},
            {"data.one_test.test_it", "data.two_test.test_it"},
        )
        write({file: content})
        await workshop.examine(folder)
        return asked.take()

    assert run(use) == (tried, {f"data.{test}" for test in tests})


def same(one: Examined, other: Examined) -> bool:
    return (one.rules, one.default, one.sources, one.warnings, one.tests, one.bundle) == (
        other.rules, other.default, other.sources, other.warnings, other.tests, other.bundle,
    )  # fmt: skip


def test_an_edited_policy_is_what_a_first_look_makes_of_it(write: Write) -> None:
    edits: list[dict[str, Any]] = [
        {"two.rego": rule('deny contains "a"\nreject contains "r" if input.dest.port == 1', name="two")},
        {"sallyport.rego": DEFAULT.replace("allow", "deny") + '\nsource_deny contains "192.0.2.0/24"\n'},
        {"lists/addresses.json": {"addresses": [], "more": 1}},
        {"ports.rego": "package lib.ports\n\nclosed contains 26\n\nunused if {\n\t1 == 2\n\t1 == 1\n}\n"},
        {"four.rego": rule('deny contains "d" if data.lib.ports.unused', name="four", scope='{"exe"}')},
        # `rules.one.deny` of package sallyport is the rule's own.
        {"root.rego": 'package sallyport\n\nrules.one.allow contains "a" if input.dest.port == 7\n'},
    ]

    async def use(workshop: Workshop) -> None:
        folder = write(FOLDER)
        for edit in edits:
            write({"sallyport.rego": (folder / "sallyport.rego").read_text(), **edit})
            assert same(await workshop.examine(folder), await Workshop(None).examine(folder))

    run(use)


@pytest.mark.parametrize(
    "files",
    [
        FOLDER,
        {"one.rego": rule('deny contains "d"'), "root.rego": 'package sallyport\n\nrules.one.allow contains "a"\n'},
        {"one.rego": rule('deny contains "d" if data.sallyport.rules.two.listed[1]'),
         "two.rego": rule('deny contains "d"\n\nlisted contains 1', name="two")},
        {"one.rego": rule('deny contains "d" if input.exe.path == "/a"')},
        {"one.rego": rule('deny contains "d" if data.sallyport.rules.two.deny'),
         "two.rego": rule('deny contains "d" if input.dest.port == 1', name="two")},
        {"one.rego": rule('deny contains "d" if data.lists.nothing'), "lists/a.json": {"something": 1}},
        {"one.rego": rule('deny contains "d" if not f(input.dest.port)\n\nf(x) if x == 1')},
        {"one.rego": rule('deny contains "d"'), "lists/a.json": {}, "sallyport/rules/one/x.json": {"deny": []}},
        {"one.rego": rule('deny contains "d"'), "one_test.rego": 'package sallyport.rules.one\n\ndeny contains "e"\n'},
        {"one.rego": rule('deny contains "d"'), "more.rego": 'package sallyport\n\ndefault_verdict := "deny"\n'},
        {"one.rego": rule('deny contains "d"'), "more.rego": 'package sallyport\n\ndecision := {"verdict": "deny"}\n'},
        {"one.rego": "package sallyport.rules.one.deep\n\nx := 1\n"},
        {"one.rego": "package sallyport.rules.one\n\nx := \n"},
        {"one.rego": rule("deny contains x if some x in data")},
    ],
)  # fmt: skip
def test_piece_by_piece_says_what_the_check_of_the_whole_says(write: Write, files: dict[str, Any]) -> None:
    folder = write(files)
    _, whole = statically(folder)
    errors = sorted(finding for finding in whole.findings if not finding.warning)
    if errors:
        with pytest.raises(PolicyRefusedError) as caught:
            asyncio.run(examine(folder, run_tests=False))
        assert sorted(finding for finding in caught.value.findings if not finding.warning) == errors
    else:
        examined = asyncio.run(examine(folder, run_tests=False))
        assert (examined.rules, examined.default) == (whole.rules, whole.default)
        assert set(whole.findings) <= set(examined.warnings)


def test_a_refused_candidate_costs_the_one_in_force_nothing(write: Write, asked: Asked) -> None:
    async def use(workshop: Workshop) -> None:
        folder = write(FOLDER)
        await workshop.examine(folder)
        asked.take()
        write({"three.rego": rule("deny contains if", name="three")})
        with pytest.raises(PolicyRefusedError):
            await workshop.examine(folder)
        assert asked.take() == (set(), set())
        write(FOLDER)
        await workshop.examine(folder)
        assert asked.take() == (set(), set())

    run(use)


def test_a_test_that_failed_is_run_again_and_fails_again(write: Write, asked: Asked) -> None:
    async def use(workshop: Workshop) -> None:
        folder = write({**FOLDER, "one_test.rego": "package one_test\n\ntest_it if false\n"})
        for _ in range(2):
            with pytest.raises(PolicyRefusedError):
                await workshop.examine(folder)
            assert "data.one_test.test_it" in asked.take()[1]

    run(use)


def test_what_another_build_of_the_interpreter_found_does_not_count(
    write: Write, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(workshop: Workshop) -> None:
        folder = write(FOLDER)
        await workshop.examine(folder)
        first = asked.take()
        real = Child.request

        async def request(child: Child, message: Any, *rest: Any) -> Any:
            told = await real(child, message, *rest)
            return msgspec.structs.replace(told, build="another") if isinstance(told, Summaries) else told

        monkeypatch.setattr(Child, "request", request)
        await workshop.examine(folder)
        assert asked.take() == first

    run(use)


def test_whoever_is_expected_is_quick_and_says_what_is_new(write: Write, asked: Asked) -> None:
    async def use(workshop: Workshop) -> None:
        folder = write(FOLDER)
        old = await workshop.prepare(folder)
        try:
            workshop.expect()
            write({"three.rego": rule('deny contains "new" if input.dest.port == 443', name="three")})
            asked.messages.clear()
            new = await workshop.prepare(folder)
            try:
                (*_, load) = [message for message in asked.messages if isinstance(message, Load)]
                assert [entry.rule for part in load.parts for entry in part.entries] == ["three"]
                assert len(load.keep) == 2
                questions = [Question(name, {"dest": DEST}) for name in ("one", "two", "three")]
                assert [answer.deny for answer in await new.evaluator.evaluate(questions)] == [(), (), ("new",)]
                assert [answer.deny for answer in await old.evaluator.evaluate(questions)] == [(), (), ()]
            finally:
                await new.close()
        finally:
            await old.close()

    run(use)


def test_a_process_that_was_slow_to_wake_up_is_not_asked_anything(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its late answer would be taken for that to the first question about the candidate."""
    real, slow = Child.request, []

    async def request(child: Child, message: Any, *rest: Any) -> Any:
        if message == Summarise([]):
            slow.append(child)
            with pytest.raises(ChildError):
                await real(child, message, rest[0], 0.0)
            raise ChildError("the evaluator did not answer within 0 s")
        return await real(child, message, *rest)

    monkeypatch.setattr(Child, "request", request)

    async def use(workshop: Workshop) -> None:
        folder = write(FOLDER)
        workshop.expect()
        examined = await workshop.examine(folder)
        assert {rule.name for rule in examined.rules} == {"one", "two", "three"}
        assert [child.ended for child in slow] == [True]

    run(use)


def test_nobody_waits_for_a_change_that_does_not_come(write: Write) -> None:
    async def use(workshop: Workshop) -> tuple[int, int]:
        policy = await workshop.prepare(write(FOLDER))
        try:
            workshop.expect()
            assert workshop._checker is not None
            assert workshop._evaluator is not None
            checker = await workshop._checker
            spare = (await workshop._evaluator)._spare  # type: ignore[attr-defined]
            assert checker is not None
            await workshop.close()
            return checker.pid, spare[0].pid
        finally:
            await policy.close()

    assert not any(Path(f"/proc/{pid}").exists() for pid in run(use))


def test_rules_of_one_large_file_share_an_interpreter(write: Write) -> None:
    names = {f"host{number}.example": "a reason that is long enough" for number in range(30_000)}
    folder = write(
        {
            "one.rego": rule('deny contains "d" if data.lists.names[input.dest.address]'),
            "two.rego": rule('deny contains "d" if data.lists.names["host7.example"]', name="two"),
            "three.rego": rule('deny contains "d" if input.dest.port == 23', name="three"),
            "lists/names.json": {"names": names},
        }
    )
    examined = asyncio.run(examine(folder))
    assert sorted(sorted(entry.rule for entry in part.entries) for part in examined.parts) == [
        ["one", "two"],
        ["three"],
    ]


def test_the_whole_is_asked_about_where_a_piece_is_in_doubt(write: Write, asked: Asked) -> None:
    with pytest.raises(PolicyRefusedError) as caught:
        asyncio.run(examine(write({"one.rego": rule('deny contains "d" if data.list.x'), "lists/a.json": {"x": 1}})))
    assert any(isinstance(message, Examine) for message in asked.messages)
    assert [finding.mend for finding in caught.value.findings] == ["did you mean lists?"]


def test_a_candidate_that_outlasts_what_waited_for_it_gets_another(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.policy.workshop._SPARE_SECONDS", 0.0)

    async def use(workshop: Workshop) -> list[tuple[str, ...]]:
        policy = await workshop.prepare(write({"one.rego": rule('deny contains "d" if input.dest.port == 443')}))
        try:
            assert workshop._evaluator is None
            return [answer.deny for answer in await policy.evaluator.evaluate([Question("one", {"dest": DEST})])]
        finally:
            await policy.close()

    assert run(use) == [("d",)]
