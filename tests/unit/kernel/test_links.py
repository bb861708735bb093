"""Which interfaces a name or a pattern means, and what netlink's messages say."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InterfaceError
from engine.kernel.links import is_pattern, matching, named, to_guard
from engine.kernel.rtnetlink import (
    ETHERNET,
    LOOPBACK,
    Filter,
    Link,
    Type,
    attribute,
    attributes,
    filter_of,
    interface_of,
    link_of,
    messages,
)

TUNNEL = 65534
LINKS = [
    Link(1, "lo", LOOPBACK),
    Link(2, "eth0", ETHERNET),
    Link(3, "eth1", ETHERNET),
    Link(4, "veth0", ETHERNET),
    Link(5, "tun0", TUNNEL),
    Link(6, "hold-0a1b2c3d", ETHERNET),
    Link(7, "held-0a1b2c3d", ETHERNET),
    Link(8, "hold-up", ETHERNET),
]


def names(links: list[Link]) -> list[str]:
    return [link.name for link in links]


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        (["eth*"], ["eth0", "eth1"]),
        (["eth[0]"], ["eth0"]),
        (["?eth0"], ["veth0"]),
        (["ETH*"], []),
        (["*"], ["eth0", "eth1", "veth0", "tun0", "hold-up"]),
        (["h*"], ["hold-up"]),
        (["l?", "lo*"], []),
        ([], []),
    ],
)
def test_what_a_pattern_means(patterns: list[str], found: list[str]) -> None:
    assert names(matching(patterns, LINKS)) == found


@pytest.mark.parametrize(("word", "pattern"), [("eth0", False), ("eth*", True), ("eth?", True), ("eth[01]", True)])
def test_names_and_patterns_are_told_apart(word: str, pattern: bool) -> None:
    assert is_pattern(word) is pattern


def test_a_start_takes_every_name_and_what_fits_the_patterns_once() -> None:
    assert names(to_guard(["eth1", "eth*", "nothing*", "t*"], LINKS)) == ["eth1", "eth0"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("eth9", "There is no interface 'eth9'"),
        ("lo", "is the loopback"),
        ("tun0", r"no Ethernet header \(hardware type 65534\)"),
    ],
)
def test_a_name_that_cannot_be_guarded_is_refused(name: str, says: str) -> None:
    with pytest.raises(InterfaceError, match=says) as raised:
        named(name, LINKS)
    assert raised.value.hint


def test_the_refusal_of_a_missing_name_lists_what_is_there() -> None:
    with pytest.raises(InterfaceError) as raised:
        named("eth9", LINKS)
    assert "eth0, eth1" in raised.value.hint


# ---- messages


def link_body(family: int, name: str, hardware: int = ETHERNET, index: int = 7) -> bytes:
    return struct.pack("=BxHiII", family, hardware, index, 0, 0) + attribute(3, name.encode() + b"\0")


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body + bytes(-len(body) % 4)


def test_two_messages_in_one_datagram_are_read() -> None:
    data = message(Type.NEW_LINK, link_body(socket.AF_UNSPEC, "eth0")) + message(Type.DEL_LINK, b"x")
    assert [(each.type, len(each.body)) for each in messages(data)] == [(Type.NEW_LINK, 28), (Type.DEL_LINK, 1)]


def test_a_link_is_read() -> None:
    assert link_of(link_body(socket.AF_UNSPEC, "eth0")) == Link(7, "eth0", ETHERNET)


def test_a_port_that_leaves_its_bridge_is_no_interface_that_is_gone() -> None:
    assert link_of(link_body(socket.AF_BRIDGE, "eth0")) is None


def test_a_filter_is_read() -> None:
    number = (11).to_bytes(4, "little")
    options = attribute(7, b"gate_egress\0") + attribute(8, b"\1\0\0\0") + attribute(11, number)
    body = struct.pack("=B3xiIII", 0, 9, 1, 0xFFFFFFF3, 1 << 16 | 0x0300)
    body += attribute(1, b"bpf\0") + attribute(2 | 1 << 15, options)
    assert filter_of(body) == Filter(1, 1, "gate_egress", 11, True)
    assert interface_of(body) == 9


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40)), unique_by=lambda pair: pair[0], max_size=8))
def test_attributes_survive_the_round_trip(pairs: list[tuple[int, bytes]]) -> None:
    assert attributes(b"".join(attribute(kind, data) for kind, data in pairs)) == dict(pairs)


@given(st.binary(max_size=200))
def test_no_bytes_disturb_the_readers(data: bytes) -> None:
    for each in messages(data):
        link_of(each.body)
        filter_of(each.body)
    link_of(data)
    filter_of(data)
    interface_of(data)
    attributes(data)
