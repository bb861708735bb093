"""From outside in: the other side calls a program here, though it may not, or by a name that it may not ask for.

The attempts run on the far side; what a server on this side has read is the judge.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from engine.lab.topology import CLIENT, CLIENT6, DENIED_SOURCE, NEIGHBOUR
from engine.selftest.attempt import PATIENCE, Attempt, Chance, Outcome, Where, hear
from engine.selftest.attempts.headers import RECORD_ROUTE
from engine.selftest.hello import client_hello, crypto, handshake, initial, scrambled
from engine.selftest.policy import ALLOWED_NAME, DENIED_SOURCE6

_MSG_FASTOPEN = 0x20000000


def _call(source: str, address: str, port: int, pieces: Sequence[bytes]) -> None:
    with socket.create_connection((address, port), PATIENCE, (source, 0)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            connection.send(piece, socket.MSG_EOR)
        hear(connection)


def _send(source: str, address: str, port: int, datagrams: Sequence[bytes], options: bytes = b"") -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as out:
        if options:
            out.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, options)
        out.bind((source, 0))
        for each in datagrams:
            out.sendto(each, (address, port))


def tcp(c: Chance) -> None:
    _call(DENIED_SOURCE, CLIENT, c.port, [c.data])


def tcp6(c: Chance) -> None:
    _call(DENIED_SOURCE6, CLIENT6, c.port, [c.data])


def udp(c: Chance) -> None:
    _send(DENIED_SOURCE, CLIENT, c.port, [c.data])


def udp6(c: Chance) -> None:
    _send(DENIED_SOURCE6, CLIENT6, c.port, [c.data])


def fragmented(c: Chance) -> None:
    _send(DENIED_SOURCE, CLIENT, c.port, [bytes(4000) + c.data])


def options(c: Chance) -> None:
    _send(DENIED_SOURCE, CLIENT, c.port, [c.data], RECORD_ROUTE)


def fast_open(c: Chance) -> None:
    with socket.socket() as connection:
        connection.settimeout(PATIENCE)
        connection.bind((DENIED_SOURCE, 0))
        connection.sendto(c.data, _MSG_FASTOPEN, (CLIENT, c.port))
        hear(connection)


def hello(c: Chance) -> None:
    _call(NEIGHBOUR, CLIENT, c.port, [c.denied_hello()])


def hello_by_byte(c: Chance) -> None:
    whole = c.denied_hello()
    _call(NEIGHBOUR, CLIENT, c.port, [whole[at : at + 1] for at in range(len(whole))])


def no_hello(c: Chance) -> None:
    _call(NEIGHBOUR, CLIENT, c.port, [c.data])


def urgent(c: Chance) -> None:
    whole = client_hello(c.denied_name)
    at = whole.index(c.data) + len(c.token) // 2
    with socket.create_connection((CLIENT, c.port), PATIENCE, (NEIGHBOUR, 0)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        connection.send(whole[:at])
        connection.send(b"x", socket.MSG_OOB)
        connection.send(whole[at:])
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        hear(connection)


def fast_open_hello(c: Chance) -> None:
    with socket.socket() as connection:
        connection.settimeout(PATIENCE)
        connection.bind((NEIGHBOUR, 0))
        connection.sendto(c.denied_hello(), _MSG_FASTOPEN, (CLIENT, c.port))
        hear(connection)


def quic(c: Chance) -> None:
    datagram = initial(crypto(0, handshake(c.denied_name)), secrets.token_bytes(8), token=c.data)
    _send(NEIGHBOUR, CLIENT, c.port, [datagram])


def quic_scrambled(c: Chance) -> None:
    message = handshake(c.denied_name)
    pieces = range(7, len(message), 7)
    _send(NEIGHBOUR, CLIENT, c.port, scrambled(message, secrets.token_bytes(8), c.data, pieces))


def quic_second(c: Chance) -> None:
    first = initial(crypto(0, handshake(ALLOWED_NAME.encode())), secrets.token_bytes(8))
    second = initial(crypto(0, handshake(c.denied_name)), secrets.token_bytes(8), token=c.data)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.bind((NEIGHBOUR, 0))
        out.sendto(first, (CLIENT, c.port))
        # Until its verdict stands: nobody answers, and only a refusal would be heard of.
        out.settimeout(0.3)
        with suppress(TimeoutError):
            out.recv(1)
        out.sendto(second, (CLIENT, c.port))


_SOURCE = (
    "What comes in is judged by its source before anybody here hears of it, where the policy judges what comes in."
)
_NAME = "The first payload of what comes in is held and read like that of what leaves."

_ATTEMPTS = (
    Attempt("inbound: TCP", "a token from a denied source", tcp, {Outcome.BLOCKED: _SOURCE}),
    Attempt("inbound: TCP over IPv6", "a token from a denied source", tcp6, {Outcome.BLOCKED: _SOURCE}),
    Attempt("inbound: TCP Fast Open", "a token in the SYN from a denied source", fast_open,
            {Outcome.BLOCKED: _SOURCE}),
    Attempt("inbound: UDP", "a token from a denied source", udp, {Outcome.BLOCKED: _SOURCE}),
    Attempt("inbound: UDP over IPv6", "a token from a denied source", udp6, {Outcome.BLOCKED: _SOURCE}),
    Attempt("inbound: UDP in fragments", "a token from a denied source in the last fragment", fragmented,
            {Outcome.BLOCKED: "The first fragment is judged, the others have no ports and follow the posture."}),
    Attempt("inbound: IP options", "a token from a denied source behind 40 bytes of options", options,
            {Outcome.BLOCKED: "Options are skipped by the header's length."}),
    Attempt("inbound: hello", "a denied name from a source that names decide for", hello, {Outcome.BLOCKED: _NAME}),
    Attempt("inbound: hello byte by byte", "a denied name from such a source, one byte a segment", hello_by_byte,
            {Outcome.BLOCKED: _NAME}),
    Attempt("inbound: hello in the SYN", "a denied name from such a source by TCP Fast Open", fast_open_hello,
            {Outcome.BLOCKED: _NAME}),
    Attempt("inbound: urgent byte in the name", "a denied name from such a source around a byte that no server reads",
            urgent,
            {Outcome.BLOCKED: "A first payload with urgent data is no hello that two readers would read alike."}),
    Attempt("inbound: no hello", "a token from such a source that is no hello", no_hello,
            {Outcome.BLOCKED: "It has no name, and policy decides on that state."}),
    Attempt("inbound: QUIC", "a denied name from such a source", quic, {Outcome.BLOCKED: _NAME}),
    Attempt("inbound: QUIC scrambled", "a denied name from such a source over CRYPTO frames and datagrams out of order",
            quic_scrambled, {Outcome.BLOCKED: _NAME}),
    Attempt("inbound: second QUIC connection", "a denied name on a flow that an allowed one opened", quic_second,
            {Outcome.BLOCKED: "Each datagram that begins with a long header is judged, on an allowed flow too."},
            whole=False),
)  # fmt: skip
ATTEMPTS = tuple(replace(each, where=Where.OPPOSITE) for each in _ATTEMPTS)
