"""A flood of strangers who are refused takes nothing from who is answered."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel.host import Host
from tests.kernel.lab import INSIDE, OUTSIDE

POLICY = {"sallyport.rego": 'package sallyport\n\ndefault_verdict := "allow"\n\ninbound_verdict := "deny"\n'}
SOCKETS, PORTS = 4, 50_000
"""More pairs of ports than the gate remembers flows from outside."""


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    host = Host(POLICY)
    try:
        host.start()
        yield host
    finally:
        host.close()


def test_an_answer_comes_in_after_a_flood(host: Host) -> None:
    far, near = host.agent(outside=True), host.agent()
    far.do(f"u = bound({OUTSIDE!r}, 7000)")
    near.do(f"u = udp(); u.sendto(b'question', ({OUTSIDE!r}, 7000))")
    far.do("data, who = u.recvfrom(16)")
    for _ in range(SOCKETS):
        far.do(f"f = udp()\nfor port in range(10000, {10_000 + PORTS}):\n    f.sendto(b'x', ({INSIDE!r}, port))")
    far.do("u.sendto(b'answer', who)")
    assert near.do("u.recv(16)") == b"answer"
