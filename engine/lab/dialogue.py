"""A TLS client that decides for itself how its hello is cut into segments and how long it is."""

from __future__ import annotations

import errno
import re
import socket
import ssl
from functools import cache
from typing import Any

SECONDS = 8.0
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_PADDING_EACH = 200


def why(error: OSError) -> str:
    """Name an error as a person greps for it: ECONNABORTED, timeout, or TLS's own reason."""
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, ssl.SSLError):
        return error.reason or type(error).__name__
    return errno.errorcode.get(error.errno or 0, str(error))


@cache
def _context(ca: str, padding: int) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca)
    # Protocols that nobody speaks make the hello long, as post-quantum key shares do; nginx takes the one it knows.
    rest = [f"{number:x>{_PADDING_EACH}}" for number in range(-(-padding // (_PADDING_EACH + 1)))]
    context.set_alpn_protocols(["http/1.1", *rest])
    return context


class Dialogue:
    """One connection: begin() once, then request() as often as wanted. Both answer with `answer`, the body of what
    the server said, or `error`, `errno` and the `step` at which it came."""

    def __init__(self) -> None:
        self._step = ""
        self._name = ""
        self._socket: socket.socket | None = None
        self._tls: ssl.SSLObject | None = None
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._hello = 0

    def begin(
        self, name: str, address: str, port: int, ca: str, pieces: int = 1, padding: int = 0, seconds: float = SECONDS
    ) -> dict[str, Any]:
        """Connect, shake hands with the hello cut into `pieces` segments, ask once."""
        self._name = name
        try:
            self._step = "connect"
            self._socket = socket.create_connection((address, port), timeout=seconds)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._step = "handshake"
            self._shake_hands(_context(ca, padding), pieces)
        except OSError as error:
            return self._failed(error)
        return self.request()

    def request(self) -> dict[str, Any]:
        """Send one request and return its answer."""
        self._step = "request"
        words = f"GET / HTTP/1.1\r\nHost: {self._name}\r\n\r\n".encode()
        try:
            if self._tls is None or self._socket is None:
                raise ConnectionError(errno.ENOTCONN, "not connected")
            self._tls.write(words)
            self._socket.sendall(self._out.read())
            answer = self._answer(self._tls)
        except OSError as error:
            return self._failed(error)
        return {"answer": answer, "hello": self._hello}

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def _shake_hands(self, context: ssl.SSLContext, pieces: int) -> None:
        assert self._socket is not None  # noqa: S101 - begin() has just connected it
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=self._name)
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._send_in(pieces)
                pieces = 1
                self._receive()
            else:
                self._send_in(1)
                return

    def _send_in(self, pieces: int) -> None:
        assert self._socket is not None  # noqa: S101
        data = self._out.read()
        self._hello = self._hello or len(data)
        size = -(-len(data) // pieces) or 1
        for start in range(0, len(data), size):
            # MSG_EOR: the kernel puts nothing more into this segment (TCP_NODELAY alone lets it, tcp_autocorking).
            self._socket.sendall(data[start : start + size], socket.MSG_EOR)

    def _receive(self) -> None:
        assert self._socket is not None  # noqa: S101
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionError(errno.ECONNRESET, "the other end closed the connection")
        self._in.write(data)

    def _answer(self, tls: ssl.SSLObject) -> str:
        got = b""
        while True:
            try:
                data = tls.read(65536)
                if not data:
                    raise ConnectionError(errno.ECONNRESET, "the other end took its leave")
                got += data
            except ssl.SSLWantReadError:
                self._receive()
            head, found, body = got.partition(b"\r\n\r\n")
            length = _LENGTH.search(head)
            if found and length and len(body) >= int(length[1]):
                return body.decode().strip()

    def _failed(self, error: OSError) -> dict[str, Any]:
        return {"error": why(error), "errno": error.errno or 0, "step": self._step, "hello": self._hello}


def fetch(**how: Any) -> dict[str, Any]:
    """One connection, one answer: the arguments and the answer of Dialogue.begin()."""
    dialogue = Dialogue()
    try:
        return dialogue.begin(**how)
    finally:
        dialogue.close()
