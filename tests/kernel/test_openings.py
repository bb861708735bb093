"""Whoever connected is judged by what it sends, however strangely its peer answers, and whatever it shows beside."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from engine.selftest.frames import ACK, SYN
from tests.kernel.byhand import GHOST, Hand, ends, haunt
from tests.kernel.host import Host, awaited
from tests.kernel.lab import DEVICE, FAR_DEVICE, INSIDE, OUTSIDE
from tests.support.hello import client_hello
from tests.support.netns import Agent, Wire

PORTS = itertools.count(8443)
RIGHT, WRONG = client_hello("right.example"), client_hello("wrong.example")
POLICY = {
    "sallyport.rego": 'package sallyport\n\ndefault_verdict := "allow"\n',
    "rules/names/names.rego": (
        "package sallyport.rules.names\n\n"
        'scope := {"name"}\n\n'
        'deny contains "no such name" if input.name.value == "wrong.example"\n'
    ),
}


@pytest.fixture(scope="module")
def running() -> Iterator[Host]:
    host = Host(POLICY)
    try:
        host.start()
        haunt(host.inside, DEVICE, host.outside, FAR_DEVICE)
        yield host
    finally:
        host.close()


@pytest.fixture
def near(running: Host) -> Iterator[Wire]:
    opened = Wire(running.inside, DEVICE)
    yield opened
    opened.close()


def unprivileged(agent: Agent) -> None:
    agent.do("os.setgid(65534); os.setuid(65534)")


def test_a_server_that_answers_an_opening_with_one_gets_no_denied_name(host: Host, far: Wire, near: Wire) -> None:
    port = next(PORTS)
    server = Hand(far, ends(host), port)
    client = host.agent()
    unprivileged(client)
    client.start(f"s = connected({GHOST!r}, {port})")
    opening = server.hear(lambda seen: seen.flags & (SYN | ACK) == SYN)
    server.peer_port = opening.sport
    server.say(SYN)
    server.hear(lambda seen: seen.flags & (SYN | ACK) == SYN | ACK)
    server.seq, server.ack = server.seq + 1, opening.seq + 1
    server.say(ACK)
    client.result()
    client.do(f"s.sendall({WRONG!r})")
    assert not [frame for frame in far.until_mark(near.mark()) if b"wrong.example" in frame]
    host.engine.tells("wrong.example", "refused")


DECOY = f"""
d = tcp(); d.setsockopt(socket.SOL_SOCKET, 25, HOLD)
d.bind(({INSIDE!r}, port)); d.setsockopt(socket.IPPROTO_TCP, 34, 1)
d.setblocking(False)
try:
    d.sendto({RIGHT!r}, socket.MSG_FASTOPEN, ({OUTSIDE!r}, PORT))
except BlockingIOError:
    pass
"""


def test_nobody_else_writes_to_the_engine(host: Host, far: Wire, near: Wire) -> None:
    """A socket bound to the hold device (no privilege is needed for that) with the addresses of another one."""
    port = next(PORTS)
    server = host.agent(outside=True)
    server.do(f"l = listening({OUTSIDE!r}, {port})")
    client = host.agent()
    unprivileged(client)
    client.do(
        f"HOLD, PORT = {host.pins.hold_device.encode()!r}, {port}\n"
        f"s = tcp(); s.setsockopt(socket.SOL_SOCKET, 25, {DEVICE.encode()!r})\n"
        f"s.bind(({INSIDE!r}, 0)); s.connect(({OUTSIDE!r}, PORT)); port = s.getsockname()[1]\n"
        f"s.sendall({WRONG[:1]!r})"
    )
    awaited(lambda: host.engine.status()["hold"]["redirected"], host.engine.told)
    client.do(DECOY)
    client.do(f"s.sendall({WRONG[1:]!r})")
    out: list[bytes] = []

    def over() -> bool:
        out.extend(frame for frame in far.until_mark(near.mark()) if b"wrong.example" in frame)
        return bool(out) or bool(host.engine.lines("wrong.example", "refused"))

    awaited(over, host.engine.told)
    assert not out
    hold = host.engine.status()["hold"]
    assert hold["taken"] <= hold["redirected"]
