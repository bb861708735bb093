"""Somebody behind this host, in a network namespace and a control group of its own, as a container is: judged where its
packets come in, by who it is, and rejected at once."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from tests.kernel.host import Arrivals, Host
from tests.kernel.lab import FAR_DEVICE, OUTSIDE, OUTSIDE6
from tests.support.hello import client_hello
from tests.support.netns import Agent, Namespace, join

OPEN, DENIED, REJECTED, UNLISTED = 10001, 20001, 10100, 10200
POLICY = {
    "sallyport.rego": 'package sallyport\n\ndefault_verdict := "allow"\n',
    "rules/ports/ports.rego": (
        "package sallyport.rules.ports\n\n"
        'scope := {"dest"}\n\n'
        f'deny contains "closed port" if input.dest.port == {DENIED}\n\n'
        f'reject contains "closed port" if input.dest.port == {REJECTED}\n'
    ),
    "rules/groups/groups.rego": (
        "package sallyport.rules.groups\n\n"
        'scope := {"dest", "cgroup"}\n\n'
        'target_scope := {"dest"}\n\n'
        f"target if input.dest.port == {UNLISTED}\n\n"
        'deny contains "only the container may" if not endswith(input.cgroup.path, "container")\n'
    ),
    "rules/names/names.rego": (
        "package sallyport.rules.names\n\n"
        'scope := {"name"}\n\n'
        'deny contains "no such name here" if input.name.value == "wrong.example"\n'
    ),
}
NETWORK = 78


class Gateway(Host):
    """A host that forwards, with a container behind it."""

    def __init__(self, policy: dict[str, str]) -> None:
        super().__init__(policy)
        self.container = Namespace("spc")
        join(self.inside, self.container, "tocontainer", "eth0", NETWORK)
        for space, route in ((self.container, "10.78.0.1"), (self.outside, "10.77.0.1")):
            space.ip("route", "add", "default", "via", route)
        for space, route in ((self.container, "fd00:78::1"), (self.outside, "fd00:77::1")):
            space.ip("-6", "route", "add", "default", "via", route)
        self.inside.call(
            lambda: [_write(f"/proc/sys/net/{version}/conf/all/forwarding") for version in ("ipv4", "ipv6")]
        )
        self.group = self.cgroup / "container"
        self.group.mkdir()

    def contained(self, *, known: bool = True) -> Agent:
        """A process in the container; `known=False`: in a control group that the gate is not attached to."""
        agent = Agent(self.container, self.group if known else None)
        self._agents.append(agent)
        return agent

    def close(self) -> None:
        self.dismiss()
        self.group.rmdir()
        self.container.close()
        super().close()


def _write(path: str) -> None:
    with open(path, "w") as file:  # noqa: PTH123
        file.write("1")


@pytest.fixture(scope="module")
def running() -> Iterator[Gateway]:
    gateway = Gateway(POLICY)
    try:
        gateway.start(config='inside = ["tocontainer"]\n')
        yield gateway
    finally:
        gateway.close()


def reached(client: Agent, address: str, port: int) -> int:
    """The errno with which a connection ends; 0 when it comes about."""
    try:
        client.do(f"s = tcp({address!r}); s.settimeout(3); s.connect(({address!r}, {port}))")
    except OSError as error:
        return error.errno or errno.ETIMEDOUT
    return 0


def serve(gateway: Gateway, address: str, port: int) -> Agent:
    server = gateway.agent(outside=True)
    server.do(f"l = listening({address!r}, {port})")
    return server


@pytest.mark.parametrize("address", [OUTSIDE, OUTSIDE6])
def test_what_is_allowed_passes_both_ways(gateway: Gateway, address: str) -> None:
    server = serve(gateway, address, OPEN)
    client = gateway.contained()
    client.do(f"s = connected({address!r}, {OPEN}); s.sendall(b'ping')")
    assert server.do("p = accepted(l); exactly(p, 4)") == b"ping"
    server.do("p.sendall(b'pong')")
    assert client.do("exactly(s, 4)") == b"pong"
    client.do(f"u = udp({address!r}); u.sendto(b'datagram', ({address!r}, {OPEN}))")
    server.do(f"u = bound({address!r}, {OPEN})")
    client.do(f"u.sendto(b'datagram', ({address!r}, {OPEN}))")
    assert server.do("u.recv(16)") == b"datagram"


@pytest.mark.parametrize("address", [OUTSIDE, OUTSIDE6])
def test_what_is_denied_never_leaves(gateway: Gateway, address: str) -> None:
    serve(gateway, address, DENIED)
    arrivals = Arrivals(gateway.outside, FAR_DEVICE)
    try:
        client = gateway.contained()
        assert reached(client, address, DENIED) in (errno.ECONNABORTED, errno.EPERM)
        # And from now on at once, where it stands.
        assert reached(client, address, DENIED) == errno.EPERM
        assert arrivals.take() == []
    finally:
        arrivals.close()


@pytest.mark.parametrize("address", [OUTSIDE, OUTSIDE6])
def test_who_is_rejected_hears_of_it_at_once(gateway: Gateway, address: str) -> None:
    client = gateway.contained(known=False)
    assert reached(client, address, REJECTED) == errno.ECONNREFUSED
    assert reached(client, address, REJECTED) == errno.ECONNREFUSED
    client.do(f"u = udp({address!r}); u.connect(({address!r}, {REJECTED})); u.send(b'anybody?')")
    with pytest.raises(OSError, match="refused"):
        client.do("u.recv(16)")


def test_the_container_is_known_by_its_control_group(gateway: Gateway) -> None:
    serve(gateway, OUTSIDE, UNLISTED)
    assert reached(gateway.contained(), OUTSIDE, UNLISTED) == 0
    assert reached(gateway.contained(known=False), OUTSIDE, UNLISTED) != 0
    assert reached(gateway.agent(), OUTSIDE, UNLISTED) != 0


@pytest.mark.parametrize(("name", "arrives"), [("right.example", True), ("wrong.example", False)])
@pytest.mark.parametrize("split", [0, 5, 60])
def test_a_name_is_judged_before_a_byte_of_it_leaves(gateway: Gateway, name: str, split: int, *, arrives: bool) -> None:
    hello = client_hello(name)
    server = serve(gateway, OUTSIDE, OPEN + 1)
    client = gateway.contained()
    client.do(f"s = connected({OUTSIDE!r}, {OPEN + 1})")
    server.do("p = accepted(l)")
    client.do(f"s.sendall({hello[:split]!r}); s.sendall({hello[split:]!r})")
    if arrives:
        assert server.do(f"exactly(p, {len(hello)})") == hello
        return
    with pytest.raises(OSError, match=r"reset|abort"):
        client.do("s.recv(1)")
    with pytest.raises(OSError, match="reset"):
        server.do("p.recv(1)")


def test_an_interface_that_is_not_known_forwards_nothing(gateway: Gateway) -> None:
    stranger = Namespace("sps")
    try:
        join(gateway.inside, stranger, "tostranger", "eth0", 79)
        stranger.ip("route", "add", "default", "via", "10.79.0.1")
        gateway.outside.ip("route", "replace", "10.79.0.0/24", "via", "10.77.0.1")
        serve(gateway, OUTSIDE, OPEN + 2)
        agent = Agent(stranger)
        gateway._agents.append(agent)
        before = gateway.engine.status()["counters"]["dropped_interface"]
        assert reached(agent, OUTSIDE, OPEN + 2) == errno.ETIMEDOUT
        assert gateway.engine.status()["counters"]["dropped_interface"] > before
    finally:
        gateway.dismiss()
        stranger.close()
