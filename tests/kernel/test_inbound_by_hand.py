"""Who is outside and speaks TCP by hand shows the gate what the server does not read, and is judged by what it does."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterator

import pytest

from engine.selftest.frames import ACK, PSH, RST, SYN
from tests.kernel.byhand import Hand, ends, haunt
from tests.kernel.host import Host, awaited
from tests.kernel.lab import DEVICE, FAR_DEVICE, INSIDE, OUTSIDE
from tests.support.hello import client_hello
from tests.support.netns import Agent, Wire

NAMED, ELSEWHERE = 8443, 7000
RIGHT, WRONG = client_hello("right.example"), client_hello("wrong.example")
PORTS = itertools.count(40001)
POLICY = {
    "sallyport.rego": 'package sallyport\n\ndefault_verdict := "allow"\n\ninbound_verdict := "deny"\n',
    "rules/served/served.rego": (
        "package sallyport.rules.served\n\n"
        'scope := {"direction", "dest"}\n\n'
        f'allow contains "served here" if {{\n\tinput.direction == "ingress"\n\tinput.dest.port == {NAMED}\n}}\n'
    ),
    "rules/names/names.rego": (
        "package sallyport.rules.names\n\n"
        'scope := {"direction", "name"}\n\n'
        'target_scope := {"direction"}\n\ntarget if input.direction == "ingress"\n\n'
        'deny contains "no such name here" if input.name.value == "wrong.example"\n'
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


def judged(host: Host) -> int:
    return int(host.engine.status()["hold"]["judged"])


def served(host: Host) -> Agent:
    server = host.agent()
    server.do(f"l = listening({INSIDE!r}, {NAMED})")
    return server


def read(server: Agent, size: int) -> bytes:
    """What the server's program reads; empty where it hears nothing, or that the connection has ended."""
    try:
        return bytes(server.do(f"p.settimeout(3); exactly(p, {size})"))
    except OSError as error:
        if error.errno not in (errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNABORTED):
            raise
        return b""


def shown(host: Host, client: Hand, *, start: int, is_broken: bool = False) -> None:
    """Show the gate a hello that the server's stack throws away, and wait until it has been judged."""
    before = judged(host)
    client.say(ACK | PSH, RIGHT, seq=start, is_broken=is_broken)
    awaited(lambda: judged(host) > before, host.engine.told)


def test_a_connection_by_hand_is_judged_by_its_name(host: Host, far: Wire) -> None:
    server = served(host)
    for hello, arrives in ((RIGHT, True), (WRONG, False)):
        client = Hand(far, ends(host), next(PORTS), NAMED)
        client.open()
        server.do("p = accepted(l)")
        client.send(hello)
        assert read(server, len(hello)) == (hello if arrives else b"")


def test_a_hello_with_a_wrong_checksum_speaks_for_nobody(host: Host, far: Wire) -> None:
    server = served(host)
    client = Hand(far, ends(host), next(PORTS), NAMED)
    client.open()
    server.do("p = accepted(l)")
    shown(host, client, start=client.seq, is_broken=True)
    client.send(WRONG)
    assert read(server, len(WRONG)) == b""


@pytest.mark.parametrize("distance", [-1000, -(1 << 24)])
def test_a_second_opening_does_not_move_the_start_of_a_stream(host: Host, far: Wire, distance: int) -> None:
    server = served(host)
    client = Hand(far, ends(host), next(PORTS), NAMED, seq=1 << 28)
    client.open()
    server.do("p = accepted(l)")
    client.say(SYN, seq=client.seq + distance)
    client.say(ACK | PSH, RIGHT, seq=client.seq + distance + 1)
    client.send(WRONG)
    assert read(server, len(WRONG)) == b""


def test_a_connection_with_the_numbers_of_an_earlier_one_is_judged_anew(host: Host, far: Wire) -> None:
    server = served(host)
    port = next(PORTS)
    client = Hand(far, ends(host), port, NAMED)
    client.open()
    server.do("p = accepted(l)")
    client.send(RIGHT)
    assert read(server, len(RIGHT)) == RIGHT
    client.say(RST | ACK)
    with pytest.raises(OSError, match="reset"):
        server.do("p.recv(1)")
    again = Hand(far, ends(host), port, NAMED)
    again.open()
    server.do("p = accepted(l)")
    again.send(WRONG)
    assert read(server, len(WRONG)) == b""


def test_who_claims_to_open_a_connection_of_ours_does_not_end_it(host: Host, far: Wire) -> None:
    outside = host.agent(outside=True)
    outside.do(f"l = listening({OUTSIDE!r}, {ELSEWHERE})")
    near = host.agent()
    port = near.do(f"s = connected({OUTSIDE!r}, {ELSEWHERE}); s.sendall(b'ping'); s.getsockname()[1]")
    outside.do("p = accepted(l); exactly(p, 4)")
    before = judged(host)
    Hand(far, ends(host), ELSEWHERE, port, address=OUTSIDE, seq=77).say(SYN)
    outside.do("p.sendall(b'pong')")
    assert near.do("s.settimeout(5); exactly(s, 4)") == b"pong"
    assert judged(host) >= before
