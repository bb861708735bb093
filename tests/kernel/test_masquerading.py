"""Somebody behind this host is answered, where the policy judges what comes in."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.kernel.lab import DEVICE, OUTSIDE
from tests.kernel.test_forwarded import Gateway

POLICY = {"sallyport.rego": 'package sallyport\n\ndefault_verdict := "allow"\n\ninbound_verdict := "deny"\n'}
NAT = f"table ip nat {{\nchain out {{\ntype nat hook postrouting priority 100\noifname {DEVICE} masquerade\n}}\n}}\n"


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    gateway = Gateway(POLICY)
    try:
        subprocess.run(
            gateway.inside.command("nft", "-f", "-"), check=True, text=True,
            input=NAT,
        )  # fmt: skip
        gateway.start(config='inside = ["tocontainer"]\n')
        yield gateway
    finally:
        gateway.close()


def test_a_datagram_is_answered(gateway: Gateway) -> None:
    server, client = gateway.agent(outside=True), gateway.contained()
    server.do(f"u = bound({OUTSIDE!r}, 7000)")
    client.do(f"u = udp(); u.sendto(b'question', ({OUTSIDE!r}, 7000))")
    server.do("data, who = u.recvfrom(16); u.sendto(b'answer', who)")
    assert client.do("u.recv(16)") == b"answer"


def test_a_connection_is_answered(gateway: Gateway) -> None:
    server, client = gateway.agent(outside=True), gateway.contained()
    server.do(f"l = listening({OUTSIDE!r}, 7000)")
    client.do(f"s = connected({OUTSIDE!r}, 7000); s.sendall(b'ping')")
    server.do("p = accepted(l); exactly(p, 4); p.sendall(b'pong')")
    assert client.do("exactly(s, 4)") == b"pong"
