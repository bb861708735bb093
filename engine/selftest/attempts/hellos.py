"""What can be done to a hello so that whoever reads it on the way reads something else than the server."""

from __future__ import annotations

import socket

from engine.lab.topology import CLIENT, SERVER
from engine.selftest import frames
from engine.selftest.attempt import Attempt, Chance, Outcome, hear
from engine.selftest.hello import client_hello, handshake, record
from engine.selftest.policy import ALLOWED_NAME, RESOLVER

_TCP_REPAIR, _TCP_REPAIR_QUEUE, _TCP_QUEUE_SEQ = 19, 20, 21
_REPAIR_RECEIVE, _REPAIR_SEND = 1, 2
_OUTER_NAME = f"front.{ALLOWED_NAME}".encode()


def _say(c: Chance, pieces: list[bytes]) -> None:
    with c.connect(SERVER) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            # MSG_EOR: the kernel puts nothing more into this segment.
            connection.send(piece, socket.MSG_EOR)
        hear(connection)


def trickled(c: Chance) -> None:
    hello = c.denied_hello()
    _say(c, [hello[at : at + 1] for at in range(len(hello))])


def _refused(c: Chance, pieces: list[bytes]) -> str:
    try:
        _say(c, pieces)
    except OSError as error:
        return type(error).__name__
    return ""


def cut_anywhere(c: Chance) -> None:
    hello = c.denied_hello()
    words = [_refused(c, [hello[:at], hello[at:]]) for at in range(1, len(hello))]
    _raise_any(words)


def records_anywhere(c: Chance) -> None:
    message = handshake(c.denied_name)
    words = [_refused(c, [record(message[:at]) + record(message[at:])]) for at in range(1, len(message))]
    _raise_any(words)


def _raise_any(words: list[str]) -> None:
    if any(words):
        raise OSError(f"{sum(map(bool, words))} of {len(words)} refused")


def record_each(c: Chance) -> None:
    message = handshake(c.denied_name)
    _say(c, [b"".join(record(message[at : at + 1]) for at in range(len(message)))])


def empty_record(c: Chance) -> None:
    _say(c, [record(b"") + c.denied_hello()])


def five_bytes(c: Chance) -> None:
    _say(c, [b"\x16\x03\x01\x02\x00" + c.data * 40])


def second_hello(c: Chance) -> None:
    """A hello with an allowed name that claims to be longer than what is sent of it, then another one."""
    allowed = handshake(ALLOWED_NAME.encode())
    _say(c, [record(allowed)[:-20], c.denied_hello()])


def two_names(c: Chance) -> None:
    """One server_name extension too many: the first allowed, the last denied."""
    message = handshake(ALLOWED_NAME.encode())
    both = handshake(c.denied_name)[-(9 + len(c.denied_name)) :]
    size = len(message) - 4 + len(both)
    at = len(message) - _extensions_length(message)
    lengthened = (_extensions_length(message) + len(both)).to_bytes(2, "big")
    _say(c, [record(b"\x01" + size.to_bytes(3, "big") + message[4 : at - 2] + lengthened + message[at:] + both)])


def _extensions_length(message: bytes) -> int:
    """In these hellos: type, length, version, random, no session, one cipher, one compression, extensions."""
    return int.from_bytes(message[4 + 2 + 32 + 1 + 4 + 2 :][:2], "big")


def capitals(c: Chance) -> None:
    _say(c, [client_hello(c.denied_name.upper())])


def final_dot(c: Chance) -> None:
    _say(c, [client_hello(c.denied_name + b".")])


def with_nul(c: Chance) -> None:
    _say(c, [client_hello(c.denied_name + b"\0." + ALLOWED_NAME.encode())])


def urgent(c: Chance) -> None:
    """An urgent byte in the middle of the name: a server that does not ask for it in line never reads it."""
    half = len(c.token) // 2
    wire = client_hello(c.denied_name)
    at = wire.index(c.data) + half
    with c.connect(SERVER) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        connection.send(wire[:at])
        connection.send(b"x", socket.MSG_OOB)
        connection.send(wire[at:])
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        hear(connection)


def ech(c: Chance) -> None:
    _say(c, [client_hello(_OUTER_NAME, ech=True) + c.data])


def over_https(c: Chance) -> None:
    """A resolver that may be reached answers for any name: the question is application data."""
    _say(c, [client_hello(RESOLVER.encode()), record(c.data, 23)])


def _raw(c: Chance, cut: list[tuple[int, bytes]]) -> None:
    """Connect, then send segments of the connection by hand: (offset in the stream, bytes)."""
    with c.connect(SERVER) as connection, socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        sequence = []
        connection.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
        for queue in (_REPAIR_SEND, _REPAIR_RECEIVE):
            connection.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_QUEUE, queue)
            sequence.append(connection.getsockopt(socket.IPPROTO_TCP, _TCP_QUEUE_SEQ) & 0xFFFFFFFF)
        connection.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_QUEUE, 0)
        connection.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, -1)
        source = connection.getsockname()[1]
        for offset, data in cut:
            segment = frames.tcp(
                CLIENT, SERVER, source, c.port, sequence[0] + offset, sequence[1], frames.ACK | frames.PSH, data
            )
            raw.sendto(frames.ipv4(CLIENT, SERVER, frames.TCP, segment), (SERVER, 0))
        hear(connection)


def out_of_order(c: Chance) -> None:
    hello = c.denied_hello()
    half = hello.index(c.data) + 4
    _raw(c, [(half, hello[half:]), (0, hello[:half])])


def overlapping(c: Chance) -> None:
    """The part with the name twice, with different bytes: which one counts is the receiver's affair."""
    denied = c.denied_hello()
    # As long as the denied one, so that all lengths in it are the same.
    other = denied.replace(b"denied", b"danced")
    at = denied.index(c.data)
    _raw(c, [(at, other[at:]), (at, denied[at:]), (0, denied[:at])])


_WHOLE = "A hello is held until it is whole, and read in the order of its stream; none of it leaves before."

ATTEMPTS = (
    Attempt("hello byte by byte", "a denied name, one byte a segment", trickled, {Outcome.BLOCKED: _WHOLE}),
    Attempt("hello cut at every byte", "a denied name in two segments, each cut tried", cut_anywhere,
            {Outcome.BLOCKED: _WHOLE}),
    Attempt("record cut at every byte", "a denied name in two TLS records, each cut tried", records_anywhere,
            {Outcome.BLOCKED: "A hello over several records goes to the engine, which puts it together."}),
    Attempt("a record for each byte", "a denied name, one byte a TLS record", record_each,
            {Outcome.BLOCKED: "A hello over several records goes to the engine, which puts it together."}),
    Attempt("empty record first", "a denied name behind an empty handshake record", empty_record,
            {Outcome.BLOCKED: "What is no plain hello goes to the engine, which reads it or says why not."}),
    Attempt("five bytes of TLS", "a token behind a record header that a hello would have", five_bytes,
            {Outcome.BLOCKED: "What begins like a hello and is none has a stated state, and policy decides on it."}),
    Attempt("second hello inside the first", "a denied name where the rest of an allowed hello should be", second_hello,
            {Outcome.BLOCKED: "The stream is read by its lengths, not for what looks like a hello."}),
    Attempt("two server names", "a denied name in a second server_name extension", two_names,
            {Outcome.BLOCKED: "A hello that names itself twice is malformed (RFC 8446 section 4.2)."}),
    Attempt("capitals", "a denied name in capitals", capitals, {Outcome.BLOCKED: "Names are compared in lower case."}),
    Attempt("final dot", "a denied name with a dot at its end", final_dot,
            {Outcome.BLOCKED: "Names are compared without a final dot."}),
    Attempt("NUL in the name", "a denied name, a NUL, an allowed one", with_nul,
            {Outcome.BLOCKED: "A name with a control character is invalid, and policy decides on that state."}),
    Attempt("urgent byte in the name", "a denied name around a byte that the server never reads (RFC 6093)", urgent,
            {Outcome.BLOCKED: "A first payload with urgent data is no hello that two readers would read alike."}),
    Attempt("hello out of order", "a denied name in two segments, the second first, by a raw socket", out_of_order,
            {Outcome.BLOCKED: "Segments of a raw socket have no identity and belong to no stream that is known."},
            needs="CAP_NET_ADMIN"),
    Attempt("hello overlapping", "a denied name under another one of the same length, by a raw socket", overlapping,
            {Outcome.BLOCKED: "Segments of a raw socket have no identity and belong to no stream that is known."},
            needs="CAP_NET_ADMIN"),
    Attempt("ECH", "a name inside Encrypted Client Hello", ech,
            {Outcome.SEEN: "The inner name cannot be read; that there is one is a fact, and a rule can deny it."},
            tells=lambda entry: entry.name == _OUTER_NAME.decode() and entry.ech),
    Attempt("DNS over HTTPS", "a question inside TLS to a resolver that is allowed", over_https,
            {Outcome.SEEN: "The resolver's name is in the log, what it is asked is not: deny resolvers by name."},
            tells=lambda entry: entry.name == RESOLVER),
)  # fmt: skip
