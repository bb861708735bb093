"""Capture files, whole and broken."""

from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path

import pytest

from engine.errors import InputError
from engine.protocols.capture import CaptureRecord, records
from tests.support import captures as build

FRAMES = [build.tcp_frame(b"one"), build.tcp_frame(b"three"), b"odd"]
FORMATS = {
    "pcap": build.pcap(FRAMES),
    "pcap, big-endian": build.pcap(FRAMES, order=">"),
    "pcap, nanoseconds": build.pcap(FRAMES, nano=True),
    "pcap, nanoseconds, big-endian": build.pcap(FRAMES, nano=True, order=">"),
    "pcapng": build.pcapng(FRAMES),
    "pcapng, big-endian": build.pcapng(FRAMES, order=">"),
    "pcapng, microseconds": build.pcapng(FRAMES, resolution=6),
    "two sections": build.pcapng(FRAMES[:1]) + build.pcapng(FRAMES[1:], order=">", start_ns=10**18 + 1000),
}


def read(data: bytes) -> list[CaptureRecord]:
    return list(records(io.BytesIO(data)))


def broken(data: bytes) -> tuple[list[CaptureRecord], InputError]:
    got: list[CaptureRecord] = []
    with pytest.raises(InputError) as caught:
        got.extend(records(io.BytesIO(data), "x.pcap"))
    return got, caught.value


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("data", FORMATS.values(), ids=FORMATS.keys())
def test_every_format(data: bytes, packed: bool) -> None:
    got = read(gzip.compress(data) if packed else data)
    assert [one.data for one in got] == FRAMES
    assert [one.number for one in got] == [1, 2, 3]
    assert [one.time_ns for one in got] == [10**18, 10**18 + 1000, 10**18 + 2000]
    assert {one.link for one in got} == {1}
    assert [one.length for one in got] == [len(frame) for frame in FRAMES]


@pytest.mark.parametrize("data", [FORMATS["pcap"], FORMATS["pcapng"]], ids=["pcap", "pcapng"])
def test_cut_anywhere_it_yields_what_was_whole_and_says_where(data: bytes) -> None:
    for length in range(4, len(data)):
        cut = data[:length]
        try:
            got = read(cut)
        except InputError:
            got, error = broken(cut)
            assert error.exit_code == 10
            assert f"{len(got)} packets" in error.hint
            assert "x.pcap" in error.message
            assert "byte" in error.message
        assert [one.data for one in got] == FRAMES[: len(got)]


def test_a_pcap_that_ends_between_records_is_whole() -> None:
    assert len(read(build.pcap(FRAMES[:2]))) == 2
    assert read(build.pcap([])) == []


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "is empty"),
        (b"\x7fELF and so on", "neither pcap nor pcapng"),
        (b"GI", "ends inside its first four bytes"),
        (build.pcap([]) + struct.pack("<IIII", 0, 0, 1 << 30, 1 << 30), "claims 1073741824 bytes at byte 40"),
        (build.pcapng([]) + struct.pack("<III", 6, 13, 0), "claims 13 bytes"),
        (build.pcapng([]) + struct.pack("<IIII", 5, 16, 0, 20), "two lengths differ"),
        (build.pcapng([]) + build.block("<", 6, struct.pack("<IIIII", 3, 0, 0, 0, 0)), "interface 3"),
        (build.pcapng([]) + build.block("<", 6, struct.pack("<IIIII", 0, 0, 0, 9, 9)), "longer than its block"),
        (
            build.pcapng([])
            + build.block("<", 0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
            + build.block("<", 6, struct.pack("<IIIII", 0, 0, 0, 0, 0)),
            "interface 0",
        ),
        (build.pcapng([]) + build.block("<", 6, b"1234"), "too short"),
        (build.pcapng([]) + build.block("<", 1, b"1234"), "too short"),
        (b"\x0a\x0d\x0d\x0a\x1c\0\0\0????" + b"\0" * 16, "unknown byte order"),
    ],
)
def test_what_is_no_capture_is_one_clear_sentence(data: bytes, part: str) -> None:
    _, error = broken(data)
    assert part in error.message
    assert "\n" not in error.message


def test_damaged_gzip_data_is_told() -> None:
    packed = bytearray(gzip.compress(build.pcap([build.tcp_frame(bytes(range(256)) * 8)] * 3)))
    _, error = broken(bytes(packed[:-12]))
    assert "gzip" in error.message
    packed[40] ^= 0xFF
    _, error = broken(bytes(packed))
    assert error.exit_code == 10


def test_a_stream_that_fails_is_told() -> None:
    with Path("/proc/self/mem").open("rb") as stream, pytest.raises(InputError, match="cannot be read"):
        list(records(stream, "mem"))


def test_simple_packet_blocks_have_no_time() -> None:
    data = build.pcapng([]) + build.block("<", 3, struct.pack("<I", 3) + b"abc")
    (got,) = read(data)
    assert (got.data, got.time_ns) == (b"abc", 0)
