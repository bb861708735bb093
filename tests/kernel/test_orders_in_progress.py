"""A person's word holds for what is in progress, whatever the engine has lived through since that began."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel.host import Host
from tests.kernel.lab import OUTSIDE
from tests.support.netns import Agent

PORT, OTHER, CLOSED = 7000, 7001, 7002
POLICY = {
    "sallyport.rego": 'package sallyport\n\ndefault_verdict := "allow"\n',
    "rules/ports/ports.rego": (
        "package sallyport.rules.ports\n\n"
        'scope := {"dest"}\n\n'
        f'deny contains "closed port" if input.dest.port == {CLOSED}\n'
    ),
}
FLOWS = 20_000
"""More than the engine remembers."""


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host(POLICY)
    try:
        host.start()
        yield host
    finally:
        host.close()


def joined(host: Host, port: int) -> tuple[Agent, Agent]:
    """Return a client and a server whose connection, `s` and `p`, is in progress."""
    server, client = host.agent(outside=True), host.agent()
    server.do(f"l = listening({OUTSIDE!r}, {port})")
    client.do(f"s = connected({OUTSIDE!r}, {port}); s.sendall(b'ping')")
    server.do("p = accepted(l); exactly(p, 4)")
    client.do("s.sendall(b'pong')")
    server.do("exactly(p, 4)")
    return client, server


def goes_on(client: Agent, server: Agent) -> bool:
    try:
        client.do("s.sendall(b'more')")
        return bool(server.do("p.settimeout(3); exactly(p, 4)") == b"more")
    except OSError:
        return False


@pytest.mark.parametrize("since", ["nothing", "a restart", "other flows"])
def test_a_denial_ends_a_connection(host: Host, since: str) -> None:
    client, server = joined(host, PORT)
    if since == "a restart":
        host.engine.kill()
        host.start()
    if since == "other flows":
        many = (
            f"for _ in range({FLOWS // 5}):\n"
            "    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as u:\n"
            f"        u.sendto(b'x', ({OUTSIDE!r}, {OTHER}))"
        )
        for _ in range(5):
            client.do(many)
    assert host.sallyport("verdict", "set", "--dest", OUTSIDE, "deny").returncode == 0
    assert not goes_on(client, server)


def test_a_strategy_that_is_cleared_observes_no_longer(host: Host) -> None:
    assert host.sallyport("strategy", "set", "--dest", OUTSIDE, "observe").returncode == 0
    client, server = joined(host, CLOSED)
    assert host.sallyport("strategy", "clear", "--dest", OUTSIDE).returncode == 0
    assert not goes_on(client, server)
