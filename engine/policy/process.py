"""One evaluator child: started, asked, and ended. No policy knowledge here.

The child gets one end of a socket pair and no other descriptor, an environment of its own, limits on memory and CPU
(set by itself before anything else), and dies with the engine (PR_SET_PDEATHSIG, by setpriv of util-linux; without
setpriv the closed socket ends it).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from engine.policy.frames import LENGTH_BYTES, MAX_FRAME_BYTES, Response, frame


@dataclass(frozen=True)
class Limits:
    """`memory` bytes of address space (regorus reserves one GiB of it at start, untouched); `cpu_seconds` for one
    request."""

    memory: int = 2 << 30
    cpu_seconds: int = 30


class ChildError(Exception):
    """The child did not answer: it died, was too slow, or spoke out of turn. Its state is unknown; end it."""


_R = TypeVar("_R", bound=msgspec.Struct)
_LOOK = 0.0003
"""Seconds: five cold rules take about half of it."""
_AWAKE = 0.0002
"""Seconds after an answer, or after it was roused, within which a child need not be roused."""
_MOST = 1 << 16


class Child:
    """A running child. Made by `start`; not shared between two requests at a time.

    The socket is used directly, and looked at for a moment before anything is asked of the event loop: a transport, a
    future and a timer take 50 µs of each answer when their code is cold.
    """

    def __init__(self, process: subprocess.Popen[bytes], ours: socket.socket, responses: Any) -> None:
        self._process = process
        self._socket = ours
        self._decoder = msgspec.msgpack.Decoder(responses)
        self._buffer = bytearray()
        self._unsent = memoryview(b"")
        self._heard = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(ours.fileno(), self._readable)
        self.ended = False

    @classmethod
    async def start(
        cls, limits: Limits = Limits(), *, module: str = "engine.policy.child", responses: Any = Response
    ) -> Child:
        """Start a child: a module, and the type of what it answers. Raises ChildError when it cannot be started."""
        ours, theirs = socket.socketpair()
        try:
            ours.setblocking(False)
            process = _spawn(theirs, limits, module)
        except OSError as error:
            ours.close()
            raise ChildError(f"the evaluator child cannot be started: {error.strerror}") from error
        finally:
            theirs.close()
        return cls(process, ours, responses)

    @property
    def pid(self) -> int:
        return self._process.pid

    def rouse(self, message: msgspec.Struct) -> None:
        """Send a message that has no answer, ahead of a request, if the child has slept since the last one. Not while
        a request is under way."""
        moment = time.perf_counter()
        if not self.ended and not self._unsent and moment - self._heard > _AWAKE:
            self._heard = moment
            self._unsent = memoryview(frame(message))
            self._send()

    async def request(self, message: msgspec.Struct, expected: type[_R], timeout: float) -> _R:
        """Send one request and return its response, which must be of the expected type.

        Raises ChildError after `timeout` seconds, when the child dies, or when it answers something else. After
        that, and after a cancellation, the child must be ended: an answer may still be on its way.
        """
        # What `rouse` could not send goes first: half a message would spoil all that follow.
        self._unsent = memoryview(bytes(self._unsent) + frame(message))
        self._send()
        if not self._unsent:
            self._look()
        body = self._taken()
        if body is None:
            body = await self._awaited(timeout)
        self._heard = time.perf_counter()
        try:
            response = self._decoder.decode(body)
        except msgspec.DecodeError as error:
            raise ChildError(f"the evaluator child sent no message: {error}") from error
        if not isinstance(response, expected):
            raise ChildError("the evaluator child answered another question")
        return response

    def _look(self) -> None:
        """Read the answer without going to sleep for it: an answer takes about as long as the sleep would.

        Bounded, so that a slow answer, or a machine with one processor, costs no more than this.
        """
        until = time.perf_counter() + _LOOK
        while not self.ended and not self._receive() and time.perf_counter() < until:
            os.sched_yield()

    async def _awaited(self, timeout: float) -> bytes:
        """Sleep until the answer is here."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        # A bare timer instead of asyncio.wait_for, which costs a task and 20 µs a call.
        timer = self._loop.call_later(timeout, _expire, waiter, timeout)
        if self._unsent:
            self._loop.add_writer(self._socket.fileno(), self._send)
        self._waiter = waiter
        try:
            if self.ended:
                raise ChildError("the evaluator child has ended")
            while (body := self._taken()) is None:
                await waiter
        finally:
            self._waiter = None
            timer.cancel()
        return body

    def _readable(self) -> None:
        """Something came that nobody was looking for."""
        arrived = self._receive()
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        if self.ended:
            waiter.set_exception(ChildError("the evaluator child has ended"))
        elif arrived:
            waiter.set_result(None)

    def _receive(self) -> bool:
        """Take in what is there. True when it makes a whole frame."""
        try:
            data = self._socket.recv(_MOST)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._over()
            return False
        self._buffer += data
        length = int.from_bytes(self._buffer[:LENGTH_BYTES], "big")
        if len(self._buffer) >= LENGTH_BYTES and length > MAX_FRAME_BYTES:
            self._over()
            return False
        return len(self._buffer) >= LENGTH_BYTES + length

    def _taken(self) -> bytes | None:
        """Return the frame that has arrived, if it is whole."""
        end = LENGTH_BYTES + int.from_bytes(self._buffer[:LENGTH_BYTES], "big")
        if len(self._buffer) < max(end, LENGTH_BYTES):
            return None
        body = bytes(self._buffer[LENGTH_BYTES:end])
        del self._buffer[:end]
        return body

    def _send(self) -> None:
        """Send what the socket takes of what is left."""
        try:
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError:
            self._unsent = memoryview(b"")  # whoever reads finds out, and says so
        self._loop.remove_writer(self._socket.fileno())

    def _over(self) -> None:
        """The child says nothing more."""
        self.ended = True
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())

    async def end(self) -> None:
        """Kill the child and reap it. SIGKILL also ends a stopped or spinning one."""
        if self._socket.fileno() >= 0:
            self._over()
            self._socket.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await asyncio.to_thread(self._process.wait)


def _expire(waiter: asyncio.Future[None], timeout: float) -> None:
    if not waiter.done():
        waiter.set_exception(ChildError(f"the evaluator did not answer within {timeout:g} s"))


def die_with_parent() -> Sequence[str]:
    """Return the words to put before a command so that it is killed when this thread of the engine ends.

    setpriv rather than preexec_fn: Python code between fork and exec can deadlock a threaded process.
    """
    setpriv = shutil.which("setpriv", path="/usr/bin:/bin:/usr/sbin:/sbin")
    return [setpriv, "--pdeathsig", "KILL", "--no-new-privs", "--"] if setpriv else []


def _spawn(theirs: socket.socket, limits: Limits, module: str) -> subprocess.Popen[bytes]:
    # -S: site-packages come by PYTHONPATH instead, so no .pth file runs code in the child (2 MiB and 10 ms less).
    # Compiled modules are kept as the engine keeps its own: half of a child's start is compiling, each time, without.
    kept = ["-B"] if sys.flags.dont_write_bytecode else []
    command = [
        *die_with_parent(), sys.executable, "-S", "-s", *kept, "-m", module,
        str(theirs.fileno()), str(limits.memory), str(limits.cpu_seconds),
    ]  # fmt: skip
    paths = [os.path.realpath(path) if path else os.getcwd() for path in sys.path]  # noqa: PTH109
    environment = {
        "PYTHONPATH": os.pathsep.join(paths),
        "RUST_LIB_BACKTRACE": "0",
        "RUST_BACKTRACE": "0",
        # One arena: a second malloc arena costs 64 MiB of address space and grows the resident set.
        "MALLOC_ARENA_MAX": "1",
        "LC_ALL": "C.UTF-8",
    }
    return subprocess.Popen(
        command,
        env=environment,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(theirs.fileno(),),
        # Ctrl-C goes to the engine, which ends its children in order.
        start_new_session=True,
    )
