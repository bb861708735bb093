"""Destinations judged by the names that DNS answered for them, with the engine: the answer counts for the very next
connect, for as long as it lasts, and only from a resolver of this host."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine.protocols.dns import Kind, Message, Question, encode
from tests.kernel.host import Host, awaited
from tests.kernel.lab import FAR_DEVICE, OUTSIDE
from tests.support.lookups import labels, points
from tests.support.netns import Agent

RESOLVER, IMPOSTOR, SERVER, OTHER = OUTSIDE, "10.77.0.3", "10.77.0.4", "10.77.0.5"
PORT = 10443
POLICY = {
    "sallyport.rego": 'package sallyport\n\ndefault_verdict := "allow"\n',
    "rules/answered/answered.rego": (
        "package sallyport.rules.answered\n\n"
        'scope := {"dest", "dest_names"}\n\n'
        f'target_scope := {{"dest"}}\n\ntarget if input.dest.port == {PORT}\n\n'
        'deny contains "no listed name answered for it" if not listed\n\n'
        'listed if "good.example" in input.dest_names\n'
    ),
}


@pytest.fixture(scope="module")
def running() -> Iterator[Host]:
    host = Host(POLICY)
    try:
        for address in (IMPOSTOR, SERVER, OTHER):
            host.outside.ip("address", "add", f"{address}/24", "dev", FAR_DEVICE)
        host.start(config=f'[dns]\nfrom_resolv_conf = false\nresolvers = ["{RESOLVER}"]\n')
        yield host
    finally:
        host.close()


def looked_up(host: Host, client: Agent, name: str, address: str, ttl: int, *, resolver: str = RESOLVER) -> None:
    """Ask over UDP and be answered."""
    question = Question(labels(name), Kind.A)
    server = host.agent(outside=True)
    server.do(f"s = bound({resolver!r}, 53)")
    client.do(
        f"c = udp({resolver!r}); c.connect(({resolver!r}, 53)); c.send({encode(Message(9, False, (question,)))!r})"
    )
    answer = encode(Message(9, True, (question,), (points(name, address, ttl),)))
    server.do(f"s.sendto({answer!r}, s.recvfrom(512)[1])")
    client.do("c.recv(512)")
    server.do("s.close()")


def reaches(host: Host, client: Agent, address: str) -> bool:
    try:
        client.do(f"connected({address!r}, {PORT}).close()")
    except OSError:
        return False
    return True


def test_the_connect_that_follows_an_answer_rests_on_it(host: Host) -> None:
    host.agent(outside=True).do(f"l = listening({SERVER!r}, {PORT})")
    client = host.agent()
    assert not reaches(host, client, SERVER)
    looked_up(host, client, "good.example", SERVER, 300)
    assert reaches(host, client, SERVER)
    assert not reaches(host, client, OTHER)


def test_an_answer_of_nobody_s_resolver_counts_for_nothing(host: Host) -> None:
    host.agent(outside=True).do(f"l = listening({OTHER!r}, {PORT})")
    client = host.agent()
    looked_up(host, client, "good.example", OTHER, 300, resolver=IMPOSTOR)
    assert not reaches(host, client, OTHER)


def test_an_answer_ends(host: Host) -> None:
    host.agent(outside=True).do(f"l = listening({OTHER!r}, {PORT})")
    client = host.agent()
    looked_up(host, client, "good.example", OTHER, 1)
    assert reaches(host, client, OTHER)
    awaited(lambda: not reaches(host, client, OTHER), host.engine.told)
