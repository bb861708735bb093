"""Resets and ICMP errors, as a sender's stack would read them."""

from __future__ import annotations

import struct

import pytest

from engine.protocols import packet as packets
from engine.protocols.packet import ACK, FIN, PSH, RST, SYN, TCP, UDP, Packet
from engine.protocols.refusal import abort, refuse
from tests.support import captures

V4 = (captures.CLIENT, "198.51.100.9")
V6 = ("2001:db8::10", "2001:db8:1::20")


def built(protocol: int, inside: bytes, *, six: bool, dst: str = "", **options: object) -> Packet:
    src, usual = V6 if six else V4
    make = captures.ipv6 if six else captures.ipv4
    return read(captures.ethernet(make(protocol, inside, src=src, dst=dst or usual, **options)))  # type: ignore[arg-type]


def read(frame: bytes) -> Packet:
    packet = packets.parse(frame)
    assert isinstance(packet, Packet), packet
    return packet


def checksum(data: bytes) -> int:
    """The one's complement sum of the words (RFC 1071): 0xFFFF where the checksum in it is right."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def inside_of(packet: Packet) -> bytes:
    return packet.frame[packet.transport_offset : packet.payload_end]


def is_sound(packet: Packet) -> bool:
    """Are the IP header's checksum and the transport's right?"""
    inside = inside_of(packet)
    if packet.version == 6:
        over = packet.source_key + packet.dest_key + struct.pack("!I3xB", len(inside), packet.protocol)
        return checksum(over + inside) == 0xFFFF
    over = b""
    if packet.protocol == TCP:
        over = packet.source_key[12:] + packet.dest_key[12:] + struct.pack("!xBH", TCP, len(inside))
    start = 14 + 4 * len(packet.vlans)
    return checksum(packet.frame[start : start + 20]) == 0xFFFF and checksum(over + inside) == 0xFFFF


@pytest.mark.parametrize("six", [False, True])
@pytest.mark.parametrize("payload", [b"", b"early"])
def test_a_syn_is_answered_with_a_reset_that_acknowledges_it(six: bool, payload: bytes) -> None:
    syn = built(TCP, captures.tcp(40000, 443, payload, seq=0xFFFFFFFE, flags=SYN), six=six)
    answer = read(refuse(syn) or b"")
    assert (answer.source_key, answer.dest_key) == (syn.dest_key, syn.source_key)
    assert (answer.sport, answer.dport, answer.flags) == (443, 40000, RST | ACK)
    acknowledged = struct.unpack_from("!I", inside_of(answer), 8)[0]
    assert acknowledged == (0xFFFFFFFE + 1 + len(payload)) & 0xFFFFFFFF
    assert is_sound(answer)
    assert answer.frame[:12] == syn.frame[6:12] + syn.frame[:6]


@pytest.mark.parametrize("six", [False, True])
@pytest.mark.parametrize("flags", [ACK, ACK | PSH, ACK | FIN, SYN | ACK])
def test_a_segment_is_answered_with_what_it_acknowledges(six: bool, flags: int) -> None:
    segment = bytearray(captures.tcp(40000, 443, b"data", seq=7, flags=flags, options=b"\x01" * 12))
    segment[8:12] = struct.pack("!I", 0xCAFEBABE)
    answer = read(refuse(built(TCP, bytes(segment), six=six)) or b"")
    assert (answer.seq, answer.flags) == (0xCAFEBABE, RST)
    assert is_sound(answer)


def test_a_reset_is_never_answered() -> None:
    for flags in (RST, RST | ACK):
        assert refuse(built(TCP, captures.tcp(1, 2, b"", flags=flags), six=False)) is None


@pytest.mark.parametrize(("six", "kind", "code"), [(False, 3, 3), (True, 1, 4)])
@pytest.mark.parametrize("size", [0, 8, 4000])
def test_a_datagram_is_answered_with_port_unreachable(six: bool, kind: int, code: int, size: int) -> None:
    datagram = built(UDP, captures.udp(40000, 53, bytes(size)), six=six)
    answer = read(refuse(datagram) or b"")
    inside = inside_of(answer)
    assert (inside[0], inside[1]) == (kind, code)
    whole = datagram.frame[14:]
    assert whole.startswith(inside[8:])
    assert len(inside) >= 8 + 28
    assert len(answer.frame) - 14 <= (1280 if six else 576)
    assert is_sound(answer)


@pytest.mark.parametrize(("six", "protocol", "kind", "code"), [(False, 132, 3, 13), (True, 132, 1, 1)])
def test_another_protocol_is_answered_with_prohibited(six: bool, protocol: int, kind: int, code: int) -> None:
    answer = read(refuse(built(protocol, bytes(20), six=six)) or b"")
    assert tuple(inside_of(answer)[:2]) == (kind, code)


@pytest.mark.parametrize(
    ("six", "protocol", "inside", "dst"),
    [
        (False, 1, b"\x03\x03" + bytes(40), ""),
        (True, 58, b"\x01\x04" + bytes(50), ""),
        (False, UDP, captures.udp(1, 5353, b"?"), "224.0.0.251"),
        (True, UDP, captures.udp(1, 5353, b"?"), "ff02::fb"),
    ],
    ids=["an error", "an error6", "a group", "a group6"],
)
def test_who_may_not_be_answered_is_not(six: bool, protocol: int, inside: bytes, dst: str) -> None:
    """RFC 1122 3.2.2, RFC 4443 2.4 (e): or two hosts would answer each other's errors for ever."""
    assert refuse(built(protocol, inside, six=six, dst=dst)) is None


def test_an_echo_is_answered() -> None:
    answer = read(refuse(built(1, b"\x08\0" + bytes(40), six=False)) or b"")
    assert tuple(inside_of(answer)[:2]) == (3, 13)


def test_tags_go_back_too() -> None:
    plain = captures.ethernet(captures.ipv4(TCP, captures.tcp(1, 2, b"", flags=SYN), src=V4[0], dst=V4[1]))
    tagged = read(plain[:12] + b"\x88\xa8\0\5\x81\0\0\7" + plain[12:])
    answer = read(refuse(tagged) or b"")
    assert answer.vlans == tagged.vlans == (5, 7)
    assert is_sound(answer)


@pytest.mark.parametrize("six", [False, True])
def test_the_receiver_hears_in_its_senders_name(six: bool) -> None:
    segment = built(TCP, captures.tcp(40000, 443, b"data", seq=7, flags=ACK), six=six)
    onward = read(abort(segment) or b"")
    assert (onward.source_key, onward.dest_key) == (segment.source_key, segment.dest_key)
    assert (onward.sport, onward.dport, onward.seq, onward.flags) == (40000, 443, 7, RST)
    assert is_sound(onward)
    assert abort(built(TCP, captures.tcp(40000, 443, b"", flags=SYN), six=six)) is None
