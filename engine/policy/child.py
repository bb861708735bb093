"""The evaluator child: `python -m engine.policy.child FD`, started by engine/policy/process.py and nothing else.

It serves one socket until the other end closes. Few imports on purpose: it is to stay below 35 MiB.
"""

from __future__ import annotations

import resource
import socket
import sys

import msgspec

from engine.policy.frames import (
    LENGTH_BYTES,
    MAX_FRAME_BYTES,
    Evaluate,
    Evaluated,
    Exercised,
    Load,
    Parse,
    Parsed,
    Queried,
    Query,
    Ready,
    Request,
    Response,
    frame,
)
from engine.policy.interpreter import Interpreter, InterpreterError, parse


class _Served:
    """What the child holds between two frames."""

    def __init__(self) -> None:
        self.interpreter = Interpreter([], b"{}")

    def answer(self, request: Request) -> Response:
        if isinstance(request, Evaluate):
            return Evaluated([self.interpreter.answer(ask) for ask in request.asks])
        if isinstance(request, Load):
            try:
                self.interpreter = Interpreter(request.modules, request.data, request.entries)
            except InterpreterError as error:
                return Ready(str(error))
            return Ready()
        if isinstance(request, Parse):
            return Parsed([_parsed(file, text) for file, text in request.modules])
        if isinstance(request, Query):
            return Queried([self._queried(path, request.input or b"{}") for path in request.paths])
        return Exercised(*self.interpreter.exercise(request.inputs))

    def _queried(self, path: str, document: bytes) -> tuple[bytes, str]:
        try:
            value = self.interpreter.value(path, document)
        except InterpreterError as error:
            return b"", str(error)
        return (b"" if value is msgspec.UNSET else msgspec.json.encode(value)), ""


def _parsed(file: str, text: str) -> tuple[bytes, str]:
    try:
        return parse(file, text), ""
    except InterpreterError as error:
        return b"", str(error)


def _receive(connection: socket.socket, count: int) -> bytes:
    """Return exactly `count` bytes, or fewer when the other end has closed."""
    content = connection.recv(count, socket.MSG_WAITALL)
    while content and len(content) < count:
        more = connection.recv(count - len(content), socket.MSG_WAITALL)
        if not more:
            break
        content += more
    return content


def serve(connection: socket.socket, cpu_seconds: int) -> None:
    """Answer frames until the other end closes."""
    served = _Served()
    requests = msgspec.msgpack.Decoder(Request)
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
        connection.sendall(frame(served.answer(request)))


def main() -> None:
    descriptor, memory, cpu_seconds = (int(word) for word in sys.argv[1:4])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    serve(socket.socket(fileno=descriptor), cpu_seconds)


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, BrokenPipeError, ConnectionResetError):
        # Ctrl-C reaches the whole foreground group; the engine ends its children itself.
        sys.exit(0)
