"""A verdict by what a flow said holds for what it said, and not for what begins later under the same ports."""

from __future__ import annotations

import itertools

import pytest

from tests.kernel.cable import Cable
from tests.kernel.host import Host
from tests.kernel.lab import INSIDE, OUTSIDE
from tests.support.hello import client_hello, handshake
from tests.support.initials import crypto, initial
from tests.support.netns import Agent

NAMED, SHOWN, FREE = 8443, 4443, 5443
"""Ports where the policy goes by names, by hellos, and by nothing."""
PORTS = itertools.count(40001)
RIGHT, WRONG = client_hello("right.example"), client_hello("wrong.example")
POLICY = {
    "sallyport.rego": 'package sallyport\n\ndefault_verdict := "allow"\n',
    "rules/names/names.rego": (
        "package sallyport.rules.names\n\n"
        'scope := {"dest", "name"}\n\n'
        f'target_scope := {{"dest"}}\n\ntarget if input.dest.port == {NAMED}\n\n'
        'deny contains "no such name" if input.name.value == "wrong.example"\n'
    ),
    "rules/hellos/hellos.rego": (
        "package sallyport.rules.hellos\n\n"
        'scope := {"dest", "hello"}\n\n'
        f'target_scope := {{"dest"}}\n\ntarget if input.dest.port == {SHOWN}\n\n'
        'deny contains "no such protocol" if "smuggled" in input.hello.alpn\n'
    ),
}


def quic(name: str, number: int, alpn: tuple[str, ...] = ()) -> bytes:
    """Return the first datagram of a QUIC connection, another one for each number."""
    return initial(crypto(0, handshake(name, alpn=alpn)), dcid=number.to_bytes(8, "big"))


def begun(host: Host, port: int, first: bytes) -> Agent:
    """Begin a flow of datagrams with one that is allowed; return who sent it."""
    server, client = host.agent(outside=True), host.agent()
    server.do(f"u = bound({OUTSIDE!r}, {port})")
    client.do(f"u = udp(); u.bind(({INSIDE!r}, {next(PORTS)})); u.sendto({first!r}, ({OUTSIDE!r}, {port}))")
    assert server.do("u.recv(2000)") == first
    return client


@pytest.mark.parametrize(
    ("port", "first", "second"),
    [
        pytest.param(NAMED, quic("right.example", 1), quic("wrong.example", 2), id="a second name"),
        pytest.param(NAMED, b"x", quic("wrong.example", 3), id="a name behind nothing"),
        pytest.param(SHOWN, quic("right.example", 4), quic("right.example", 5, ("smuggled",)), id="a second protocol"),
        pytest.param(SHOWN, b"x", quic("right.example", 6, ("smuggled",)), id="a protocol behind nothing"),
        # A client with a token may leave the fixed bit out, and servers that support it take that (RFC 9287).
        pytest.param(NAMED, quic("right.example", 7), b"\x81" + quic("wrong.example", 8)[1:], id="without fixed bit"),
    ],
)
def test_a_second_quic_connection(host: Host, cable: Cable, port: int, first: bytes, second: bytes) -> None:
    client = begun(host, port, first)
    assert not cable.lets_out(second, lambda: client.do(f"u.sendto({second!r}, ({OUTSIDE!r}, {port}))"))


@pytest.mark.parametrize("first", [b"", b"x"])
def test_a_persons_word_about_a_name(host: Host, cable: Cable, first: bytes) -> None:
    assert host.sallyport("verdict", "set", "--name", "wrong.example", "deny").returncode == 0
    try:
        client, wrong = begun(host, FREE, first), quic("wrong.example", 9)
        assert not cable.lets_out(wrong, lambda: client.do(f"u.sendto({wrong!r}, ({OUTSIDE!r}, {FREE}))"))
    finally:
        host.sallyport("verdict", "clear", "--name", "wrong.example")


@pytest.mark.parametrize("known", [True, False])
def test_a_second_connection_of_a_socket(host: Host, cable: Cable, *, known: bool) -> None:
    """From the same port to the same server; `known=False`: a program outside of the guarded group."""
    server = host.agent(outside=True)
    server.do(f"l = listening({OUTSIDE!r}, {NAMED})")
    client = host.agent(known=known)
    client.do(
        f"import ctypes\ns = tcp(); s.bind(({INSIDE!r}, {next(PORTS)}))\n"
        f"s.connect(({OUTSIDE!r}, {NAMED})); s.sendall({RIGHT!r})"
    )
    assert server.do(f"p = accepted(l); exactly(p, {len(RIGHT)})") == RIGHT
    again = (
        f"ctypes.CDLL(None).connect(s.fileno(), bytes(16), 16)\ns.connect(({OUTSIDE!r}, {NAMED})); s.sendall({WRONG!r})"
    )
    assert not cable.lets_out(b"wrong.example", lambda: client.do(again))
