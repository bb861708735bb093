"""Both ends of a TLS connection, each a program of its own.

`serve PORT CERT KEY`: accept, shake hands, send one byte, wait for the other end to close; one connection at a time.
`connect`: one connection for each line "ADDRESS PORT NAME" of standard input; the answer is the nanoseconds from
before connect() to the byte, or the error. Of its own it is run with `-I -S`: nothing that a site might add.
"""

from __future__ import annotations

import contextlib
import gc
import socket
import ssl
import sys
import time


def serve(port: int, certificate: str, key: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    # Tickets would leave after the handshake, while the client already closes.
    context.num_tickets = 0
    with socket.create_server(("", port), backlog=64) as listener:
        print("ready", flush=True)
        while True:
            plain, _ = listener.accept()
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as wrapped:
                wrapped.send(b"x")
                wrapped.recv(1)


def connect() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    gc.disable()
    for line in sys.stdin:
        address, port, name = line.split()
        plain = socket.socket()
        plain.settimeout(10.0)
        try:
            began = time.perf_counter_ns()
            plain.connect((address, int(port)))
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with context.wrap_socket(plain, server_hostname=name) as wrapped:
                if wrapped.recv(1) != b"x":
                    raise ConnectionError("the server closed without a byte")
                took = time.perf_counter_ns() - began
            print(took, flush=True)
        except OSError as error:
            print(f"{type(error).__name__}: {error}", flush=True)
        finally:
            plain.close()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]), sys.argv[3], sys.argv[4])
    else:
        connect()
