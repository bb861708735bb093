"""Packets that attempts make by hand, and what the witness reads of them."""

from __future__ import annotations

import socket
import struct
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.protocols import packet as packets
from engine.selftest import frames
from engine.selftest.frames import Seen, dissect, ethernet, ipv4, streams, tcp, udp

HERE, THERE = "192.0.2.2", "192.0.2.66"
MAC = bytes(6)


def framed(packet: bytes, *tags: int) -> bytes:
    return ethernet(MAC, MAC, 0x0800, packet, tags)


def segment(seq: int, payload: bytes) -> Seen:
    return Seen(b"a", b"b", frames.TCP, 1, 2, seq, frames.ACK, payload)


@pytest.mark.parametrize("tags", [(), (0x8100,), (0x88A8, 0x8100)])
@pytest.mark.parametrize("options", [b"", b"\x01" * 40])
def test_a_segment_is_read_as_it_was_made(tags: tuple[int, ...], options: bytes) -> None:
    made = tcp(HERE, THERE, 40000, 443, 7, 9, frames.ACK, b"payload")
    seen = dissect(framed(ipv4(HERE, THERE, frames.TCP, made, options=options), *tags))
    assert seen == Seen(
        socket.inet_aton(HERE), socket.inet_aton(THERE), frames.TCP, 40000, 443, 7, frames.ACK, b"payload"
    )


def test_what_is_made_is_what_the_engine_reads() -> None:
    # Were it malformed, the gate would drop it for that, and nothing would be proved about its content.
    for protocol, made in (
        (frames.TCP, tcp(HERE, THERE, 40000, 443, 7, 9, frames.ACK, b"payload")),
        (frames.UDP, udp(HERE, THERE, 40000, 443, b"payload")),
    ):
        read = packets.parse(framed(ipv4(HERE, THERE, protocol, made)))
        assert isinstance(read, packets.Packet)
        assert (read.protocol, read.sport, read.dport, bytes(read.payload)) == (protocol, 40000, 443, b"payload")


def test_checksums_are_those_of_rfc_1071() -> None:
    packet = ipv4(HERE, THERE, frames.UDP, b"", options=b"\x01\x01\x01\x01")
    assert frames.checksum(packet[:24]) == 0
    pseudo = socket.inet_aton(HERE) + socket.inet_aton(THERE) + struct.pack("!BBH", 0, frames.TCP, 27)
    assert frames.checksum(pseudo + tcp(HERE, THERE, 1, 2, 3, 4, frames.SYN, b"1234567")) == 0


def test_a_later_fragment_has_no_ports() -> None:
    made = udp(HERE, THERE, 40000, 443, b"0123456789abcdef")
    seen = dissect(framed(ipv4(HERE, THERE, frames.UDP, made[16:], offset=16)))
    assert seen is not None
    assert (seen.sport, seen.dport, seen.payload) == (0, 0, b"89abcdef")


def test_extension_headers_are_passed_over() -> None:
    datagram = struct.pack("!HHHH", 40000, 443, 8 + 5, 0) + b"token"
    routing = bytes([frames.UDP, 2, 4, 0]) + bytes(20)
    body = bytes([frames.ROUTING, 0]) + bytes(6) + routing + datagram
    packet = struct.pack("!IHBB", 0x60000000, len(body), 60, 64) + b"\1" * 16 + b"\2" * 16 + body
    seen = dissect(ethernet(MAC, MAC, 0x86DD, packet))
    assert seen == Seen(b"\1" * 16, b"\2" * 16, frames.UDP, 40000, 443, payload=b"token")


@pytest.mark.parametrize("start", [1000, 0xFFFFFFFE], ids=["plain", "the number wraps"])
def test_a_stream_is_put_together_in_any_order(start: int) -> None:
    pieces = [segment((start + at) & 0xFFFFFFFF, b"hello world"[at : at + 4]) for at in (0, 4, 8)]
    for order in permutations(pieces):
        assert b"hello world" in streams(order)


def test_where_segments_overlap_both_readings_count() -> None:
    read = streams([segment(1, b"abXXef"), segment(3, b"cd")])
    assert set(read) == {b"abcdef", b"abXXef"}


def test_flows_are_kept_apart() -> None:
    other = Seen(b"a", b"b", frames.TCP, 9, 2, 3, frames.ACK, b"cd")
    assert not any(b"abcd" in stream for stream in streams([segment(1, b"ab"), other]))


@given(st.binary(max_size=200), st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x81\x00", b"\x88\xa8", b""]))
def test_no_frame_trips_the_witness(tail: bytes, kind: bytes) -> None:
    dissect(bytes(12) + kind + tail)
