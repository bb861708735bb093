"""The evaluator child: `python -m engine.policy.child FD`, started by engine/policy/process.py and nothing else.

It serves one socket until the other end closes. Few imports on purpose: it is to stay below 35 MiB.
"""

from __future__ import annotations

import resource
import socket
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from engine.policy.frames import (
    LENGTH_BYTES,
    MAX_FRAME_BYTES,
    Evaluate,
    Evaluated,
    Queried,
    Query,
    Ready,
    Request,
    Response,
    frame,
)
from engine.policy.interpreter import Interpreter, InterpreterError


class _Served:
    """What the child holds between two frames."""

    def __init__(self) -> None:
        self.interpreter = Interpreter([], b"{}")

    def answer(self, request: Request) -> Response:
        if isinstance(request, Evaluate):
            return Evaluated([self.interpreter.answer(ask) for ask in request.asks])
        if isinstance(request, Query):
            return Queried([self._queried(path) for path in request.paths])
        try:
            self.interpreter = Interpreter(request.modules, request.data, request.entries)
        except InterpreterError as error:
            return Ready(str(error))
        return Ready()

    def _queried(self, path: str) -> tuple[bytes, str]:
        try:
            value = self.interpreter.value(path)
        except InterpreterError as error:
            return b"", str(error)
        return (b"" if value is msgspec.UNSET else msgspec.json.encode(value)), ""


def _receive(connection: socket.socket, count: int) -> bytes:
    """Return exactly `count` bytes, or fewer when the other end has closed."""
    content = connection.recv(count, socket.MSG_WAITALL)
    while content and len(content) < count:
        more = connection.recv(count - len(content), socket.MSG_WAITALL)
        if not more:
            break
        content += more
    return content


def serve(connection: socket.socket, cpu_seconds: int, kind: Any, answer: Callable[[Any], Any]) -> None:
    """Answer frames, which hold messages of one kind, until the other end closes."""
    requests = msgspec.msgpack.Decoder(kind)
    while True:
        head = _receive(connection, LENGTH_BYTES)
        if len(head) < LENGTH_BYTES:
            return
        length = int.from_bytes(head, "big")
        if length > MAX_FRAME_BYTES:
            raise SystemExit(2)
        request = requests.decode(_receive(connection, length))
        # The limit counts a process's whole life, so it is moved before each request. It ends a runaway evaluation
        # also when nobody is left to kill it: regorus has no time limit of its own.
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + cpu_seconds + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        try:
            connection.sendall(frame(answer(request)))
        except (BrokenPipeError, ConnectionResetError):
            return


def limited(words: list[str]) -> tuple[socket.socket, int]:
    """Take the limits from the command's words, and return the connection and the CPU seconds of a request."""
    descriptor, memory, cpu_seconds = (int(word) for word in words[1:4])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return socket.socket(fileno=descriptor), cpu_seconds


def main() -> None:
    connection, cpu_seconds = limited(sys.argv)
    serve(connection, cpu_seconds, Request, _Served().answer)


if __name__ == "__main__":
    main()
