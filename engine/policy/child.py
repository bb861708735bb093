"""The evaluator child: `python -m engine.policy.child FD`, started by engine/policy/process.py and nothing else.

It serves one socket until the other end closes. Few imports on purpose: it is to stay below 35 MiB.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from engine.policy.frames import (
    LENGTH_BYTES,
    MAX_FRAME_BYTES,
    Ask,
    Entry,
    Evaluate,
    Evaluated,
    Load,
    Queried,
    Query,
    Ready,
    Reply,
    Request,
    Response,
    Rouse,
    frame,
)
from engine.policy.interpreter import Interpreter, InterpreterError

_MOST = 1 << 16
_AWAKE = 0.0003
"""Seconds of evaluating ahead of a question: what the engine takes to read a hello and to send it."""
_SHORT = 0.0005
"""Seconds: a rule that took longer, cold caches included, is not evaluated for nothing."""


class Served:
    """What the child holds between two frames: an interpreter for each part, none of which sees another's rules."""

    def __init__(self) -> None:
        self._parts: dict[str, tuple[Interpreter, list[Entry]]] = {}
        self._of_rule: dict[str, Interpreter] = {}
        self._asked: dict[str, Ask] = {}
        """The last question about each rule that was answered quickly."""

    def heard(self, message: Request | Rouse) -> Response | None:
        if isinstance(message, Rouse):
            self._awake(message.rules)
            return None
        return self.answer(message)

    def answer(self, request: Request) -> Response:
        if isinstance(request, Evaluate):
            return Evaluated([self._evaluated(ask) for ask in request.asks])
        if isinstance(request, Query):
            return Queried([self._queried(request.part, path) for path in request.paths])
        try:
            return self._load(request)
        except InterpreterError as error:
            return Ready(str(error))

    def _load(self, request: Load) -> Ready:
        missing = [key for key in request.keep if key not in self._parts]
        if missing:
            return Ready(f"no part {missing[0]} to keep")
        parts = {key: self._parts[key] for key in request.keep}
        for part in request.parts:
            interpreter = Interpreter(part.modules, part.data, part.entries)
            for entry in part.entries[:1]:
                # The first evaluation compiles, and no connection is to wait for that. What is wrong with the rule
                # is said when it is asked.
                with contextlib.suppress(InterpreterError):
                    interpreter.value(f"{entry.package}.scope")
            parts[part.key] = interpreter, part.entries
        self._parts = parts
        self._asked = {}
        self._of_rule = {entry.rule: interpreter for interpreter, entries in parts.values() for entry in entries}
        return Ready()

    def _evaluated(self, ask: Ask) -> Reply:
        interpreter = self._of_rule.get(ask.rule)
        if interpreter is None:
            return Reply(error=f"no rule named {ask.rule} is loaded")
        began = time.perf_counter()
        reply = interpreter.answer(ask)
        if time.perf_counter() - began < _SHORT:
            self._asked[ask.rule] = ask
        else:
            self._asked.pop(ask.rule, None)
        return reply

    def _awake(self, rules: list[str]) -> None:
        """Evaluate what was asked before: by then the interpreter's code and the rules are in the caches, where a
        process that has slept finds neither. It has no other effect, and what comes out is thrown away."""
        until = time.perf_counter() + _AWAKE
        for rule in rules:
            ask = self._asked.get(rule)
            if ask is not None:
                self._evaluated(ask)
            if time.perf_counter() >= until:
                return

    def _queried(self, part: str, path: str) -> tuple[bytes, str]:
        if part not in self._parts:
            return b"", f"no part {part} is loaded"
        try:
            value = self._parts[part][0].value(path)
        except InterpreterError as error:
            return b"", str(error)
        return (b"" if value is msgspec.UNSET else msgspec.json.encode(value)), ""


class _Frames:
    """The frames of a connection, most of them by one call of the kernel."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = bytearray()

    def next(self) -> bytes | None:
        """Return the next frame, None when the other end has closed."""
        while (body := self._taken()) is None:
            data = self._connection.recv(_MOST)
            if not data:
                return None
            self._buffer += data
        return body

    def _taken(self) -> bytes | None:
        if len(self._buffer) < LENGTH_BYTES:
            return None
        length = int.from_bytes(self._buffer[:LENGTH_BYTES], "big")
        if length > MAX_FRAME_BYTES:
            raise SystemExit(2)
        end = LENGTH_BYTES + length
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[LENGTH_BYTES:end])
        del self._buffer[:end]
        return body


def serve(connection: socket.socket, cpu_seconds: int, kind: Any, answer: Callable[[Any], Any]) -> None:
    """Answer frames, which hold messages of one kind, until the other end closes. None: there is no answer to it."""
    requests = msgspec.msgpack.Decoder(kind)
    frames = _Frames(connection)
    _limit(cpu_seconds)
    while (body := frames.next()) is not None:
        answered = answer(requests.decode(body))
        try:
            if answered is not None:
                connection.sendall(frame(answered))
        except (BrokenPipeError, ConnectionResetError):
            return
        _limit(cpu_seconds)


def _limit(cpu_seconds: int) -> None:
    """Give the next request its CPU seconds.

    The kernel's limit counts a process's whole life, so it is moved after each answer, when nobody waits. It ends a
    runaway evaluation also when nobody is left to kill it: regorus has no time limit of its own.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + cpu_seconds + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def limited(words: list[str]) -> tuple[socket.socket, int]:
    """Take the limits from the command's words, and return the connection and the CPU seconds of a request."""
    descriptor, memory, cpu_seconds = (int(word) for word in words[1:4])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return socket.socket(fileno=descriptor), cpu_seconds


def main() -> None:
    connection, cpu_seconds = limited(sys.argv)
    serve(connection, cpu_seconds, Request | Rouse, Served().heard)


if __name__ == "__main__":
    main()
