"""Other ways out: namespaces, interfaces, forms of an address."""

from __future__ import annotations

import socket

from engine.lab.topology import DENIED, SERVER
from engine.selftest.attempt import Attempt, Chance, Outcome, Where, hear
from engine.selftest.policy import ELSEWHERE, NAT64


def token(c: Chance) -> None:
    with c.connect(DENIED) as connection:
        connection.sendall(c.data)
        hear(connection)


def token_udp(c: Chance) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.sendto(c.data, (DENIED, c.port))


def hello(c: Chance) -> None:
    with c.connect(SERVER) as connection:
        connection.sendall(c.denied_hello())
        hear(connection)


def hello_cut(c: Chance) -> None:
    whole = c.denied_hello()
    with c.connect(SERVER) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in (whole[:60], whole[60:]):
            connection.send(piece, socket.MSG_EOR)
        hear(connection)


def translated(c: Chance) -> None:
    """RFC 6052: behind a NAT64 this is the denied IPv4 address."""
    with c.connect(NAT64) as connection:
        connection.sendall(c.data)
        hear(connection)


def aside(c: Chance) -> None:
    with c.connect(ELSEWHERE) as connection:
        connection.sendall(c.denied_hello())
        hear(connection)


_ROUTED = "What is routed passes the guarded interface like all else, and is held there."

ATTEMPTS = (
    Attempt("namespace behind the gate", "a token to a denied address", token, {Outcome.BLOCKED: _ROUTED},
            where=Where.BEHIND),
    Attempt("namespace behind the gate: UDP", "a token to a denied address", token_udp, {Outcome.BLOCKED: _ROUTED},
            where=Where.BEHIND),
    Attempt("namespace behind the gate: hello", "a denied name", hello, {Outcome.BLOCKED: _ROUTED},
            where=Where.BEHIND),
    Attempt("namespace behind the gate: hello cut", "a denied name in two segments", hello_cut,
            {Outcome.BLOCKED: _ROUTED}, where=Where.BEHIND),
    Attempt("namespace with another way out", "a denied name by an interface that is not guarded", aside,
            {Outcome.SEEN: "No gate is on that interface; the log has the socket with program and destination, for "
             "its control group is guarded. Guard every interface that leads out."}, where=Where.ASIDE,
            tells=lambda entry: entry.type == "socket"),
    Attempt("NAT64 form of an address", "a token to a denied IPv4 address by its 64:ff9b::/96 form", translated,
            {Outcome.SEEN: "It is another address, and in the log as such: deny both forms where there is a NAT64."},
            tells=lambda entry: entry.address == NAT64),
)  # fmt: skip
