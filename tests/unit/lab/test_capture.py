"""What the capture reads of a frame: the proof that nothing arrived must not rest on a misread length."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.lab.capture import Segment, dissect

ADDRESSES = {4: ("192.0.2.2", "192.0.2.10"), 6: ("2001:db8:5a11::2", "2001:db8:5a11::10")}


def frame(version: int, body: bytes, transport: int, options: bytes = b"", padding: bytes = b"") -> bytes:
    source, target = (ipaddress.ip_address(text).packed for text in ADDRESSES[version])
    if version == 4:
        head = struct.pack("!BBHIBBH", 0x45 + len(options) // 4, 0, 20 + len(options) + len(body), 0, 64, transport, 0)
        return bytes(12) + b"\x08\x00" + head + source + target + options + body + padding
    head = struct.pack("!IHBB", 6 << 28, len(body), transport, 64)
    return bytes(12) + b"\x86\xdd" + head + source + target + body + padding


def tcp(payload: bytes, options: bytes = b"", flags: int = 0x18) -> bytes:
    offset = (20 + len(options)) // 4
    return struct.pack("!HHIIBBHHH", 40000, 443, 1, 1, offset << 4, flags, 1000, 0, 0) + options + payload


def udp(payload: bytes) -> bytes:
    return struct.pack("!HHHH", 40000, 443, 8 + len(payload), 0) + payload


@given(
    version=st.sampled_from([4, 6]),
    payload=st.binary(max_size=64),
    words=st.integers(0, 10),
    padding=st.binary(max_size=46),
)
def test_a_segment_is_its_address_port_and_payload(version: int, payload: bytes, words: int, padding: bytes) -> None:
    # Ethernet pads short frames: what lies behind the packet's own length is no payload.
    read = dissect(frame(version, tcp(payload, bytes(4 * words)), 6, padding=padding))
    assert read == Segment(ADDRESSES[version][1], 443, payload)


@pytest.mark.parametrize("version", [4, 6])
def test_a_datagram_is_read_too(version: int) -> None:
    assert dissect(frame(version, udp(b"data"), 17)) == Segment(ADDRESSES[version][1], 443, b"data")


@pytest.mark.parametrize(("flags", "opens"), [(0x02, True), (0xC2, True), (0x12, False), (0x10, False), (0x04, False)])
def test_the_first_segment_of_a_connection_is_told_from_the_others(flags: int, opens: bool) -> None:
    for version in (4, 6):
        assert dissect(frame(version, tcp(b"", flags=flags), 6)) == Segment(ADDRESSES[version][1], 443, b"", opens)


def test_ip_options_are_no_payload() -> None:
    assert dissect(frame(4, tcp(b"data"), 6, options=bytes(8))) == Segment(ADDRESSES[4][1], 443, b"data")


@pytest.mark.parametrize("other", [frame(4, b"x" * 32, 1), bytes(12) + b"\x08\x06" + bytes(28), b""])
def test_what_is_neither_tcp_nor_udp_is_left_out(other: bytes) -> None:
    assert dissect(other) is None


@given(st.binary(max_size=120))
def test_no_frame_breaks_it(data: bytes) -> None:
    for kind in (b"\x08\x00", b"\x86\xdd"):
        read = dissect(bytes(12) + kind + data)
        assert read is None or len(read.payload) <= len(data)
