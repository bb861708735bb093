"""Other system calls than connect(2) and send(2), to a denied address or with a denied name."""

from __future__ import annotations

import os
import socket

from engine.lab.topology import DENIED, DENIED6, SERVER, SERVER6
from engine.selftest import uring
from engine.selftest.attempt import PATIENCE, Attempt, Chance, Outcome, hear

_MPTCP = 262
_SO_ZEROCOPY, _MSG_ZEROCOPY = 60, 0x4000000
_MSG_FASTOPEN = 0x20000000


def _fast_open(address: str, data: bytes, port: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as connection:
        connection.settimeout(PATIENCE)
        connection.sendto(data, _MSG_FASTOPEN, (address, port))
        hear(connection)


def fast_open(c: Chance) -> None:
    _fast_open(DENIED, c.data, c.port)


def fast_open_hello(c: Chance) -> None:
    _fast_open(SERVER, c.denied_hello(), c.port)


def fast_open_hello_cut(c: Chance) -> None:
    hello = c.denied_hello()
    with socket.socket() as connection:
        connection.settimeout(PATIENCE)
        connection.sendto(hello[:60], _MSG_FASTOPEN, (SERVER, c.port))
        connection.sendall(hello[60:])
        hear(connection)


def mapped(c: Chance) -> None:
    with socket.socket(socket.AF_INET6) as connection:
        connection.settimeout(PATIENCE)
        connection.connect((f"::ffff:{DENIED}", c.port))
        connection.sendall(c.data)
        hear(connection)


def plain6(c: Chance) -> None:
    with c.connect(DENIED6) as connection:
        connection.sendall(c.data)
        hear(connection)


def hello6(c: Chance) -> None:
    with c.connect(SERVER6) as connection:
        connection.sendall(c.denied_hello())
        hear(connection)


def uring_send(c: Chance) -> None:
    with socket.socket() as connection, uring.Ring() as ring:
        ring.connect(connection.fileno(), DENIED, c.port)
        ring.send(connection.fileno(), c.data)
        hear(connection)


def uring_polled(c: Chance) -> None:
    with socket.socket() as connection, uring.Ring(polled=True) as ring:
        ring.connect(connection.fileno(), DENIED, c.port)
        ring.send(connection.fileno(), c.data)
        hear(connection)


def uring_hello(c: Chance) -> None:
    with socket.socket() as connection, uring.Ring() as ring:
        ring.connect(connection.fileno(), SERVER, c.port)
        ring.send(connection.fileno(), c.denied_hello())
        hear(connection)


def _file(c: Chance) -> int:
    descriptor = os.memfd_create("hello")
    os.write(descriptor, c.denied_hello())
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def sendfile(c: Chance) -> None:
    file = _file(c)
    with c.connect(SERVER) as connection:
        os.sendfile(connection.fileno(), file, 0, len(c.denied_hello()))
        hear(connection)


def splice(c: Chance) -> None:
    length = len(c.denied_hello())
    file, (out, into) = _file(c), os.pipe()
    # Python 3.10 is the first with splice(2).
    os.splice(file, into, length)
    with c.connect(SERVER) as connection:
        os.splice(out, connection.fileno(), length)
        hear(connection)


def zero_copy(c: Chance) -> None:
    with c.connect(SERVER) as connection:
        connection.setsockopt(socket.SOL_SOCKET, _SO_ZEROCOPY, 1)
        connection.sendmsg([c.denied_hello()], [], _MSG_ZEROCOPY)
        hear(connection)


def _multipath(address: str, data: bytes, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, _MPTCP) as connection:
        connection.settimeout(PATIENCE)
        connection.connect((address, port))
        connection.sendall(data)
        hear(connection)


def multipath(c: Chance) -> None:
    _multipath(DENIED, c.data, c.port)


def multipath_hello(c: Chance) -> None:
    _multipath(SERVER, c.denied_hello(), c.port)


_BY_PACKET = "The gate judges the packet that leaves, whatever call made it."
_BY_NAME = "The hello is read from the packet that leaves, whatever call filled it."

ATTEMPTS = (
    Attempt("IPv6: connect and send", "a token to a denied address", plain6, {Outcome.BLOCKED: _BY_PACKET}),
    Attempt("IPv6: hello", "a denied name", hello6, {Outcome.BLOCKED: _BY_NAME}),
    Attempt(
        "v4-mapped IPv6",
        "a token to a denied IPv4 address through an IPv6 socket",
        mapped,
        {Outcome.BLOCKED: "It leaves as IPv4, and every key holds IPv4 in the mapped form."},
    ),
    Attempt(
        "TCP Fast Open",
        "a token in the SYN to a denied address",
        fast_open,
        {Outcome.BLOCKED: "The SYN is held with what it carries."},
    ),
    Attempt(
        "TCP Fast Open: hello in the SYN",
        "a denied name",
        fast_open_hello,
        {Outcome.BLOCKED: "The SYN is held with what it carries, and its payload is read as the first of the stream."},
    ),
    Attempt(
        "TCP Fast Open: hello cut",
        "a denied name over the SYN and the first segment",
        fast_open_hello_cut,
        {Outcome.BLOCKED: "The stream begins in the SYN, and its hello is held until it is whole."},
    ),
    Attempt("io_uring: connect and send", "a token to a denied address", uring_send, {Outcome.BLOCKED: _BY_PACKET}),
    Attempt(
        "io_uring: by the kernel's thread",
        "a token to a denied address, sent by a thread that polls (IORING_SETUP_SQPOLL)",
        uring_polled,
        {Outcome.BLOCKED: "That thread is one of the process's, and the packet leaves like others."},
    ),
    Attempt("io_uring: hello", "a denied name", uring_hello, {Outcome.BLOCKED: _BY_NAME}),
    Attempt("sendfile: hello", "a denied name from a file", sendfile, {Outcome.BLOCKED: _BY_NAME}),
    Attempt("splice: hello", "a denied name from a pipe", splice, {Outcome.BLOCKED: _BY_NAME}),
    Attempt("MSG_ZEROCOPY: hello", "a denied name from user memory", zero_copy, {Outcome.BLOCKED: _BY_NAME}),
    Attempt(
        "MPTCP",
        "a token to a denied address through a subflow",
        multipath,
        {Outcome.BLOCKED: "A subflow is a TCP flow; the gate has no identity for it, and judges its destination."},
    ),
    Attempt(
        "MPTCP: hello",
        "a denied name through a subflow",
        multipath_hello,
        {Outcome.BLOCKED: "A subflow's first payload is held and read like any other."},
    ),
)
