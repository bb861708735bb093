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


class _Stream(asyncio.Protocol):
    """Collects bytes into frames; one waiter at a time."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._waiter: asyncio.Future[bytes] | None = None
        self.closed = False

    def expect(self) -> asyncio.Future[bytes]:
        self._waiter = asyncio.get_running_loop().create_future()
        if self.closed:
            self._waiter.set_exception(ChildError("the evaluator child has ended"))
        return self._waiter

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) < LENGTH_BYTES:
            return
        length = int.from_bytes(self._buffer[:LENGTH_BYTES], "big")
        if length > MAX_FRAME_BYTES:
            self.connection_lost(None)
            return
        if len(self._buffer) < LENGTH_BYTES + length:
            return
        body = bytes(self._buffer[LENGTH_BYTES : LENGTH_BYTES + length])
        del self._buffer[: LENGTH_BYTES + length]
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(body)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(ChildError("the evaluator child has ended"))


_R = TypeVar("_R", bound=msgspec.Struct)
_LOOK = 0.0003
"""Seconds: five cold rules take about half of it."""


class Child:
    """A running child. Made by `start`; not shared between two requests at a time."""

    def __init__(
        self, process: subprocess.Popen[bytes], transport: asyncio.Transport, stream: _Stream, responses: Any
    ) -> None:
        self._process = process
        self._transport = transport
        self._stream = stream
        self._decoder = msgspec.msgpack.Decoder(responses)

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
        try:
            transport, stream = await asyncio.get_running_loop().create_connection(_Stream, sock=ours)
        except BaseException:
            ours.close()
            process.kill()
            raise
        return cls(process, transport, stream, responses)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._stream.closed

    async def request(self, message: msgspec.Struct, expected: type[_R], timeout: float) -> _R:
        """Send one request and return its response, which must be of the expected type.

        Raises ChildError after `timeout` seconds, when the child dies, or when it answers something else. After
        that, and after a cancellation, the child must be ended: an answer may still be on its way.
        """
        waiter = self._stream.expect()
        # A bare timer instead of asyncio.wait_for, which costs a task and 20 µs a call.
        timer = asyncio.get_running_loop().call_later(timeout, _expire, waiter, timeout)
        try:
            self._transport.write(frame(message))
            self._look(waiter)
            body = await waiter
        finally:
            timer.cancel()
        try:
            response = self._decoder.decode(body)
        except msgspec.DecodeError as error:
            raise ChildError(f"the evaluator child sent no message: {error}") from error
        if not isinstance(response, expected):
            raise ChildError("the evaluator child answered another question")
        return response

    def _look(self, waiter: asyncio.Future[bytes]) -> None:
        """Read the answer without going to sleep for it: an answer takes about as long as the sleep would.

        Bounded, so that a slow answer, or a machine with one processor, costs no more than this.
        """
        descriptor = self._transport.get_extra_info("socket").fileno()
        until = time.perf_counter() + _LOOK
        while not waiter.done() and descriptor >= 0 and time.perf_counter() < until:
            try:
                data = os.read(descriptor, 1 << 16)
            except BlockingIOError:
                os.sched_yield()
                continue
            except OSError:
                return  # the event loop will find out, and say so
            if not data:
                return
            self._stream.data_received(data)

    async def end(self) -> None:
        """Kill the child and reap it. SIGKILL also ends a stopped or spinning one."""
        self._transport.abort()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await asyncio.to_thread(self._process.wait)


def _expire(waiter: asyncio.Future[bytes], timeout: float) -> None:
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
    command = [
        *die_with_parent(), sys.executable, "-S", "-s", "-B", "-m", module,
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
