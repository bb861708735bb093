"""Which sockets there are, and the end of one of them and no other."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from engine.abi.records import Tuple
from engine.kernel.sockdiag import ESTABLISHED, LISTEN, SockDiag, SocketInfo
from tests.kernel.lab import DEVICE, INSIDE, INSIDE6, OUTSIDE, OUTSIDE6, TCP, UDP, key
from tests.support.netns import Agent, Namespace, join


@pytest.fixture(scope="module")
def spaces() -> Iterator[tuple[Namespace, Namespace]]:
    inside, outside = Namespace("spd"), Namespace("spd")
    join(inside, outside, DEVICE, "far")
    yield inside, outside
    inside.close()
    outside.close()


@pytest.fixture
def pair(spaces: tuple[Namespace, Namespace]) -> Iterator[tuple[Agent, Agent]]:
    agents = Agent(spaces[0]), Agent(spaces[1])
    yield agents
    for agent in agents:
        agent.close()


@pytest.fixture
def diag(spaces: tuple[Namespace, Namespace]) -> Iterator[SockDiag]:
    opened = spaces[0].call(SockDiag)
    yield opened
    opened.close()


@pytest.fixture
def far_diag(spaces: tuple[Namespace, Namespace]) -> Iterator[SockDiag]:
    opened = spaces[1].call(SockDiag)
    yield opened
    opened.close()


def found(diag: SockDiag, port: int, state: int, transport: int = TCP) -> list[SocketInfo]:
    return [
        info for info in diag.sockets(transport) if info.state == state and port in {info.flow.dport, info.flow.sport}
    ]


@pytest.mark.parametrize("address", [OUTSIDE, OUTSIDE6, f"::ffff:{OUTSIDE}"])
def test_a_connection_is_listed_and_ended_by_its_cookie(
    diag: SockDiag, pair: tuple[Agent, Agent], address: str
) -> None:
    client, server = pair
    server.do(f"l = listening({address.rpartition('ffff:')[2]!r}, 4800)")
    client.do(f"s = connected({address!r}, 4800)")
    server.do("c = accepted(l)")
    (info,) = found(diag, 4800, ESTABLISHED)
    assert info.flow.dst == key(address.rpartition("ffff:")[2])
    assert info.cookie == int.from_bytes(client.do("s.getsockopt(socket.SOL_SOCKET, 57, 8)"), "little")
    assert info.inode == client.do("os.fstat(s.fileno()).st_ino")
    assert info.uid == 0
    client.start("s.recv(1)")
    assert diag.destroy(info.flow, info.cookie)
    with pytest.raises(ConnectionAbortedError):
        client.result()
    with pytest.raises(ConnectionResetError):
        server.do("c.recv(1)")
    assert found(diag, 4800, ESTABLISHED) == []
    assert not diag.destroy(info.flow, info.cookie), "it is gone"


def test_a_wrong_cookie_ends_nothing(diag: SockDiag, pair: tuple[Agent, Agent]) -> None:
    client, server = pair
    server.do(f"l = listening({OUTSIDE!r}, 4801)")
    client.do(f"s = connected({OUTSIDE!r}, 4801)")
    server.do("c = accepted(l)")
    (info,) = found(diag, 4801, ESTABLISHED)
    assert not diag.destroy(info.flow, info.cookie + 1)
    assert not diag.destroy(info.flow, 0)
    client.do("s.sendall(b'alive')")
    assert server.do("exactly(c, 5)") == b"alive"


def test_the_listener_survives_the_end_of_a_connection_that_is_gone(
    far_diag: SockDiag, pair: tuple[Agent, Agent]
) -> None:
    client, server = pair
    server.do(f"l = listening({OUTSIDE!r}, 4802)")
    client.do(f"s = connected({OUTSIDE!r}, 4802)")
    server.do("c = accepted(l)")
    (info,) = found(far_diag, 4802, ESTABLISHED)
    client.do("s.close()")
    with pytest.raises(ConnectionResetError):
        server.do("c.recv(1)")
    assert not far_diag.destroy(info.flow, info.cookie)
    (listener,) = found(far_diag, 4802, LISTEN)
    assert listener.flow == Tuple(key(OUTSIDE), key("0.0.0.0"), 4802, 0, TCP)  # noqa: S104
    client.do(f"s = connected({OUTSIDE!r}, 4802)")
    server.do("c = accepted(l)")


def test_a_datagram_socket_is_listed_and_ended(diag: SockDiag, pair: tuple[Agent, Agent]) -> None:
    client, _ = pair
    client.do(f"s = udp(); s.bind(({INSIDE!r}, 4803)); s.connect(({OUTSIDE!r}, 4804))")
    (info,) = found(diag, 4804, ESTABLISHED, UDP)
    assert info.flow == Tuple(key(INSIDE), key(OUTSIDE), 4803, 4804, UDP)
    assert diag.destroy(info.flow, info.cookie)
    with pytest.raises(ConnectionAbortedError):
        client.do("s.recv(1)")


@pytest.mark.parametrize(("inside", "outside"), [(INSIDE, OUTSIDE), (INSIDE6, OUTSIDE6)])
def test_a_datagram_socket_that_speaks_to_others_too_is_left_alone(
    diag: SockDiag, pair: tuple[Agent, Agent], inside: str, outside: str
) -> None:
    client, _ = pair
    client.do(f"s = udp({inside!r}); s.bind(({inside!r}, 4806)); s.setblocking(False)")
    (info,) = [one for one in diag.sockets(UDP) if one.flow.sport == 4806]
    assert not diag.destroy(Tuple(key(inside), key(outside), 4806, 4807, UDP), info.cookie)
    with pytest.raises(BlockingIOError):
        client.do("s.recv(1)")
    client.do(f"s.connect(({outside!r}, 4807))")
    assert diag.destroy(Tuple(key(inside), key(outside), 4806, 4807, UDP), info.cookie)


def test_only_sockets_of_its_own_namespace_are_seen(
    diag: SockDiag, far_diag: SockDiag, pair: tuple[Agent, Agent]
) -> None:
    client, server = pair
    server.do(f"l = listening({OUTSIDE!r}, 4805)")
    assert found(diag, 4805, LISTEN) == []
    assert len(found(far_diag, 4805, LISTEN)) == 1
    assert client.pid != server.pid
    assert socket.IPPROTO_TCP == TCP
