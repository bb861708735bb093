"""The side that tries to get out: a program that makes attempts, each in a process of its own.

`python -m engine.selftest.client`: one JSON object a line in, one a line out, until its input ends. An attempt is a
child without an exec in between: the gate has seen that process id in no tracepoint, and must find out who it is.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from engine.lab.dialogue import why
from engine.selftest.attempt import PATIENCE, Attempt, Chance, hear
from engine.selftest.attempts import ALL
from engine.selftest.hello import client_hello

_SECONDS = 100.0
_NOBODY = 65534
_READY, _GO, _END = b"\1", b"\2", b"\3"

Answer = dict[str, Any]


def _word(step: str, error: BaseException) -> str:
    return f"{why(error) if isinstance(error, OSError) else f'{type(error).__name__}: {error}'}{step}"


class Child:
    """One attempt under way."""

    def __init__(self, name: str, how: dict[str, Any]) -> None:
        attempt = next(each for each in ALL if each.name == name)
        self._told, tell = os.pipe()
        listen, self._go = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._told)
            os.close(self._go)
            self._act(attempt, how, tell, listen)
        os.close(tell)
        os.close(listen)

    def _act(self, attempt: Attempt, how: dict[str, Any], tell: int, listen: int) -> NoReturn:
        def wait() -> None:
            os.write(tell, _READY)
            os.read(listen, 1)

        # A session of its own, and nothing that the order's answers go through: whoever it leaves behind is found, and
        # keeps nobody waiting.
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        word = ""
        try:
            files = {key: Path(how.pop(key)) for key in ("work", "listed", "unwanted")}
            if not (attempt.needs or attempt.files):
                os.setgroups([])
                os.setresgid(_NOBODY, _NOBODY, _NOBODY)
                os.setresuid(_NOBODY, _NOBODY, _NOBODY)
            attempt.act(Chance(how["port"], how["token"], **files, wait=wait))
        except BaseException as error:  # noqa: BLE001 - whatever ends an attempt is its answer
            word = _word("", error)
        os.write(tell, word.encode()[:4000] + _END)
        os._exit(0)

    def prepared(self) -> bool:
        """Has it done what it does before there is a gate?"""
        return self._read() == _READY

    def end(self) -> str:
        """Let it go on, and return its last word: an error's name, or nothing."""
        with suppress(BrokenPipeError):
            os.write(self._go, _GO)
        words = b""
        # Not to the end of the pipe: somebody whom it left behind may hold that open.
        while not words.endswith(_END) and (piece := self._read()):
            words += piece
        os.close(self._told)
        os.close(self._go)
        with suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        return words.removeprefix(_READY).removesuffix(_END).decode(errors="replace")

    def _read(self) -> bytes:
        if not select.select([self._told], [], [], _SECONDS)[0]:
            return b""
        return os.read(self._told, 4096)


class Client:
    def __init__(self) -> None:
        self._prepared: dict[str, Child] = {}
        self._open: dict[str, socket.socket] = {}
        self.orders: dict[str, Callable[..., Answer]] = {
            "prepare": self.prepare,
            "go": self.go,
            "attempt": self.attempt,
            "open": self.open,
            "say": self.say,
            "send": self.send,
        }

    def prepare(self, name: str, **how: Any) -> Answer:
        self._prepared[name] = Child(name, how)
        return {"ready": self._prepared[name].prepared()}

    def go(self, name: str) -> Answer:
        return {"word": self._prepared.pop(name).end()}

    def attempt(self, name: str, **how: Any) -> Answer:
        return {"word": Child(name, how).end()}

    def open(self, key: str, address: str, port: int) -> Answer:
        """Open a connection and keep it."""
        try:
            self._open[key] = socket.create_connection((address, port), timeout=PATIENCE)
        except OSError as error:
            return {"word": _word(" at connect", error)}
        return {"word": ""}

    def say(self, key: str, name: str, *, wait: bool = True) -> Answer:
        """Send a hello with this name over a connection that is kept; wait for an answer."""
        connection = self._open[key]
        try:
            if name:
                connection.sendall(client_hello(name.encode()))
            if wait:
                hear(connection)
        except OSError as error:
            return {"word": _word(" at hello", error)}
        return {"word": ""}

    def send(self, address: str, port: int, text: str) -> Answer:
        """Send one datagram."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            try:
                datagrams.sendto(text.encode(), (address, port))
            except OSError as error:
                return {"word": _word("", error)}
        return {"word": ""}


def main() -> None:
    client = Client()
    for line in sys.stdin:
        order = json.loads(line)
        name = order.pop("do")
        print(json.dumps(client.orders[name](**order)), flush=True)


if __name__ == "__main__":
    main()
