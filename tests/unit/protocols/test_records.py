"""The record layer: the same reading however a hello is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model.facts import NameState
from engine.protocols.records import HelloAssembler
from engine.protocols.tls import HelloReading
from tests.support import hello as build


def read(*pieces: bytes, limit: int = 16_384) -> HelloReading | None:
    assembler = HelloAssembler(limit)
    for piece in pieces:
        assembler.feed(piece)
    return assembler.reading


def state(*pieces: bytes, limit: int = 16_384) -> NameState | None:
    reading = read(*pieces, limit=limit)
    return reading.state if reading else None


@pytest.mark.parametrize("size", [517, 1800, 9000])
@pytest.mark.parametrize("records", [1, 2, 7])
def test_a_hello_over_records_and_segments(size: int, records: int) -> None:
    stream = build.client_hello("example.com", alpn=("h2",), size=size, records=records)
    assert len(stream) == size
    assembler = HelloAssembler()
    third = size // 3
    assert assembler.feed(stream[:third]) is None
    assert assembler.feed(stream[third : 2 * third]) is None
    reading = assembler.feed(stream[2 * third :])
    assert reading is not None
    assert reading.name.value == "example.com"
    assert reading.records == records
    assert reading.size == size - 5 * records
    at_once = read(stream)
    assert at_once is not None
    assert (at_once.name, at_once.records) == (reading.name, records)


def test_every_truncation_needs_more() -> None:
    stream = build.client_hello("example.com", records=3)
    for length in range(len(stream)):
        assert HelloAssembler().feed(stream[:length]) is None


def test_giving_up_is_partial_and_names_nobody() -> None:
    assembler = HelloAssembler()
    assembler.feed(build.client_hello("example.com")[:-1])
    reading = assembler.give_up("it took too long")
    assert (reading.state, reading.name.value, reading.reason) == (NameState.PARTIAL, "", "it took too long")
    assert assembler.feed(b"x") is reading


def test_giving_up_after_the_reading_changes_nothing() -> None:
    assembler = HelloAssembler()
    assembler.feed(build.client_hello("example.com"))
    assert assembler.give_up("late").name.value == "example.com"


@pytest.mark.parametrize("rest", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x02\x00\x00\x20", b"\x00" * 40])
def test_a_fake_record_header_is_malformed(rest: bytes) -> None:
    assert state(b"\x16\x03\x01\x02\x00" + rest) is NameState.MALFORMED


def test_a_fake_handshake_header_is_malformed_as_soon_as_it_shows() -> None:
    assert state(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfcGET /") is NameState.MALFORMED


@pytest.mark.parametrize(
    "start", [b"GET / HTTP/1.1", b"SSH-2.0-x", b"\x00\x00\x00\x08", b"\x17\x03\x03\x00\x10", b"\x16\x02"]
)
def test_other_protocols_are_not_tls(start: bytes) -> None:
    assert state(start) is NameState.NOT_TLS


def test_another_record_inside_the_hello_is_malformed() -> None:
    message = build.handshake("example.com")
    stream = build.record(message[:50]) + build.record(b"\x01", kind=20) + build.record(message[50:])
    assert state(stream) is NameState.MALFORMED


@pytest.mark.parametrize("header", [b"\x16\x03\x01\x00\x00", b"\x16\x03\x01\x40\x01"])
def test_records_of_impossible_length_are_malformed(header: bytes) -> None:
    assert state(header) is NameState.MALFORMED


def test_a_claim_beyond_the_bound_is_partial_at_once() -> None:
    reading = read(b"\x16\x03\x01\x10\x00\x01\x01\x00\x00", limit=4096)
    assert reading is not None
    assert reading.state is NameState.PARTIAL
    assert "4096" in reading.reason


def test_the_bound_holds_for_a_hello_that_comes_at_once() -> None:
    stream = build.client_hello("example.com", size=1800)
    assert state(stream, limit=1800) is NameState.COMPLETE
    assert state(stream, limit=1799) is NameState.PARTIAL


def test_tiny_records_cannot_stretch_the_bound() -> None:
    message = build.handshake("example.com", size=1000)
    stream = build.in_records(message, 1000)
    assert state(stream, limit=6000) is NameState.COMPLETE
    assert state(stream, limit=5999) is NameState.PARTIAL


def test_early_data_behind_the_hello_is_not_read() -> None:
    assert state(build.client_hello("example.com") + build.record(b"\xff" * 30, kind=23)) is NameState.COMPLETE


@pytest.mark.parametrize("records", [1, 2, 7])
@pytest.mark.parametrize("behind", [b"", build.record(b"\xff" * 30, kind=23)])
def test_a_hello_rests_on_its_records_and_on_nothing_behind(records: int, behind: bytes) -> None:
    stream = build.client_hello("example.com", records=records)
    for cut in (0, 1, 7, len(stream) - 1, len(stream)):
        assembler = HelloAssembler()
        assembler.feed(stream[:cut])
        assert assembler.taken == cut
        assembler.feed(stream[cut:] + behind)
        assert assembler.taken == len(stream)
        assembler.feed(b"more")
        assert assembler.taken == len(stream)


STREAMS = (
    build.client_hello("example.com"),
    build.client_hello("example.com", records=3) + build.record(b"\xff" * 30, kind=23),
    build.record(build.handshake("example.com") + build.handshake("other.example")),
    build.client_hello("example.com", size=9000),
    b"\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10" + b"\x00" * 37,
    b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n",
    b"\x16\x03\x01\x00\x20\x02" + b"\x00" * 31,
)


@given(
    st.sampled_from(STREAMS) | st.binary(max_size=60),
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 255)), max_size=2),
    st.lists(st.integers(0, 300), max_size=4),
    st.sampled_from((200, 16_384)),
)
def test_whatever_follows_what_was_taken_the_reading_is_the_same(
    stream: bytes, flips: list[tuple[int, int]], cuts: list[int], limit: int
) -> None:
    changed = bytearray(stream)
    for at, bits in flips:
        if at < len(changed):
            changed[at] ^= bits
    data, assembler = bytes(changed), HelloAssembler(limit)
    for first, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(data)], strict=True):
        assembler.feed(data[first:end])
    taken, reading = assembler.taken, assembler.reading
    if reading is None:
        assert taken == len(data)
        return
    assert taken <= min(len(data), limit)
    other = read(data[:taken] + bytes(byte ^ 0xFF for byte in data[taken:]), limit=limit)
    assert other is not None
    assert (other.name, other.reason) == (reading.name, reading.reason)


def test_an_ssl2_hello_is_unsupported() -> None:
    stream = b"\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10" + b"\x00" * 37
    reading = read(stream)
    assert reading is not None
    assert (reading.state, reading.versions) == (NameState.UNSUPPORTED, ("1.0",))
    assert state(b"\x80\x2e\x02\x03\x01") is NameState.NOT_TLS
    assert state(b"\x80\x2e\x01\x09\x09") is NameState.NOT_TLS
