"""Who is behind this host, with every power in a namespace of its own, gets no further than the policy lets it."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator

import pytest

from engine.selftest.frames import ACK, PSH, RST
from tests.kernel.byhand import Hand, hardware, haunt
from tests.kernel.cable import Cable
from tests.kernel.host import awaited
from tests.kernel.lab import OUTSIDE
from tests.kernel.test_forwarded import DENIED, OPEN, POLICY, Gateway
from tests.support.hello import client_hello
from tests.support.netns import Wire

TOKEN = b"a token that must not leave"
CONTAINER = "10.78.0.2"
LISTENED = 2222
RIGHT, WRONG = client_hello("right.example"), client_hello("wrong.example")
MACHINE, NAMED = "10.78.0.99", 10443
PORTS = itertools.count(40001)
TURN = (
    "table ip turned {\nchain out {\ntype filter hook postrouting priority 0\n"
    f"tcp dport {OPEN} tcp dport set {DENIED}\n}}\n}}\n"
)


@pytest.fixture(scope="module")
def running() -> Iterator[Gateway]:
    gateway = Gateway(POLICY)
    try:
        gateway.start(config='inside = ["tocontainer"]\n')
        yield gateway
    finally:
        gateway.close()


def machine(gateway: Gateway) -> tuple[Wire, Hand]:
    """Somebody behind the host without a stack, about to open a connection."""
    wire = Wire(gateway.container, "eth0")
    haunt(gateway.inside, "tocontainer", gateway.container, "eth0", MACHINE)
    cable = hardware(gateway.inside, "tocontainer"), hardware(gateway.container, "eth0")
    return wire, Hand(wire, cable, next(PORTS), NAMED, address=MACHINE, peer=OUTSIDE, seq=1 << 28)


def test_a_machine_that_uses_its_numbers_again_is_judged_anew(gateway: Gateway) -> None:
    """No socket here belongs to it: its ports and its sequence numbers are all that there is of a connection."""
    server = gateway.agent(outside=True)
    server.do(f"l = listening({OUTSIDE!r}, {NAMED})")
    wire, client = machine(gateway)
    client.open()
    server.do("p = accepted(l)")
    client.send(RIGHT)
    server.do(f"exactly(p, {len(RIGHT)})")
    client.say(RST | ACK)
    client.seq = 1 << 28
    client.open()
    server.do("p = accepted(l)")
    client.send(WRONG)
    try:
        read = server.do(f"p.settimeout(3); exactly(p, {len(WRONG)})")
    except OSError:
        read = b""
    wire.close()
    assert read != WRONG


@pytest.mark.parametrize("second", [RIGHT, WRONG])
def test_what_a_server_did_not_take_is_compared_with_what_comes_in_its_place(gateway: Gateway, second: bytes) -> None:
    """A machine sends what no stack takes, a hello with a wrong checksum, and then another one as that sent again."""
    server = gateway.agent(outside=True)
    server.do(f"l = listening({OUTSIDE!r}, {NAMED})")
    wire, client = machine(gateway)
    client.open()
    server.do("p = accepted(l)")
    before = gateway.engine.status()["hold"]["judged"]
    client.say(ACK | PSH, RIGHT, is_broken=True)
    awaited(lambda: gateway.engine.status()["hold"]["judged"] > before, gateway.engine.told)
    client.send(second)
    try:
        if second == RIGHT:
            assert server.do(f"exactly(p, {len(second)})") == second
        else:
            with pytest.raises(OSError, match=r"reset|abort"):
                server.do("p.recv(1)")
    finally:
        wire.close()


def test_an_urgent_notice_ahead_of_a_hello_does_not_reach_the_server(gateway: Gateway) -> None:
    """It would leave the byte out of what it reads: another hello than the one that was judged."""
    server = gateway.agent(outside=True)
    server.do(f"l = listening({OUTSIDE!r}, {NAMED})")
    wire, client = machine(gateway)
    client.open()
    server.do("p = accepted(l)")
    client.say(ACK, urgent=RIGHT.index(b"right.example") + 1)
    client.send(RIGHT)
    read = server.do(f"exactly(p, {len(RIGHT)})")
    wire.close()
    assert read == RIGHT


def test_an_allowed_connection_cannot_be_turned_behind_its_socket(gateway: Gateway, cable: Cable) -> None:
    """Who is root in a container rewrites there what its sockets have sent."""
    server, client = gateway.agent(outside=True), gateway.contained()
    server.do(f"l = listening({OUTSIDE!r}, {OPEN})")
    client.do(f"s = connected({OUTSIDE!r}, {OPEN}); s.sendall(b'ping')")
    server.do("p = accepted(l); exactly(p, 4)")
    client.do("s.sendall(b'pong')")  # now the verdict stands at the socket
    server.do("exactly(p, 4)")
    subprocess.run(gateway.container.command("nft", "-f", "-"), check=True, text=True, input=TURN)
    try:
        client.do(f"s.sendall({TOKEN!r})")
        assert not cable.out(TOKEN)
    finally:
        subprocess.run(gateway.container.command("nft", "delete", "table", "ip", "turned"), check=True)
