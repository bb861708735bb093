"""The load pipeline: what comes out of a good folder, and that a bad one leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from engine.errors import EvaluatorError
from engine.model.decision import Stage, Verdict
from engine.model.facts import Clock, Dest, Direction, Event, Exe, Facts, Name, NameState, Transport
from engine.policy import offline
from engine.policy.embedded import EmbeddedEvaluator
from engine.policy.evaluator import Evaluator
from engine.policy.findings import Finding, PolicyRefusedError
from engine.policy.prepare import Policy, examine, prepare
from engine.policy.process import Limits
from tests.support.policies import Write, rule


def children() -> set[int]:
    """Return the processes that this one has."""
    return {
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and f"\nPPid:\t{os.getpid()}\n" in _status(entry)
    }


def _status(entry: Path) -> str:
    try:
        return (entry / "status").read_text()
    except OSError:
        return ""


def refused(folder: Path, *, run_tests: bool = True) -> list[Finding]:
    before = children()
    with pytest.raises(PolicyRefusedError) as caught:
        asyncio.run(prepare(folder, EmbeddedEvaluator, run_tests=run_tests))
    assert children() == before
    return [finding for finding in caught.value.findings if not finding.warning]


def test_a_good_folder_becomes_a_policy_that_decides(write: Write) -> None:
    folder = write(
        {
            "sallyport.rego": (
                'package sallyport\n\ndefault_verdict := "deny"\n\n'
                "source_deny contains prefix if some prefix in data.lists.sources\n"
            ),
            "one.rego": rule('allow contains "https" if input.dest.port == 443\nttl := 7'),
            "lists/lists.json": {"sources": ["2001:db8::/32", "198.51.100.7", "::ffff:192.0.2.0/120", "192.0.2.0/24"]},
            "one_test.rego": (
                'package one_test\n\ntest_https if {\n\tdata.sallyport.rules.one.allow == {"https"}'
                ' with input as {"dest": {"port": 443}}\n}\n'
            ),
        }
    )

    async def main() -> tuple[Policy, Verdict, float | None]:
        policy = await prepare(folder, EmbeddedEvaluator)
        try:
            flow = Facts(
                Event.CONNECT, Direction.EGRESS, Dest("9.9.9.9", 443, Transport.TCP, "public"), Clock(1, "monday")
            )
            from datetime import datetime, timezone

            decision = await policy.judge().decide(flow, Stage.CONNECT, now=datetime.now(timezone.utc))
        finally:
            await policy.close()
        return policy, decision.verdict, decision.ttl

    policy, verdict, ttl = asyncio.run(main())
    assert (verdict, ttl) == (Verdict.ALLOW, 7.0)
    assert policy.default is Verdict.DENY
    assert list(policy.sources.deny.texts()) == ["192.0.2.0/24", "198.51.100.7/32", "2001:db8::/32"]
    assert [result.outcome for result in policy.tests] == ["pass"]
    assert policy.identity == f"sha256:{policy.bundle.digest}"
    assert policy.warnings == ()
    assert policy.reads_field("dest.port")
    assert not policy.reads_field("exe.sha256")


def test_a_rule_that_raises_is_refused_with_the_input_shown(write: Write) -> None:
    body = 'deny contains "d" if net.cidr_contains(input.exe.path, input.dest.address)'
    (found,) = refused(write({"one.rego": rule(body, scope='{"dest", "exe"}')}))
    assert (found.file, found.line) == ("one.rego", 5)
    assert '"dest":{"address":' in found.mend
    assert '"exe":{' in found.mend


def test_what_only_an_evaluation_notices_is_refused_with_its_place(write: Write) -> None:
    # Unsafe: `x` is bound by nothing. Parsing alone does not see it, and no input reaches the statement.
    (found,) = refused(write({"one.rego": rule('deny contains "d" if {\n\tfalse\n\tnot x == 1\n}')}))
    assert (found.file, found.line) == ("one.rego", 7)


def test_a_function_that_calls_itself_is_refused_and_not_loaded(write: Write) -> None:
    (found,) = refused(write({"one.rego": rule("deny contains msg if msg := f(1)\nf(x) := f(x)")}))
    assert "did not survive" in found.message


def test_bodies_that_no_input_reaches_are_named(write: Write) -> None:
    body = 'deny contains "d" if {\n\tinput.dest.port == 443\n\tinput.dest.port == 80\n\tinput.exe.path == "/a"\n}'
    examined = asyncio.run(examine(write({"one.rego": rule(body, scope='{"dest", "exe"}')})))
    assert [(finding.file, finding.line) for finding in examined.warnings] == [("one.rego", 8)]


def test_constants_of_policy_and_data_reach_the_bodies(write: Write) -> None:
    body = (
        'deny contains "d" if {\n\tinput.dest.port == 4711\n\tinput.name.value in data.lists.names\n'
        '\tinput.exe.path == "/opt/thing"\n\tnet.cidr_contains("203.0.113.0/24", input.dest.address)\n'
        '\tinput.name.state == "complete"\n}'
    )
    folder = write(
        {"one.rego": rule(body, scope='{"dest", "exe", "name"}'), "lists/n.json": {"names": ["odd.example.net"]}}
    )
    lines = [finding.line for finding in asyncio.run(examine(folder)).warnings]
    # All conditions at once are rare; each by itself is met.
    assert all(line > 7 for line in lines)


@pytest.mark.parametrize("item", ["10.0.0.1/8", "example.org", "", 7, "10.0.0.0/33"])
def test_a_wrong_prefix_is_refused(write: Write, item: object) -> None:
    folder = write(
        {
            "sallyport.rego": (
                'package sallyport\n\ndefault_verdict := "deny"\n\nsource_deny contains p if some p in data.lists.s\n'
            ),
            "lists/s.json": {"s": ["10.0.0.0/8", item]},
        }
    )
    (found,) = refused(folder)
    assert (found.file, found.line) == ("sallyport.rego", 5)
    assert repr(item) in found.message


def test_a_failing_test_refuses_the_policy_unless_tests_are_off(write: Write) -> None:
    files = {
        "one.rego": rule('deny contains "d"'),
        "one_test.rego": (
            "package one_test\n\ntest_no if count(data.sallyport.rules.one.deny) == 0\n\ntest_yes if true\n"
        ),
    }
    (found,) = refused(write(files))
    assert (found.file, found.line, found.message) == ("one_test.rego", 3, "the test one_test.test_no fails")
    assert len(asyncio.run(examine(write(files), run_tests=False)).rules) == 1


def test_a_test_that_raises_or_hangs_does_not_pass(write: Write) -> None:
    files = {
        "one.rego": rule('deny contains "d"'),
        "one_test.rego": (
            'package one_test\n\ntest_raises if not net.cidr_contains("x", "y")\n\n'
            "test_crashes if f(1)\n\nf(x) := f(x)\n\ntest_after if true\n\ntodo_test_later if false\n"
        ),
    }
    assert {(finding.line, "error" in finding.message) for finding in refused(write(files))} == {(3, True), (5, True)}


def test_an_evaluator_that_cannot_load_is_closed(write: Write) -> None:
    closed = []

    class Unwilling(EmbeddedEvaluator):
        async def load(self, *_: object) -> None:
            raise EvaluatorError("no")

        async def close(self) -> None:
            closed.append(True)
            await super().close()

    with pytest.raises(EvaluatorError):
        asyncio.run(prepare(write({"one.rego": rule('deny contains "d"')}), Unwilling))
    assert closed == [True]


def test_a_running_policy_is_not_touched_by_a_broken_one(write: Write) -> None:
    async def main() -> list[str]:
        from datetime import datetime, timezone

        running = await prepare(write({"one.rego": rule('deny contains "first"')}), EmbeddedEvaluator)
        try:
            with pytest.raises(PolicyRefusedError):
                await prepare(write({"one.rego": rule("deny contains if {")}), EmbeddedEvaluator)
            flow = Facts(
                Event.CONNECT, Direction.EGRESS, Dest("9.9.9.9", 443, Transport.TCP, "public"), Clock(1, "monday")
            )
            decision = await running.judge().decide(flow, Stage.CONNECT, now=datetime.now(timezone.utc))
            return [reason.message for reason in decision.reasons]
        finally:
            await running.close()

    assert asyncio.run(main()) == ["first"]


def test_data_beyond_the_memory_limit_is_an_error_of_the_evaluator(write: Write) -> None:
    def small() -> Evaluator:
        return EmbeddedEvaluator(limits=Limits(memory=1 << 20))

    names = {f"host{number}.example": "listed" for number in range(200_000)}
    body = 'deny contains "d" if input.dest.address in data.lists.names'
    folder = write({"one.rego": rule(body), "lists/names.json": {"names": names}})
    before = children()
    with pytest.raises(EvaluatorError):
        asyncio.run(prepare(folder, small))
    assert children() == before


def test_offline_decides_as_the_engine_does(write: Write) -> None:
    body = (
        'target_scope := {"name"}\ntarget if input.name.value == "a.example"\n'
        'deny contains "d" if input.exe.path != "/a"'
    )
    decided = offline.load(write({"one.rego": rule(body, scope='{"exe", "name"}')}))
    flow = Facts(
        Event.PAYLOAD,
        Direction.EGRESS,
        Dest("9.9.9.9", 443, Transport.TCP, "public"),
        Clock(1, "monday"),
        exe=Exe("/b"),
        name=Name("a.example", NameState.COMPLETE),
    )
    assert (decided(flow, Stage.PAYLOAD).verdict, decided(flow, Stage.PAYLOAD).scope) == (Verdict.DENY, {"exe", "name"})
    assert decided(flow, Stage.CONNECT).verdict is Verdict.UNDECIDED


def test_offline_refuses_what_the_engine_refuses(write: Write) -> None:
    with pytest.raises(PolicyRefusedError):
        offline.load(write({"one.rego": rule('deny contains "d" if input.user.uid == 0')}))
