"""The regorus interpreter behind values: text and JSON in, values and words out.

This is the only place that imports regorus. It runs in the evaluator child, and in the process itself for offline
use. An Interpreter belongs to one thread: regorus panics, with an exception that is no `Exception`, on any other.

Differences from OPA that are hidden here: a built-in that fails raises in regorus and is undefined in OPA (both
evaluators are made to report it); `"<undefined>"` is how regorus spells undefined; input is kept between
evaluations, so each one sets its own.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Before regorus is imported: with a backtrace the first error costs 350 ms, and the text 2.3 KB.
os.environ["RUST_LIB_BACKTRACE"] = "0"
os.environ["RUST_BACKTRACE"] = "0"

import msgspec
import regorus

from engine.policy.frames import Ask, Entry, Reply
from engine.policy.reply import decision_reply, values_reply

UNDEFINED = '"<undefined>"'


MAX_NESTING = 12
"""regorus's parser takes twice as long for each bracket or brace within another: 18 take 0.7 s, 30 an hour."""
_BRACKET = re.compile(r'"(?:[^"\\\n]|\\.)*"|`[^`]*`|#[^\n]*|(?P<open>[\[{])|(?P<close>[\]}])')


class InterpreterError(Exception):
    """The interpreter's own words about a module, a datum or an evaluation."""


def build() -> str:
    """Return what tells this interpreter from another one that may be installed in its place while the engine runs."""
    status = Path(regorus.regorus.__file__).stat()
    return f"{sys.version} {status.st_ino} {status.st_size} {status.st_mtime_ns}"


def _too_deep(text: str) -> tuple[int, int] | None:
    """Return line and column of the first bracket that is nested too deep, strings and comments left out."""
    depth = 0
    for found in _BRACKET.finditer(text):
        depth += bool(found["open"]) - bool(found["close"])
        if depth > MAX_NESTING:
            before = text[: found.start()]
            return before.count("\n") + 1, found.start() - before.rfind("\n")
    return None


def _words(error: BaseException) -> str:
    text = str(error).strip().split("\nStack backtrace:")[0].strip()
    return text or type(error).__name__


def _guard(error: BaseException) -> InterpreterError:
    """Turn what regorus raised into ours. A Rust panic arrives as pyo3_runtime.PanicException, a BaseException that
    cannot be imported; anything else that is no Exception (an interrupt) goes on its way."""
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return InterpreterError(_words(error))
    raise error


def parse(file: str, text: str) -> bytes:
    """Return one module's syntax tree as JSON. Raises InterpreterError with the first error."""
    place = _too_deep(text)
    if place is not None:
        words = f"brackets are nested more than {MAX_NESTING} deep"
        raise InterpreterError(f"--> {file}:{place[0]}:{place[1]}\nerror: {words}")
    engine = regorus.Engine()
    try:
        engine.add_policy(file, text)
        tree: str = engine.get_ast_as_json()
    except BaseException as error:  # noqa: BLE001 - a panic is a BaseException
        raise _guard(error) from None
    return tree.encode()


class Interpreter:
    """One loaded policy."""

    def __init__(self, modules: Sequence[tuple[str, str]], data: bytes, entries: Sequence[Entry] = ()) -> None:
        self._engine = regorus.Engine()
        self._entries = {entry.rule: entry for entry in entries}
        try:
            for file, text in modules:
                self._engine.add_policy(file, text)
            self._engine.add_data_json(data.decode())
        except BaseException as error:  # noqa: BLE001 - a panic is a BaseException
            raise _guard(error) from None

    def value(self, path: str, document: bytes = b"{}") -> Any:
        """Return the value of a rule (`data.a.b`) for an input, or msgspec.UNSET when it is undefined."""
        self._take(document)
        return self._value(path)

    def _take(self, document: bytes) -> None:
        try:
            self._engine.set_input_json(document.decode())
        except BaseException as error:  # noqa: BLE001 - a panic is a BaseException
            raise _guard(error) from None

    def _value(self, path: str) -> Any:
        try:
            text = self._engine.eval_rule_as_json(path)
        except BaseException as error:  # noqa: BLE001 - a panic is a BaseException
            raise _guard(error) from None
        return msgspec.UNSET if text.strip() == UNDEFINED else msgspec.json.decode(text)

    def answer(self, ask: Ask) -> Reply:
        """Return what one rule answers; an error becomes `Reply.error`, never an empty answer."""
        entry = self._entries.get(ask.rule)
        if entry is None:
            return Reply(error=f"no rule named {ask.rule} is loaded")
        try:
            return self._answer(entry, ask)
        except (InterpreterError, msgspec.DecodeError) as error:
            return Reply(error=str(error))

    def _answer(self, entry: Entry, ask: Ask) -> Reply:
        self._take(ask.input)
        if entry.decision:
            return decision_reply(self._value(f"{entry.package}.decision"))
        if entry.target:
            target = self._value(f"{entry.package}.target")
            # The condition of a rule that does not hold is undefined: that is how Rego says false.
            if target is msgspec.UNSET or target is False:
                return Reply(target=False)
            if target is not True:
                return Reply(error="target is neither true nor false")
        if ask.only_target:
            return Reply()
        return values_reply(
            self._value(f"{entry.package}.deny") if entry.deny else [],
            self._value(f"{entry.package}.reject") if entry.reject else [],
            self._value(f"{entry.package}.allow") if entry.allow else [],
            self._value(f"{entry.package}.ttl") if entry.ttl else msgspec.UNSET,
        )

    def exercise(
        self, inputs: Sequence[tuple[str, Sequence[bytes]]]
    ) -> tuple[list[tuple[str, bytes, str]], dict[str, list[int]]]:
        """Evaluate each rule with each of its inputs.

        Returns the first failure of each rule as (rule, input, error), and the lines evaluated by file.
        """
        failures: list[tuple[str, bytes, str]] = []
        self._engine.set_enable_coverage(True)
        self._engine.clear_coverage_data()
        for rule, documents in inputs:
            for document in documents:
                reply = self.answer(Ask(rule, document))
                if reply.error:
                    failures.append((rule, document, reply.error))
                    break
        report = msgspec.json.decode(self._engine.get_coverage_report_as_json())
        self._engine.set_enable_coverage(False)
        return failures, {file["path"]: sorted(file["covered"]) for file in report["files"]}
