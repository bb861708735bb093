"""The embedded evaluator's child: hung, stopped, crashed or killed, it is replaced and nobody gets a made-up answer."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import msgspec
import pytest

from engine.policy import child, embedded, process
from engine.policy.child import Served
from engine.policy.embedded import EmbeddedEvaluator
from engine.policy.evaluator import Answer, Question
from engine.policy.frames import (
    Ask,
    Entry,
    Evaluate,
    Evaluated,
    Load,
    Part,
    Queried,
    Query,
    Ready,
    Reply,
    Rouse,
)
from engine.policy.interpreter import Interpreter
from engine.policy.process import Child, ChildError
from tests.support.policies import Write, rule, statically, stop

DEST = {"address": "192.0.2.1", "port": 443, "transport": "tcp", "locality": "public"}
ENDLESS = (
    'allow contains "a" if input.dest.port == 443\n'
    'allow contains sprintf("%d", [n]) if {\n\tinput.dest.port == 80\n'
    "\tn := count([1 | some x in numbers.range(1, 100000); some y in numbers.range(1, 100000); x == y])\n}"
)
CRASHING = (
    'allow contains "a" if input.dest.port == 443\n'
    'allow contains "b" if {\n\tinput.dest.port == 80\n\tf(1)\n}\nf(x) := f(x)'
)
_T = TypeVar("_T")


def question(port: int) -> list[Question]:
    return [Question("one", {"dest": DEST | {"port": port}})]


def alive(pid: int | None) -> bool:
    return Path(f"/proc/{pid}").exists()


def descriptors(pid: int) -> set[str]:
    return {str(entry.readlink()).partition(":")[0] for entry in Path(f"/proc/{pid}/fd").iterdir()}


def killed(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def environment_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def use(folder: Path, used: Callable[[EmbeddedEvaluator], Awaitable[_T]], *, timeout: float = 0.5) -> _T:
    async def main() -> _T:
        bundle, checked = statically(folder)
        evaluator = EmbeddedEvaluator(timeout=timeout, patience=30.0)
        try:
            await evaluator.load(bundle, checked.rules)
            return await used(evaluator)
        finally:
            await evaluator.close()

    return asyncio.run(main())


async def until_answered(evaluator: EmbeddedEvaluator, port: int) -> list[Answer]:
    """Ask until there is an answer; each call waits for a restart as long as its own timeout."""
    answers = []
    for _ in range(100):
        answers += await evaluator.evaluate(question(port))
        if not answers[-1].error:
            return answers
    raise AssertionError(answers)


@pytest.mark.parametrize(
    ("body", "words", "timeout"), [(ENDLESS, "did not answer", 0.5), (CRASHING, "has ended", 10.0)]
)
def test_a_rule_that_never_ends_or_crashes_costs_its_own_flow_only(
    write: Write, body: str, words: str, timeout: float
) -> None:
    async def used(evaluator: EmbeddedEvaluator) -> None:
        first = evaluator.pid
        (broken,) = await evaluator.evaluate(question(80))
        assert words in broken.error
        assert broken.allow == ()
        answers = await until_answered(evaluator, 443)
        assert answers[-1] == Answer(allow=("a",))
        assert evaluator.restarts == 1
        assert evaluator.pid != first
        assert not alive(first)

    use(write({"one.rego": rule(body)}), used, timeout=timeout)


def test_a_stopped_child_is_replaced(write: Write) -> None:
    async def used(evaluator: EmbeddedEvaluator) -> None:
        assert evaluator.pid is not None
        stop(evaluator.pid)
        (stopped,) = await evaluator.evaluate(question(443))
        assert "did not answer" in stopped.error
        assert (await until_answered(evaluator, 443))[-1] == Answer(allow=("a",))

    use(write({"one.rego": rule(ENDLESS)}), used)


def test_those_who_wait_behind_a_hung_question_get_their_own_answers(write: Write) -> None:
    async def used(evaluator: EmbeddedEvaluator) -> None:
        ports = [443, 80, 443, 22, 443]
        answers = await asyncio.gather(*(evaluator.evaluate(question(port)) for port in ports))
        for port, (answer,) in zip(ports, answers, strict=True):
            assert answer.error or answer.allow == (("a",) if port == 443 else ())
        assert answers[1][0].error

    use(write({"one.rego": rule(ENDLESS)}), used)


def test_a_burst_waits_its_turn_and_is_answered(write: Write) -> None:
    async def used(evaluator: EmbeddedEvaluator) -> None:
        answers = await asyncio.gather(*(evaluator.evaluate(question(443 + number % 2)) for number in range(500)))
        assert [answer.allow for (answer,) in answers] == [("a",), ()] * 250
        assert evaluator.restarts == 0

    use(write({"one.rego": rule(ENDLESS)}), used, timeout=5.0)


def test_a_call_does_not_wait_for_ever(write: Write) -> None:
    async def used(evaluator: EmbeddedEvaluator) -> None:
        evaluator._patience = 0.05
        first = asyncio.ensure_future(evaluator.evaluate(question(80)))
        await asyncio.sleep(0)
        (second,) = await evaluator.evaluate(question(443))
        assert second.error == "the evaluator was busy for 0.05 s"
        assert "did not answer" in (await first)[0].error

    use(write({"one.rego": rule(ENDLESS)}), used)


def test_an_abandoned_question_does_not_answer_the_next(write: Write) -> None:
    async def used(evaluator: EmbeddedEvaluator) -> None:
        assert evaluator.pid is not None
        # Stopped, so that the answer cannot be there before the question is given up.
        os.kill(evaluator.pid, signal.SIGSTOP)
        abandoned = asyncio.ensure_future(evaluator.evaluate(question(443)))
        await asyncio.sleep(0)
        abandoned.cancel()
        with pytest.raises(asyncio.CancelledError):
            await abandoned
        assert (await until_answered(evaluator, 22))[-1] == Answer()

    use(write({"one.rego": rule(ENDLESS)}), used)


def test_restarts_are_spaced_and_counted(write: Write) -> None:
    async def used(evaluator: EmbeddedEvaluator) -> None:
        pauses: list[float] = []
        real = asyncio.sleep

        async def pause(delay: float) -> None:
            pauses.append(delay)
            await real(0)

        asyncio.sleep = pause  # type: ignore[assignment]
        try:
            for _ in range(6):
                answers = []
                while not any("has ended" in answer.error for answer in answers):
                    answers += await evaluator.evaluate(question(80))
        finally:
            asyncio.sleep = real
        assert pauses[:5] == [0.0, 0.05, 0.1, 0.2, 0.4]
        assert evaluator.restarts == 6

    use(write({"one.rego": rule(CRASHING)}), used, timeout=10.0)


def test_after_close_nothing_is_started_again(write: Write) -> None:
    async def main() -> EmbeddedEvaluator:
        bundle, checked = statically(write({"one.rego": rule(CRASHING)}))
        evaluator = EmbeddedEvaluator()
        await evaluator.load(bundle, checked.rules)
        await evaluator.evaluate(question(80))
        await evaluator.close()
        (answer,) = await evaluator.evaluate(question(443))
        assert answer.error
        return evaluator

    assert asyncio.run(main()).pid is None


def test_the_child_has_the_socket_and_no_other_descriptor() -> None:
    async def main() -> set[str]:
        read_end, write_end = os.pipe()
        os.set_inheritable(write_end, True)
        child = await Child.start()
        try:
            await child.request(Query("", []), Queried, 10.0)
            return descriptors(child.pid)
        finally:
            await child.end()
            os.close(read_end)
            os.close(write_end)

    assert asyncio.run(main()) == {"/dev/null", "socket"}


def test_the_child_gets_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SALLYPORT_SECRET", "token")

    async def main() -> bytes:
        child = await Child.start()
        try:
            await child.request(Query("", []), Queried, 10.0)
            return environment_of(child.pid)
        finally:
            await child.end()

    environment = asyncio.run(main())
    assert b"SALLYPORT_SECRET" not in environment
    assert b"RUST_LIB_BACKTRACE=0" in environment


@pytest.mark.parametrize("kept", [True, False])
def test_the_child_keeps_compiled_modules_if_the_engine_does(monkeypatch: pytest.MonkeyPatch, kept: bool) -> None:
    commands: list[list[str]] = []

    def popen(command: list[str], **_: object) -> None:
        commands.append(command)
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(process.subprocess, "Popen", popen)
    flags = SimpleNamespace(dont_write_bytecode=not kept)
    monkeypatch.setattr(process, "sys", SimpleNamespace(executable=sys.executable, path=sys.path, flags=flags))
    with pytest.raises(ChildError, match="Cannot allocate memory"):
        asyncio.run(Child.start())
    assert ("-B" in commands[0]) is not kept


def test_the_child_dies_with_the_engine() -> None:
    # An engine that is killed while its child is in an endless evaluation: the closed socket is not seen there.
    program = (
        "import asyncio, os, signal\n"
        "from engine.policy.process import Child\n"
        "from engine.policy.frames import *\n"
        "async def main():\n"
        "    child = await Child.start()\n"
        "    many = 'numbers.range(1, 100000)'\n"
        "    module = f'package a\\n\\nx := count([1 | some i in {many}; some j in {many}; i == j])'\n"
        "    await child.request(Load([Part('a', [('a.rego', module)], b'{}', [])]), Ready, 10.0)\n"
        "    child._socket.send(frame(Query('a', ['data.a.x'])))\n"
        "    print(child.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == -signal.SIGKILL, run.stderr
    pid = int(run.stdout)
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        import select

        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        assert poll.poll(5_000), "the child outlived the engine"
    finally:
        os.close(descriptor)


def test_a_child_that_died_a_moment_ago_has_ended() -> None:
    async def main() -> None:
        child = await Child.start()
        try:
            await child.request(Query("", []), Queried, 10.0)
            # The loop gets no chance to hear of it before the next question is sent.
            killed(child.pid)
            with pytest.raises(ChildError, match="has ended"):
                await child.request(Query("", []), Queried, 10.0)
            assert child.ended
        finally:
            await child.end()

    asyncio.run(main())


def test_a_message_larger_than_the_socket_takes_arrives_or_is_given_up() -> None:
    names = msgspec.json.encode({"many": {f"host{number}.example": "listed" for number in range(200_000)}})
    load = Load([Part("a", [("a.rego", "package a\n\nx := count(data.many)\n")], names, [])])

    async def main() -> None:
        child = await Child.start()
        try:
            assert await child.request(load, Ready, 30.0) == Ready()
            queried = await child.request(Query("a", ["data.a.x"]), Queried, 10.0)
            assert queried.results == [(b"200000", "")]
            stop(child.pid)
            with pytest.raises(ChildError, match="did not answer within"):
                await child.request(load, Ready, 0.2)
        finally:
            await child.end()

    asyncio.run(main())


ROUSED = Load(
    [
        Part("a", [("a.rego", "package a\n\ndeny contains input.x\n")], b"{}", [Entry("one", "data.a", deny=True)]),
        Part("b", [("b.rego", "package b\n\ndeny contains input.x\n")], b"{}", [Entry("two", "data.b", deny=True)]),
    ]
)


def roused_by(served: Served, rules: list[str], monkeypatch: pytest.MonkeyPatch) -> list[Ask]:
    """Return what is evaluated when these rules are announced."""
    evaluated = []
    with monkeypatch.context() as patch:
        patch.setattr(Interpreter, "answer", lambda _, ask: evaluated.append(ask) or Reply())
        assert served.heard(Rouse(rules)) is None
    return evaluated


def test_a_child_that_is_roused_evaluates_what_it_was_asked_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child.time, "perf_counter", lambda: 0.0)
    served = Served()
    served.answer(ROUSED)
    assert roused_by(served, ["one", "two"], monkeypatch) == []
    asks = [Ask("one", b'{"x": "1"}'), Ask("two", b'{"x": "2"}')]
    served.answer(Evaluate(asks))
    assert roused_by(served, ["two", "gone", "one"], monkeypatch) == asks[::-1]
    # What was asked of other rules is forgotten with them.
    served.answer(ROUSED)
    assert roused_by(served, ["one", "two"], monkeypatch) == []


def test_no_question_waits_for_practice_that_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served()
    served.answer(ROUSED)
    clock = [0.0]

    def ticking(step: float) -> Callable[[], float]:
        def tick() -> float:
            clock[0] += step
            return clock[0]

        return tick

    asks = [Ask("one", b'{"x": "1"}'), Ask("two", b'{"x": "2"}')]
    # A rule that took a millisecond the last time is left alone.
    monkeypatch.setattr(child.time, "perf_counter", ticking(0.001))
    served.answer(Evaluate(asks))
    assert roused_by(served, ["one", "two"], monkeypatch) == []
    # Of many rules as many as there is time for.
    monkeypatch.setattr(child.time, "perf_counter", ticking(0.0002))
    served.answer(Evaluate(asks))
    assert roused_by(served, ["one", "two"], monkeypatch) == asks[:1]


def test_a_question_gets_its_own_answer_however_much_of_a_rouse_is_before_it() -> None:
    async def main() -> None:
        asked = await Child.start()
        try:
            assert await asked.request(ROUSED, Ready, 30.0) == Ready()
            for sent in (None, 3, 0):
                asked._heard = 0.0
                send = asked._send
                if sent is not None:
                    # The socket takes this much of it.
                    asked._send = (
                        lambda sent=sent: setattr(  # type: ignore[method-assign, misc]
                            asked, "_unsent", asked._unsent[asked._socket.send(asked._unsent[:sent]) if sent else 0 :]
                        )
                    )
                asked.rouse(Rouse(["one"]))
                asked._send = send  # type: ignore[method-assign]
                for text in ("a", "b"):
                    evaluate = Evaluate([Ask("one", msgspec.json.encode({"x": text}))])
                    assert await asked.request(evaluate, Evaluated, 10.0) == Evaluated([Reply(deny=[text])])
        finally:
            await asked.end()

    asyncio.run(main())


def test_a_child_is_roused_from_sleep_and_not_again_at_once() -> None:
    async def main() -> None:
        asked = await Child.start()
        sent: list[bytes] = []
        asked._send = lambda: (sent.append(bytes(asked._unsent)), setattr(asked, "_unsent", memoryview(b"")))[0]  # type: ignore[method-assign]
        try:
            asked.rouse(Rouse(["one"]))
            # However slow this machine is: as if no time had passed.
            asked._heard = float("inf")
            asked.rouse(Rouse(["one"]))
            assert len(sent) == 1
            asked._heard, asked.ended = 0.0, True
            asked.rouse(Rouse(["one"]))
            assert len(sent) == 1
        finally:
            await asked.end()

    asyncio.run(main())


@pytest.mark.parametrize(("processors", "expected"), [({3}, 0), ({0, 3}, 1)])
def test_a_child_is_roused_only_where_it_can_run_beside_the_engine(
    monkeypatch: pytest.MonkeyPatch, processors: set[int], expected: int
) -> None:
    monkeypatch.setattr(embedded.os, "sched_getaffinity", lambda _: processors)

    async def main() -> None:
        evaluator = EmbeddedEvaluator()
        sent: list[Rouse] = []
        evaluator._child = SimpleNamespace(rouse=sent.append)  # type: ignore[assignment]
        evaluator.rouse(["one"])
        assert len(sent) == expected
        # Nothing may come between a question and its answer.
        async with evaluator._turn:
            evaluator.rouse(["one"])
        assert len(sent) == expected

    asyncio.run(main())


def test_a_child_that_speaks_out_of_turn_is_not_believed() -> None:
    async def main() -> None:
        child = await Child.start()
        try:
            with pytest.raises(ChildError, match="another question"):
                await child.request(Query("", []), Ready, 10.0)
        finally:
            await child.end()

    asyncio.run(main())
