"""A program of a few lines that connects and sends one hello: what an attempt runs under another executable.

`python -m engine.selftest.sender ADDRESS PORT NAME`; `--hand-over FD` instead sends the connected socket over that
UNIX socket and waits for its end. It imports nothing but the standard library and the hello.
"""

from __future__ import annotations

import socket
import sys

from engine.selftest.attempt import PATIENCE, hear
from engine.selftest.hello import client_hello


def main(words: list[str]) -> int:
    address, port, name, *rest = words
    with socket.create_connection((address, int(port)), timeout=PATIENCE) as connection:
        if rest:
            with socket.socket(fileno=int(rest[1])) as to:
                socket.send_fds(to, [b"x"], [connection.fileno()])
                to.recv(1)
            return 0
        connection.sendall(client_hello(name.encode()))
        hear(connection)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
