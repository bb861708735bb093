"""One socket used for two things: what was decided for the one says nothing about the other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel.cable import Cable
from tests.kernel.host import Host
from tests.kernel.lab import FAR_DEVICE, INSIDE, OUTSIDE
from tests.support.hello import client_hello

OPEN, NAMED, DENIED = 7000, 8443, "10.77.0.66"
RIGHT, WRONG = client_hello("right.example"), client_hello("wrong.example")
POLICY = {
    "sallyport.rego": 'package sallyport\n\ndefault_verdict := "allow"\n',
    "rules/hosts/hosts.rego": (
        "package sallyport.rules.hosts\n\n"
        'scope := {"dest"}\n\n'
        f'deny contains "denied host" if input.dest.address == "{DENIED}"\n'
    ),
    "rules/names/names.rego": (
        "package sallyport.rules.names\n\n"
        'scope := {"dest", "name"}\n\n'
        f'target_scope := {{"dest"}}\n\ntarget if input.dest.port == {NAMED}\n\n'
        'deny contains "no such name" if input.name.value == "wrong.example"\n'
    ),
}


@pytest.fixture(scope="module")
def running() -> Iterator[Host]:
    host = Host(POLICY)
    try:
        host.outside.ip("address", "add", f"{DENIED}/24", "dev", FAR_DEVICE)
        host.start()
        yield host
    finally:
        host.close()


CORKS = {
    "MSG_MORE": ("", "socket.MSG_MORE", ""),
    "UDP_CORK": ("u.setsockopt(socket.IPPROTO_UDP, 1, 1)", "0", "u.setsockopt(socket.IPPROTO_UDP, 1, 0)"),
}


@pytest.mark.parametrize("cork", CORKS)
def test_a_datagram_goes_where_it_was_begun(host: Host, cork: str) -> None:
    """What is added while it waits names a denied destination."""
    before, flag, after = CORKS[cork]
    server, client = host.agent(outside=True), host.agent()
    server.do(f"u = bound({OUTSIDE!r}, {OPEN}); d = bound({DENIED!r}, {OPEN})")
    client.do(
        f"u = udp()\n{before}\nu.sendto(b'begun, ', {flag}, ({OUTSIDE!r}, {OPEN}))\n"
        f"u.sendto(b'ended', 0, ({DENIED!r}, {OPEN}))\n{after}"
    )
    assert server.do("u.recv(32)") == b"begun, ended"
    with pytest.raises(BlockingIOError):
        server.do("d.setblocking(False); d.recv(32)")


def test_a_datagram_begun_to_a_denied_host_does_not_leave(host: Host, cable: Cable) -> None:
    client = host.agent()
    send = (
        f"u = udp(); u.sendto(b'begun, ', socket.MSG_MORE, ({DENIED!r}, {OPEN}))\n"
        f"u.sendto(b'ended', 0, ({OUTSIDE!r}, {OPEN}))"
    )
    assert not cable.lets_out(b"begun, ended", lambda: client.do(send))


@pytest.mark.parametrize(("hello", "arrives"), [(RIGHT, True), (WRONG, False)])
def test_a_connection_that_waits_for_its_first_bytes(host: Host, cable: Cable, hello: bytes, *, arrives: bool) -> None:
    """TCP_FASTOPEN_CONNECT: connect() sends nothing, and the first write does both."""
    server, client = host.agent(outside=True), host.agent()
    server.do(f"l = listening({OUTSIDE!r}, {NAMED})")
    send = (
        "s = tcp(); s.setsockopt(socket.IPPROTO_TCP, 30, 1); s.setsockopt(socket.IPPROTO_TCP, 34, 1)\n"
        f"s.connect(({OUTSIDE!r}, {NAMED})); s.sendall({hello!r})"
    )
    if arrives:
        client.do(send)
        assert server.do(f"p = accepted(l); exactly(p, {len(hello)})") == hello
    else:
        assert not cable.lets_out(b"wrong.example", lambda: client.do(send))


def test_a_socket_that_listens_after_it_was_connected(host: Host, cable: Cable) -> None:
    """What it accepts is answered; connected once more, it is judged once more."""
    far, client = host.agent(outside=True), host.agent()
    far.do(f"l = listening({OUTSIDE!r}, {OPEN}); n = listening({OUTSIDE!r}, {NAMED})")
    client.do(
        f"import ctypes\ndef disconnect(s):\n    ctypes.CDLL(None).connect(s.fileno(), bytes(16), 16)\n"
        f"s = tcp(); s.bind(({INSIDE!r}, 40100)); s.connect(({OUTSIDE!r}, {OPEN})); s.sendall(b'x')"
    )
    far.do("p = accepted(l); p.recv(1)")
    client.do("s.sendall(b'y'); disconnect(s); s.listen(1)")
    far.do(f"c = connected({INSIDE!r}, 40100); c.sendall(b'z')")
    client.do("a = accepted(s); a.recv(1); a.sendall(b'answer')")
    assert far.do("exactly(c, 6)") == b"answer"
    again = f"a.close(); s.shutdown(2); disconnect(s); s.connect(({OUTSIDE!r}, {NAMED})); s.sendall({WRONG!r})"
    assert not cable.lets_out(b"wrong.example", lambda: client.do(again))
