"""Sockets that change hands, change peers, or were there before: who is it, and what was decided for whom?"""

from __future__ import annotations

import os
import socket
import struct
import time

from engine.kernel import syscalls
from engine.lab.topology import CLIENT, DENIED, NEIGHBOUR, SERVER
from engine.selftest.attempt import PATIENCE, Attempt, Chance, Outcome, Where, hear
from engine.selftest.hello import client_hello
from engine.selftest.policy import ALLOWED_NAME, GHOST, QUIET

PEER_PORT = 61234
_TCP_REPAIR, _TCP_REPAIR_QUEUE, _TCP_QUEUE_SEQ, _TCP_REPAIR_WINDOW = 19, 20, 21, 29
_REPAIR_RECEIVE, _REPAIR_SEND = 1, 2
_NO_LINGER = struct.pack("=ii", 1, 0)
_ON_ITS_WAY = 0.1
"""Seconds after which a packet has left, and the kernel has not yet sent it again (it waits for 0.2 at least)."""


def _disconnect(connection: socket.socket) -> None:
    """connect(2) with AF_UNSPEC: the socket is as new."""
    none = bytearray(16)
    syscalls.call(syscalls.number("connect"), connection.fileno(), syscalls.address(none), len(none))


def reconnect(c: Chance) -> None:
    with c.connect(NEIGHBOUR) as connection:
        connection.sendall(b"harmless")
        hear(connection)
        _disconnect(connection)
        connection.settimeout(PATIENCE)
        connection.connect((DENIED, c.port))
        connection.sendall(c.data)
        hear(connection)


def reconnect_hello(c: Chance) -> None:
    with c.connect(SERVER) as connection:
        connection.sendall(client_hello(ALLOWED_NAME.encode()))
        hear(connection)
        _disconnect(connection)
        connection.settimeout(PATIENCE)
        connection.connect((SERVER, c.port))
        connection.sendall(c.denied_hello())
        hear(connection)


def reconnect_udp(c: Chance) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.connect((NEIGHBOUR, c.port))
        datagrams.send(b"harmless")
        _disconnect(datagrams)
        datagrams.connect((DENIED, c.port))
        datagrams.send(c.data)


def duplicate(c: Chance) -> None:
    """One socket, two descriptors: the one connects, the other sends."""
    with socket.socket() as connection, connection.dup() as other:
        connection.settimeout(PATIENCE)
        connection.connect((DENIED, c.port))
        other.sendall(c.data)
        hear(other)


def fork(c: Chance) -> None:
    """The parent connects, the child sends the hello."""
    with c.connect(SERVER) as connection:
        if (child := os.fork()) == 0:
            try:
                connection.sendall(c.denied_hello())
                hear(connection)
            finally:
                os._exit(0)
        os.waitpid(child, 0)


def handed_over(c: Chance) -> None:
    """A process connects and hands the socket to another one over a UNIX socket (SCM_RIGHTS)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    if (child := os.fork()) == 0:
        try:
            ours.close()
            with c.connect(SERVER) as connection:
                socket.send_fds(theirs, [b"x"], [connection.fileno()])
                theirs.recv(1)
        finally:
            os._exit(0)
    try:
        theirs.close()
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
        with socket.socket(fileno=descriptors[0]) as connection:
            connection.sendall(c.denied_hello())
            hear(connection)
    finally:
        ours.close()
        os.waitpid(child, 0)


def from_outside(c: Chance) -> None:
    with c.connect(DENIED) as connection:
        connection.sendall(c.data)
        hear(connection)


def hello_from_outside(c: Chance) -> None:
    with c.connect(SERVER) as connection:
        connection.sendall(c.denied_hello())
        hear(connection)


def older(c: Chance) -> None:
    with c.connect(DENIED) as connection:
        c.wait()
        connection.sendall(c.data)
        hear(connection)


def older_hello(c: Chance) -> None:
    with c.connect(SERVER) as connection:
        c.wait()
        connection.sendall(c.denied_hello())
        hear(connection)


def older_udp(c: Chance) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.connect((DENIED, c.port))
        c.wait()
        datagrams.send(c.data)


def port_again(c: Chance) -> None:
    """The same port to the same place, a moment after a connection that was allowed by its name."""
    with c.connect(SERVER) as first:
        source = first.getsockname()[1]
        first.sendall(client_hello(ALLOWED_NAME.encode()))
        hear(first)
        # Closed by a reset: no TIME_WAIT keeps the port.
        first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    with socket.socket() as second:
        second.settimeout(PATIENCE)
        second.bind(("", source))
        second.connect((SERVER, c.port))
        second.sendall(c.denied_hello())
        hear(second)


def simultaneous(c: Chance) -> None:
    """Both ends open (RFC 9293 section 3.5): what leaves first is no SYN of ours, but an answer to theirs."""
    with socket.socket() as connection:
        connection.settimeout(PATIENCE)
        # Ended by a reset: the peer takes part in no ending, and the port is needed again.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        connection.bind((CLIENT, PEER_PORT))
        connection.connect((GHOST, c.port))
        connection.sendall(c.data)
        hear(connection)


def sent_again(c: Chance) -> None:
    """The kernel sends from a file and keeps no copy: what it sends again is what stands there then."""
    denied = c.denied_hello()
    allowed = client_hello(ALLOWED_NAME.encode().rjust(len(c.denied_name), b"x"))
    file = os.memfd_create("hello")
    os.write(file, allowed)
    with socket.socket() as connection:
        connection.settimeout(PATIENCE)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        connection.bind((CLIENT, PEER_PORT))
        connection.connect((QUIET, c.port))
        os.sendfile(connection.fileno(), file, 0, len(allowed))
        time.sleep(_ON_ITS_WAY)
        os.pwrite(file, denied, 0)
        hear(connection)


def repaired(c: Chance) -> None:
    """A connection without a handshake (TCP_REPAIR, made for restoring processes): its first packet has data."""
    with socket.socket() as connection:
        connection.settimeout(PATIENCE)
        connection.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
        for queue in (_REPAIR_SEND, _REPAIR_RECEIVE):
            connection.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_QUEUE, queue)
            connection.setsockopt(socket.IPPROTO_TCP, _TCP_QUEUE_SEQ, 1000)
        connection.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_QUEUE, 0)
        connection.connect((SERVER, c.port))
        connection.setsockopt(
            socket.IPPROTO_TCP, _TCP_REPAIR_WINDOW, struct.pack("=5I", 1000, 65535, 65535, 65535, 1000)
        )
        connection.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, -1)
        connection.sendall(c.denied_hello())
        hear(connection)


def called(c: Chance) -> None:
    """Who is denied as a destination calls, and is answered."""
    with socket.create_server((CLIENT, c.port)) as listener:
        listener.settimeout(PATIENCE)
        connection, _ = listener.accept()
        with connection:
            connection.sendall(c.data)
            hear(connection)


_ANEW = "Every connect of a socket is a connection of its own, and judged as one."
_NO_IDENTITY = "Without an identity nothing is known of it but where it goes and what it says, and that is judged."

ATTEMPTS = (
    Attempt("TCP: connect again", "a token to a denied address from a socket that was connected elsewhere", reconnect,
            {Outcome.BLOCKED: _ANEW}, whole=False),
    Attempt("TCP: connect again, hello", "a denied name over a socket whose first connection was allowed",
            reconnect_hello, {Outcome.BLOCKED: _ANEW}, whole=False),
    Attempt("UDP: connect again", "a token to a denied address from a socket that was connected elsewhere",
            reconnect_udp, {Outcome.BLOCKED: _ANEW}, whole=False),
    Attempt("dup", "a token to a denied address through a second descriptor", duplicate,
            {Outcome.BLOCKED: "A verdict belongs to the socket, not to its descriptor."}),
    Attempt("fork", "a denied name, sent by a child of the program that connected", fork,
            {Outcome.BLOCKED: "A verdict belongs to the socket, and its name is judged when it comes."}),
    Attempt("SCM_RIGHTS", "a denied name, sent by a program that was handed the socket", handed_over,
            {Outcome.BLOCKED: "A verdict belongs to the socket, and its name is judged when it comes."}),
    Attempt("outside of the control group", "a token to a denied address", from_outside,
            {Outcome.BLOCKED: _NO_IDENTITY}, where=Where.OUTSIDE),
    Attempt("outside of the control group: hello", "a denied name", hello_from_outside,
            {Outcome.BLOCKED: _NO_IDENTITY}, where=Where.OUTSIDE),
    Attempt("older than the gate", "a token to a denied address over a connection that was there before", older,
            {Outcome.BLOCKED: _NO_IDENTITY}, early=True),
    Attempt("older than the gate: hello", "a denied name over a connection that was there before", older_hello,
            {Outcome.BLOCKED: "Its stream may have begun before: what comes now is read as no hello, and the state of "
             "its name, unseen, is judged."}, early=True),
    Attempt("older than the gate: UDP", "a token to a denied address from a socket that was connected before",
            older_udp, {Outcome.BLOCKED: _NO_IDENTITY}, early=True),
    Attempt("TCP: source port again", "a denied name over the tuple of a connection that was allowed", port_again,
            {Outcome.BLOCKED: "A flow's key has the socket's cookie: the next socket with this port is asked anew."},
            whole=False),
    Attempt("TCP: simultaneous open", "a token to a denied address that opens at the same time", simultaneous,
            {Outcome.BLOCKED: "A socket that opened a connection itself is judged, whichever end is answered first."},
            peer=PEER_PORT),
    Attempt("TCP: sent again from a file", "a denied name in the place of an allowed one that was not acknowledged",
            sent_again, {Outcome.BLOCKED: "What is sent again is compared with what was judged."}, whole=False,
            peer=PEER_PORT, deaf=True),
    Attempt("TCP_REPAIR", "a denied name over a connection that had no handshake", repaired,
            {Outcome.BLOCKED: "A stream whose start was not seen is not read as a hello."}, needs="CAP_NET_ADMIN"),
    Attempt("answer to a denied address", "a token over a connection that a denied address opened", called,
            {Outcome.SEEN: "Who opens a connection decides its direction. The log has it as accepted here: deny "
             "the source, or judge what comes in."}, called="tcp",
            tells=lambda entry: entry.type == "socket"),
)  # fmt: skip
