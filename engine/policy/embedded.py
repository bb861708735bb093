"""The embedded evaluator: regorus in a child process with limits and a watchdog.

regorus has no time limit, holds the GIL while it evaluates, aborts when memory runs out and crashes on a recursive
function. So it lives in a child that is killed, restarted and reloaded when it does not answer in time; the question
then has a failed answer and the posture decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Sequence

import msgspec

from engine.errors import EvaluatorError
from engine.policy.bundle import Bundle
from engine.policy.evaluator import Answer, Question, failed, shared
from engine.policy.frames import Ask, Evaluate, Evaluated, Load, Part, Ready, Reply, Rouse
from engine.policy.process import Child, ChildError, Limits
from engine.policy.rule import Rule

_log = logging.getLogger(__name__)

LOAD_TIMEOUT = 30.0
"""Seconds for start and load: 500,000 names take half a second on a quiet machine."""
BACKOFF_FIRST = 0.05
BACKOFF_LAST = 5.0
"""Seconds between two restarts, doubled from the first to the last while no question is answered in between."""


class EmbeddedEvaluator:
    """`timeout`: seconds that the child may take for a call, after which it is killed. `patience`: seconds that a call
    waits for its turn before that, behind other calls or a restart. `restarts` counts children lost."""

    name = "embedded"

    def __init__(self, *, timeout: float = 0.25, patience: float = 1.0, limits: Limits = Limits()) -> None:  # noqa: B008 - frozen
        self._timeout = timeout
        self._patience = patience
        self._limits = limits
        self._child: Child | None = None
        self._spare: tuple[Child, set[str]] | None = None
        self._load: Load | None = None
        self._rules: dict[str, Rule] = {}
        self._turn = asyncio.Lock()
        # On a single CPU the child would only be in the way: 130 to 200 us later instead of 200 to 400 earlier.
        self._beside = len(os.sched_getaffinity(0)) > 1
        self._restart: asyncio.Task[None] | None = None
        self._losses_in_a_row = 0
        self._closed = False
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is none."""
        return self._child.pid if self._child is not None else None

    async def expect(self, parts: Sequence[Part]) -> None:
        """Start a child with these parts, for a `load` of which most are the same."""
        with contextlib.suppress(ChildError):
            self._spare = await self._started(Load(list(parts))), {part.key for part in parts}

    async def load(self, bundle: Bundle, rules: Sequence[Rule], parts: Sequence[Part] | None = None) -> None:
        """Start a child with this bundle and end the one before. Raises EvaluatorError and keeps the one before."""
        message = Load(list(whole(bundle, rules) if parts is None else parts))
        try:
            child = await self._taken(message) or await self._started(message)
        except ChildError as error:
            raise EvaluatorError(
                f"the embedded evaluator cannot load the policy: {error}", hint="run `sallyport policy check`"
            ) from error
        async with self._turn:
            before, self._child, self._load = self._child, child, message
            self._rules = {rule.name: rule for rule in rules}
            self._losses_in_a_row = 0
            self._closed = False
        if before is not None:
            await before.end()

    async def _taken(self, message: Load) -> Child | None:
        """Return the child that `expect` started, with what it lacks; None when there is none, or it is of no use."""
        if self._spare is None:
            return None
        (child, has), self._spare = self._spare, None
        keys = {part.key for part in message.parts}
        lacking = Load([part for part in message.parts if part.key not in has], sorted(keys & has))
        try:
            ready = await child.request(lacking, Ready, LOAD_TIMEOUT)
        except BaseException as error:
            await asyncio.shield(child.end())
            if isinstance(error, ChildError):
                return None
            raise
        if ready.error:
            await child.end()
            return None
        return child

    async def _started(self, message: Load) -> Child:
        child = await Child.start(self._limits)
        try:
            ready = await child.request(message, Ready, LOAD_TIMEOUT)
            if ready.error:
                raise ChildError(ready.error)
        except BaseException:
            await asyncio.shield(child.end())
            raise
        return child

    def rouse(self, rules: Sequence[str]) -> None:
        """Have the child awake when questions about these rules come."""
        if self._beside and self._child is not None and not self._turn.locked():
            self._child.rouse(Rouse(list(rules)))

    async def evaluate(self, questions: Sequence[Question]) -> Sequence[Answer]:
        """Return an answer for each question; failed ones when the child was too slow, died, or is being restarted."""
        if not questions:
            return []
        message = Evaluate(
            [Ask(question.rule, msgspec.json.encode(question.input), question.only_target) for question in questions]
        )
        deadline = asyncio.get_running_loop().time() + self._patience
        try:
            await self._acquire()
        except asyncio.TimeoutError:
            return failed(questions, f"the evaluator was busy for {self._patience:g} s")
        try:
            child = await self._ready(deadline)
            if child is None:
                return failed(questions, "the evaluator is being restarted")
            try:
                evaluated = await child.request(message, Evaluated, self._timeout)
            except ChildError as error:
                self._lost(child, error)
                return failed(questions, str(error))
            except asyncio.CancelledError:
                # The answer is still on its way and would be taken for the next question's.
                self._lost(child, ChildError("a question was abandoned"))
                raise
        finally:
            self._turn.release()
        if len(evaluated.replies) != len(questions):
            return failed(questions, "the evaluator answered another number of questions")
        self._losses_in_a_row = 0
        return [
            to_answer(reply, self._rules.get(question.rule))
            for reply, question in zip(evaluated.replies, questions, strict=True)
        ]

    async def _acquire(self) -> None:
        if not self._turn.locked():
            # Uncontended: the lock is taken without a trip through the loop.
            await self._turn.acquire()
        else:
            await asyncio.wait_for(self._turn.acquire(), self._patience)

    async def _ready(self, deadline: float) -> Child | None:
        """Return the child, waiting for a restart under way until the deadline. Called with the turn held."""
        if self._child is not None and self._child.ended:
            self._lost(self._child, ChildError("the evaluator child has ended"))
        if self._child is None and self._restart is not None:
            remaining = deadline - asyncio.get_running_loop().time()
            await asyncio.wait({self._restart}, timeout=max(remaining, 0))
        return self._child

    def _lost(self, child: Child, error: ChildError) -> None:
        """Give a child up and start the next one in the background."""
        self._child = None
        self.restarts += 1
        delay = 0.0
        if self._losses_in_a_row:
            delay = min(BACKOFF_FIRST * 2 ** (self._losses_in_a_row - 1), BACKOFF_LAST)
        self._losses_in_a_row += 1
        _log.warning("evaluator child %d lost (%s), the next one starts in %g s", child.pid, error, delay)
        if not self._closed:
            self._restart = asyncio.get_running_loop().create_task(self._replace(child, delay))

    async def _replace(self, child: Child, delay: float) -> None:
        await child.end()
        while not self._closed and self._load is not None:
            await asyncio.sleep(delay)
            message = self._load
            try:
                fresh = await self._started(message)
            except ChildError as error:
                delay = min(max(delay * 2, BACKOFF_FIRST), BACKOFF_LAST)
                _log.warning("evaluator child cannot be restarted (%s), again in %g s", error, delay)
                continue
            if self._closed or self._child is not None or message is not self._load:
                # A load() has put another one in place meanwhile.
                await fresh.end()
                return
            self._child = fresh
            return

    async def close(self) -> None:
        """End the child; no process is left behind."""
        self._closed = True
        if self._restart is not None:
            self._restart.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._restart
            self._restart = None
        children = [self._child, self._spare[0] if self._spare is not None else None]
        self._child = self._spare = None
        for child in children:
            if child is not None:
                await child.end()


def whole(bundle: Bundle, rules: Sequence[Rule]) -> list[Part]:
    """Return a bundle as one part."""
    modules = [(module.file, module.text) for module in bundle.modules]
    return [Part("whole", modules, msgspec.json.encode(bundle.data), [rule.entry() for rule in rules])]


def to_answer(reply: Reply, rule: Rule | None) -> Answer:
    """Turn the child's reply into an answer."""
    if reply.error:
        return Answer(error=reply.error)
    target = reply.target if rule is not None and rule.target_scope is not None else None
    return shared(Answer(tuple(reply.deny), tuple(reply.reject), tuple(reply.allow), target, reply.ttl))
