"""Any bytes: a typed value or an InputError, never another exception, and never a name out of nothing."""

from __future__ import annotations

import io

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InputError
from engine.protocols.capture import CaptureRecord, records
from engine.protocols.packet import Fragment, Packet, Refusal, parse
from engine.protocols.quic import InitialAssembler, initial_packets
from engine.protocols.records import HelloAssembler
from engine.protocols.survey import Survey
from engine.protocols.tls import parse_hello
from tests.support import captures as build
from tests.support import hello, initials

LINKS = (0, 1, 9, 12, 14, 50, 51, 101, 104, 108, 113, 166, 228, 229, 239, 276, 127)
FRAMES = (
    build.tcp_frame(hello.client_hello("example.com")),
    build.ethernet(build.ipv6(0, b"\x06\0\x01\x04\0\0\0\0" + build.tcp(1, 2, b"x")), vlans=(1, 2)),
    build.ethernet(build.ipv4(47, b"\xb0\0\x65\x58" + bytes(12) + build.udp_frame(b"x" * 50))),
    build.ethernet(build.ipv4(17, build.udp(1, 6081, b"\x01\0\x65\x58\0\0\x01\0" + bytes(4) + build.tcp_frame(b"y")))),
    build.ethernet(
        build.ipv4(17, build.udp(2152, 2152, b"\x34\xff\0\0\0\0\0\x01\0\0\0\x85\x01\x10\x09\x00" + bytes(40)))
    ),
    build.ethernet(build.ipv4(17, build.udp(1, 3544, b"\0\1\2\2" + bytes(40)))),
)
INITIAL = initials.initial(initials.crypto(0, hello.handshake("quic.example")))
DAMAGE = st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 255)), max_size=8)


def damaged(data: bytes, damage: list[tuple[int, int]], length: int) -> bytes:
    out = bytearray(data)
    for place, flip in damage:
        out[place % len(out)] ^= flip
    return bytes(out[: length % (len(out) + 1)] if length % 3 else out)


@given(st.binary(max_size=200), st.sampled_from(LINKS), st.booleans())
@settings(max_examples=400)
def test_any_frame(frame: bytes, link: int, tunnels: bool) -> None:
    assert isinstance(parse(frame, link, tunnels=tunnels), (Packet, Fragment, Refusal))


@given(st.sampled_from(FRAMES), DAMAGE, st.integers(0, 3000))
@settings(max_examples=400)
def test_any_damaged_frame_stays_within_its_bounds(frame: bytes, damage: list[tuple[int, int]], length: int) -> None:
    data = damaged(frame, damage, length)
    got = parse(data, tunnels=True)
    if isinstance(got, Packet):
        assert 0 <= got.payload_offset <= got.payload_end <= len(got.frame)
        assert got.missing >= 0


@given(st.binary(max_size=400))
@settings(max_examples=300)
def test_any_bytes_as_a_hello(data: bytes) -> None:
    for reading in (parse_hello(data), parse_hello(b"\x01" + data), HelloAssembler().feed(data)):
        assert reading is None or (reading.name.value != "") == (reading.state.value == "complete")


@given(st.binary(max_size=1300))
@settings(max_examples=200)
def test_any_bytes_as_a_datagram(data: bytes) -> None:
    for datagram in (data, b"\xc3\0\0\0\x01" + data):
        list(initial_packets(datagram))
        reading = InitialAssembler().feed(datagram)
        assert reading is None or not reading.name.value


@given(DAMAGE.filter(bool), st.integers(0, 3000))
@settings(max_examples=100)
def test_a_damaged_initial_names_nobody(damage: list[tuple[int, int]], length: int) -> None:
    data = damaged(INITIAL, damage, length)
    reading = InitialAssembler().feed(data)
    assert data == INITIAL or reading is None or not reading.name.value


@given(st.lists(st.binary(max_size=80), max_size=6), st.booleans(), st.sampled_from("<>"), DAMAGE, st.integers(0, 3000))
@settings(max_examples=300)
def test_a_capture_is_read_back_or_refused_in_one_sentence(
    frames: list[bytes], modern: bool, order: str, damage: list[tuple[int, int]], length: int
) -> None:
    data = (build.pcapng if modern else build.pcap)(frames, order=order)
    assert [one.data for one in records(io.BytesIO(data))] == frames
    survey = Survey()
    refused = None
    try:
        for record in records(io.BytesIO(damaged(data, damage, length))):
            survey.feed(record)
    except InputError as error:
        refused = error
    survey.finish()
    assert refused is None or (refused.hint and "\n" not in refused.message)


@given(st.lists(st.tuples(st.sampled_from(FRAMES), DAMAGE), max_size=12), st.sampled_from(LINKS))
@settings(max_examples=150)
def test_any_frames_through_the_survey(frames: list[tuple[bytes, list[tuple[int, int]]]], link: int) -> None:
    survey = Survey()
    for number, (frame, damage) in enumerate(frames, 1):
        data = damaged(frame, damage, 0)
        for sighting in survey.feed(CaptureRecord(number, 0, link, data, len(data))):
            assert (sighting.reading.name.value != "") == (sighting.reading.state.value == "complete")
    survey.finish()
