"""A verdict that is kept at a socket holds for the address that it was decided for: headers that make a packet's
destination another one (source routes, segment routing) take it nowhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel.cable import Cable
from tests.kernel.host import Host
from tests.kernel.lab import FAR_DEVICE, INSIDE, INSIDE6, OUTSIDE, OUTSIDE6
from tests.support.netns import Agent

PORT, NOBODY = 7000, 65534
DENIED, DENIED6 = "10.77.0.66", "fd00:77::66"
TOKEN = b"a token that must not leave"
POLICY = {
    "sallyport.rego": 'package sallyport\n\ndefault_verdict := "allow"\n',
    "rules/hosts/hosts.rego": (
        "package sallyport.rules.hosts\n\n"
        'scope := {"dest"}\n\n'
        f'deny contains "denied host" if input.dest.address in {{"{DENIED}", "{DENIED6}"}}\n'
    ),
}
LOOSE_ROUTE = (
    f"hop = socket.inet_aton({DENIED!r})\n"
    "s.setsockopt(socket.IPPROTO_IP, 4, b'\\x83\\x07\\x04' + hop + b'\\0')\n"
    "s.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 8)"
)
"""struct ip_options with one hop (RFC 791 section 3.1); another TOS has the route looked up anew."""
SEGMENTS = (
    f"hop = socket.inet_pton(socket.AF_INET6, {DENIED6!r})\n"
    "s.setsockopt(socket.IPPROTO_IPV6, 57, bytes([0, 4, 4, 1, 1, 0, 0, 0]) + bytes(16) + hop)"
)
"""IPV6_RTHDR with one segment left (RFC 8754 section 2)."""
ROUTES = {OUTSIDE: LOOSE_ROUTE, OUTSIDE6: SEGMENTS}


@pytest.fixture(scope="module")
def running() -> Iterator[Host]:
    host = Host(POLICY)
    try:
        host.outside.ip("address", "add", f"{DENIED}/24", "dev", FAR_DEVICE)
        host.outside.ip("address", "add", f"{DENIED6}/64", "dev", FAR_DEVICE, "nodad")
        host.start()
        yield host
    finally:
        host.close()


def limit(agent: Agent, address: str) -> None:
    """Take from a program what it does not need: a source route of IPv4 asks for CAP_NET_RAW, IPv6 for nothing."""
    if ":" in address:
        agent.do(f"os.setgid({NOBODY}); os.setuid({NOBODY})")


@pytest.mark.parametrize("address", [OUTSIDE, OUTSIDE6])
def test_an_allowed_connection(host: Host, cable: Cable, address: str) -> None:
    server = host.agent(outside=True)
    server.do(f"l = listening({address!r}, {PORT})")
    client = host.agent()
    limit(client, address)
    client.do(f"s = connected({address!r}, {PORT}); s.sendall(b'ping')")
    assert server.do("p = accepted(l); exactly(p, 4)") == b"ping"
    client.do(ROUTES[address])
    client.do(f"s.sendall({TOKEN!r})")
    assert not cable.out(TOKEN)


@pytest.mark.parametrize(("address", "peer"), [(INSIDE, OUTSIDE), (INSIDE6, OUTSIDE6)])
def test_a_connection_to_itself(host: Host, cable: Cable, address: str, peer: str) -> None:
    """The accepted end was opened from outside, as far as the gate can tell: from this very host."""
    client = host.agent()
    limit(client, address)
    client.do(f"l = listening({address!r}, {PORT}); c = connected({address!r}, {PORT}); s = accepted(l)")
    client.do(ROUTES[peer])
    client.do(f"s.sendall({TOKEN!r})")
    assert not cable.out(TOKEN)


@pytest.mark.parametrize("is_observed", [False, True])
def test_a_datagram_socket(host: Host, cable: Cable, is_observed: bool) -> None:
    """What is only observed for one destination is observed for no other that the socket sends to."""
    if is_observed:
        assert host.sallyport("strategy", "set", "--dest", OUTSIDE6, "observe").returncode == 0
    try:
        server = host.agent(outside=True)
        server.do(f"u = bound({OUTSIDE6!r}, {PORT})")
        client = host.agent()
        limit(client, OUTSIDE6)
        client.do(f"s = udp({OUTSIDE6!r}); s.sendto(b'ping', ({OUTSIDE6!r}, {PORT}))")
        assert server.do("u.recv(16)") == b"ping"
        client.do(SEGMENTS)
        client.do(f"s.sendto({TOKEN!r}, ({OUTSIDE6!r}, {PORT}))")
        assert not cable.out(TOKEN)
    finally:
        host.sallyport("strategy", "clear", "--dest", OUTSIDE6)
