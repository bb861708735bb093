"""A tunnel's packets leave through the socket of the connection that they carry. They are judged as what they are, and
tell nothing of that connection."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel.cable import Cable
from tests.kernel.host import Host, awaited
from tests.kernel.lab import DEVICE, FAR_DEVICE, INSIDE, OUTSIDE
from tests.support.hello import client_hello

NEAR, FAR, TUNNEL = "10.78.0.1", "10.78.0.2", "tunnel"
CARRIER, NAMED, SERVED = 4789, 8443, 8080
POLICY = {
    "sallyport.rego": 'package sallyport\n\ndefault_verdict := "allow"\n\ninbound_verdict := "allow"\n',
    "rules/served/served.rego": (
        "package sallyport.rules.served\n\n"
        'scope := {"direction", "dest"}\n\n'
        'deny contains "not served" if {\n\tinput.direction == "ingress"\n\tinput.dest.port == 9999\n}\n'
    ),
    "rules/names/names.rego": (
        "package sallyport.rules.names\n\n"
        'scope := {"direction", "dest", "name"}\n\n'
        'target_scope := {"direction", "dest"}\n\n'
        f'target if {{\n\tinput.direction == "egress"\n\tinput.dest.port == {NAMED}\n}}\n\n'
        'deny contains "not that name" if input.name.value != "right.example"\n'
    ),
}
NO_TUNNEL = {
    "rules/tunnel/tunnel.rego": (
        "package sallyport.rules.tunnel\n\n"
        'scope := {"direction", "dest"}\n\n'
        f'deny contains "no tunnel" if {{\n\tinput.direction == "egress"\n\tinput.dest.port == {CARRIER}\n}}\n'
    )
}


@pytest.fixture(scope="module")
def running() -> Iterator[Host]:
    """Both ends of the wire are ends of a tunnel, too (VXLAN, RFC 7348)."""
    host = Host(POLICY)
    try:
        for space, device, here, there, address in (
            (host.inside, DEVICE, INSIDE, OUTSIDE, NEAR),
            (host.outside, FAR_DEVICE, OUTSIDE, INSIDE, FAR),
        ):
            carried = ("id", "5", "local", here, "remote", there, "dstport", str(CARRIER), "dev", device)
            space.ip("link", "add", TUNNEL, "type", "vxlan", *carried)
            space.ip("address", "add", f"{address}/24", "dev", TUNNEL)
            space.ip("link", "set", TUNNEL, "up")
        yield host
    finally:
        host.close()


def test_what_was_let_in_through_a_tunnel_does_not_let_the_tunnel_out(host: Host) -> None:
    host.start()
    cable, server, client = Cable(host), host.agent(), host.agent(outside=True)
    server.do(f"l = listening({NEAR!r}, {SERVED})")
    client.do(f"s = connected({NEAR!r}, {SERVED}); s.sendall(b'ping')")
    assert server.do("peer = accepted(l); exactly(peer, 4)") == b"ping"
    assert cable.lets_out(b"while it is allowed", lambda: server.do("peer.sendall(b'while it is allowed')"))
    before = host.engine.generation()
    host.write(NO_TUNNEL)
    try:
        awaited(lambda: host.engine.generation() > before, host.engine.told)
        assert not cable.lets_out(b"when it is denied", lambda: server.do("peer.sendall(b'when it is denied')"))
    finally:
        for name in NO_TUNNEL:
            (host.policy / name).unlink()
        cable.close()


@pytest.mark.parametrize(("name", "arrives"), [("right.example", True), ("wrong.example", False)])
def test_a_tunnel_that_is_never_denied_takes_no_name_from_what_it_carries(
    host: Host, name: str, *, arrives: bool
) -> None:
    host.start((DEVICE, TUNNEL), f'[[never_deny]]\nprefix = "{OUTSIDE}/32"\ntransport = "udp"\n')
    server, client, hello = host.agent(outside=True), host.agent(), client_hello(name)
    server.do(f"l = listening({FAR!r}, {NAMED})")
    client.do(f"s = connected({FAR!r}, {NAMED}); s.sendall({hello!r})")
    server.do("peer = accepted(l)")
    if arrives:
        assert server.do(f"exactly(peer, {len(hello)})") == hello
    else:
        with pytest.raises(OSError, match=r"reset|abort"):
            client.do("s.recv(1)")
        with pytest.raises(OSError, match="reset"):
            server.do("peer.recv(1)")
