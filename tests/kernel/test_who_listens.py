"""What leaves from a port that this host listens on is a server's answer only where it is the server's socket."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine.selftest import frames
from engine.selftest.frames import ACK, PSH
from tests.kernel.cable import Cable
from tests.kernel.lab import INSIDE, OUTSIDE
from tests.kernel.test_forwarded import DENIED, POLICY, Gateway

TOKEN = b"a token that must not leave"
CONTAINER = "10.78.0.2"
LISTENED = 2222


@pytest.fixture(scope="module")
def running() -> Iterator[Gateway]:
    gateway = Gateway(POLICY)
    try:
        gateway.start(config='inside = ["tocontainer"]\n')
        yield gateway
    finally:
        gateway.close()


@pytest.mark.parametrize("contained", [False, True])
def test_the_port_of_a_server_is_no_passport(gateway: Gateway, cable: Cable, *, contained: bool) -> None:
    """A segment of no connection, made by hand, from a port that this host listens on."""
    server = gateway.agent()
    server.do(f"l = listening('0.0.0.0', {LISTENED})")
    client = gateway.contained() if contained else gateway.agent()
    source = CONTAINER if contained else INSIDE
    segment = frames.tcp(source, OUTSIDE, LISTENED, DENIED, 1, 1, ACK | PSH, TOKEN)
    send = (
        "r = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)\n"
        f"r.sendto({segment!r}, ({OUTSIDE!r}, 0))"
    )
    assert not cable.lets_out(TOKEN, lambda: client.do(send))
