"""`sallyport` with a gate that stops before each write: python -m tests.kernel.stepping SOCKET run ...

While somebody listens on SOCKET, the engine says there what it is about to write, and goes on when it is answered. The
event loop stands still meanwhile, as it would if the engine had been stopped at that very place.
"""

from __future__ import annotations

import functools
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from engine.cli.main import main
from engine.kernel.gate import KernelGate
from engine.kernel.sources import KernelSources

BESIDE = frozenset({"put_process", "remove_process"})
"""Writes that belong to no update: who a process is."""


class Steps:
    def __init__(self, path: str) -> None:
        self._path = path
        self._line: socket.socket | None = None
        self._turn = threading.Lock()
        """The tables of sources may be written by a thread."""

    def before(self, write: str) -> None:
        with self._turn:
            self._say(write)

    def _say(self, write: str) -> None:
        try:
            if self._line is None:
                self._line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self._line.connect(self._path)
            self._line.sendall(f"{write}\n".encode())
            if self._line.recv(1):
                return
        except OSError:
            pass  # nobody listens, or not any more
        if self._line is not None:
            self._line.close()
            self._line = None


def stepped(steps: Steps, word: str, write: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(write)
    def step(*arguments: Any) -> Any:
        steps.before(word)
        return write(*arguments)

    return step


if __name__ == "__main__":
    every = Steps(os.path.abspath(sys.argv[1]))  # noqa: PTH100 - it need not be there yet
    for kind, prefix in ((KernelGate, ""), (KernelSources, "sources.")):
        for name, write in list(vars(kind).items()):
            if name.startswith(("put_", "remove_", "set_", "keep")) and name not in BESIDE:
                setattr(kind, name, stepped(every, prefix + name, write))
    sys.exit(main(sys.argv[2:]))
