"""A real receiver of webhooks on loopback that does what a test's script says."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass
class Receiver:
    """`script`: one answer for each request, then 204 for all others. A number is a status, with headers as
    (number, headers); "hang": no answer until the end of the test; "drip": one byte of an answer at a time, without
    end; "reset": a TCP reset; "slam": 204, and the kept connection closed without notice."""

    url: str = ""
    script: list[Any] = field(default_factory=list)
    requests: list[dict[str, str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    taken: list[dict[str, Any]] = field(default_factory=list)
    connections: int = 0
    over: threading.Event = field(default_factory=threading.Event)
    on_request: Callable[[], None] = lambda: None

    def summaries(self) -> list[str]:
        return [body["data"]["summary"] for body in self.taken]


def _handler(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            receiver.connections += 1

        def log_message(self, *_: object) -> None:
            """Nothing on standard error."""

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.requests.append(dict(self.headers.items()))
            receiver.bodies.append(body)
            receiver.on_request()
            action = receiver.script.pop(0) if receiver.script else 204
            if action == "hang":
                receiver.over.wait()
                self.close_connection = True
                return
            if action == "drip":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                while not receiver.over.wait(0.01):
                    self.wfile.write(b"a")
                return
            if action == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                return
            status, headers = action if isinstance(action, tuple) else (action, {})
            if action == "slam":
                status, self.close_connection = 204, True
            if status < 300:
                receiver.taken.append(json.loads(body))
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A connection that the sink cut is no error of the test."""


@pytest.fixture
def start_receiver() -> Iterator[Callable[..., Receiver]]:
    running: list[tuple[Receiver, _Server, threading.Thread]] = []

    def start(*script: Any, tls: ssl.SSLContext | None = None) -> Receiver:
        receiver = Receiver(script=list(script))
        server = _Server(("127.0.0.1", 0), _handler(receiver))
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        receiver.url = f"{'https' if tls else 'http'}://localhost:{server.server_port}/hook?team=net"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        running.append((receiver, server, thread))
        return receiver

    yield start
    for receiver, server, thread in running:
        receiver.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
