"""Calls and datagrams: what is said of them must stay true when it is asked for twice."""

from __future__ import annotations

import socket

import pytest

from engine.lab.actor import Actor
from engine.lab.plain import Caller, Datagrams, Volley
from engine.lab.waiting import until

HERE = "127.0.0.1"


@pytest.fixture
def closed() -> int:
    """A port at which nobody listens: taken, and not listened at."""
    with socket.create_server((HERE, 0)) as taken:
        return int(taken.getsockname()[1])


def outcome(caller: Caller) -> str:
    until(lambda: caller.state()["state"] != "pending")
    return str(caller.state()["state"])


def test_a_refused_call_stays_refused(closed: int) -> None:
    # connect(2) on a socket that was refused begins a new call: that one would come about.
    caller = Caller(HERE, closed, HERE)
    assert outcome(caller) == "ECONNREFUSED"
    with socket.create_server((HERE, closed)):
        assert [outcome(caller) for _ in range(3)] == ["ECONNREFUSED"] * 3
    caller.close()


def test_a_call_that_was_taken_stays_taken() -> None:
    with socket.create_server((HERE, 0)) as server:
        caller = Caller(HERE, server.getsockname()[1], HERE)
        assert outcome(caller) == "connected"
        server.accept()[0].close()
        assert outcome(caller) == "connected"
        caller.close()


def test_a_volley_is_one_call_to_each_port_and_ends() -> None:
    with socket.create_server((HERE, 0)) as server:
        port = server.getsockname()[1]
        assert Volley(HERE, [port] * 5, HERE).end() == {"calls": 5}
        peers = [server.accept() for _ in range(5)]
        assert [peer.recv(1) for peer, _ in peers] == [b""] * 5
        for peer, _ in peers:
            peer.close()


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.bind((HERE, 0))
        return int(asking.getsockname()[1])


def test_a_datagram_comes_from_the_port_that_was_asked_for() -> None:
    here, there = Datagrams(), Datagrams()
    port, source_port = free_port(), free_port()
    assert there.received(port) == {"datagrams": []}
    assert here.send(HERE, port, "hello", source_port=source_port) == {}
    assert until(lambda: there.received(port)["datagrams"]) == [(HERE, source_port, "hello")]
    assert there.received(port) == {"datagrams": []}
    assert there.send(HERE, source_port, "hello back", source_port=port) == {}
    assert until(lambda: here.received(source_port)["datagrams"]) == [(HERE, port, "hello back")]


def test_whoever_listens_already_goes_on(closed: int) -> None:
    # Two scenarios may want the same port; a second socket could not be bound.
    actor = Actor()
    actor.listen(closed)
    calling = socket.create_connection((HERE, closed))
    actor.listen(closed)
    assert until(lambda: actor.accepted(closed)["peers"]) == [HERE]
    calling.close()


class Standing:
    """A capture that has seen something of one address."""

    def __init__(self, address: str, missed: int = 0) -> None:
        self._address = address
        self._missed = missed

    def take(self, address: str, port: int, needle: bytes) -> dict[str, int]:
        seen = int(address == self._address)
        return {"opened": seen, "segments": seen, "bytes": 10 * seen, "needle": seen, "missed": self._missed}


def test_what_arrived_arrived_on_any_of_the_devices() -> None:
    actor = Actor()
    assert "error" in actor.captured("192.0.2.1", 443)
    actor._captures += [Standing("192.0.2.1"), Standing("192.0.2.2", missed=3)]  # type: ignore[list-item]
    assert actor.captured("192.0.2.2", 443) == {"opened": 1, "segments": 1, "bytes": 10, "needle": 1, "missed": 3}
