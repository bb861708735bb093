"""ClientHello parsing: whole or stated, never a partial name."""

from __future__ import annotations

import pytest

from engine.model.facts import NameState
from engine.protocols.tls import HelloReading, parse_hello, protocol_text
from tests.support import hello as build


def parsed(extensions: list[tuple[int, bytes]] | None, **options: object) -> HelloReading:
    return parse_hello(build.message(extensions, **options))  # type: ignore[arg-type]


def test_a_hello_gives_name_versions_alpn_and_size() -> None:
    message = build.handshake("WWW.Example.com", alpn=("h2", "http/1.1"), versions=(0x0A0A, 0x0304, 0x0303, 0x7F17))
    reading = parse_hello(message)
    assert reading.state is NameState.COMPLETE
    assert reading.name.value == "www.example.com"
    assert reading.raw_name == b"WWW.Example.com"
    assert reading.alpn == ("h2", "http/1.1")
    assert reading.versions == ("1.3", "1.2", "1.3-draft23")
    assert not reading.name.ech
    assert reading.size == len(message)
    assert reading.reason == ""


def test_a_hello_without_a_name_is_absent() -> None:
    assert parse_hello(build.handshake(None)).state is NameState.ABSENT


def test_a_hello_without_extensions_offers_its_legacy_version() -> None:
    reading = parsed(None, version=0x0300)
    assert reading.state is NameState.ABSENT
    assert reading.versions == ("ssl3",)


def test_ech_is_told_beside_the_outer_name() -> None:
    reading = parse_hello(build.handshake("public.example", ech=True))
    assert (reading.name.value, reading.name.ech) == ("public.example", True)


def test_a_name_that_is_none_is_invalid_and_kept_only_as_raw_bytes() -> None:
    reading = parse_hello(build.handshake(b"192.0.2.7"))
    assert reading.state is NameState.INVALID
    assert reading.name.value == ""
    assert reading.raw_name == b"192.0.2.7"
    assert "IPv4" in reading.reason


def test_grease_is_ignored() -> None:
    grease = [(0x1A1A, b""), (0x3A3A, b"\0")]
    reading = parsed(
        [*grease, (build.ALPN, build.counted(b"\x02\x5a\x5a\x02h2")), (build.VERSIONS, b"\x04\x6a\x6a\x03\x04")],
        ciphers=(0x2A2A, 0x1301),
    )
    assert reading.alpn == ("h2",)
    assert reading.versions == ("1.3",)
    assert reading.ja4.startswith("t13i0102h2_")


@pytest.mark.parametrize(
    ("extensions", "part_of_the_reason"),
    [
        ([(0, build.server_names("a.example", "b.example"))], "more than one server name"),
        ([(0, build.server_names("a.example")), (0, build.server_names("b.example"))], "twice"),
        ([(23, b""), (23, b"")], "twice"),
        ([(0, b"")], "contradicts"),
        ([(0, build.counted(b""))], "contradicts"),
        ([(0, build.server_names(b""))], "contradicts"),
        ([(0, build.counted(b"\x01" + build.counted(b"a.example")))], "unknown type"),
        ([(0, build.counted(b"\x00\x00\x20a.example"))], "contradicts"),
        ([(0, build.server_names("a.example") + b"\0")], "contradicts"),
        ([(16, b"")], "ALPN"),
        ([(16, build.counted(b"\x00"))], "ALPN"),
        ([(16, build.counted(b"\x05h2"))], "ALPN"),
        ([(43, b"")], "version list"),
        ([(43, b"\x03\x03\x04\x03")], "list of numbers"),
        ([(43, b"\x00")], "list of numbers"),
        ([(13, b"\x00\x01\x04")], "list of numbers"),
        ([(13, b"\x00\x08\x04\x03")], "signature"),
    ],
)
def test_contradictions_are_malformed_and_name_nobody(
    extensions: list[tuple[int, bytes]], part_of_the_reason: str
) -> None:
    others = [(0, build.server_names("innocent.example"))] if extensions[0][0] else []
    reading = parsed(others + extensions)
    assert reading.state is NameState.MALFORMED
    assert reading.name.value == ""
    assert part_of_the_reason in reading.reason


def test_the_fixed_part_is_checked_too() -> None:
    good = bytearray(build.message([(0, build.server_names("a.example"))], session_id=b""))
    for offset, value, part in (
        (0, 2, "message type 2"),
        (4, 2, "version 2"),
        (38, 33, "session id"),
        (40, 15, "cipher list"),
        (39, 0xFF, "cipher list"),
        (3, good[3] - 1, "extension list"),
        (3, 9, "too short"),
    ):
        bad = good.copy()
        bad[offset] = value
        reading = parse_hello(bytes(bad))
        assert (reading.state, reading.name.value) == (NameState.MALFORMED, ""), (offset, value)
        assert part in reading.reason


def test_an_extension_may_not_run_past_the_end() -> None:
    good = bytearray(build.message([(0, build.server_names("a.example")), (0xFF01, b"\0")]))
    good[-2] = 9
    reading = parse_hello(bytes(good))
    assert (reading.state, reading.name.value) == (NameState.MALFORMED, "")
    assert "65281 runs past" in reading.reason


def test_a_message_cut_short_is_partial_at_every_byte() -> None:
    message = build.handshake("example.com", alpn=("h2",))
    for length in range(len(message)):
        reading = parse_hello(message[:length])
        assert reading.state is NameState.PARTIAL
        assert reading.name.value == ""
        assert reading.ja4 == ""


def test_bytes_behind_the_message_are_not_part_of_it() -> None:
    message = build.handshake("example.com")
    assert parse_hello(message + b"\x01" * 40).name.value == "example.com"


def test_alpn_shows_what_a_terminal_must_not_see_as_escapes() -> None:
    assert protocol_text(b"http/1.1") == "http/1.1"
    assert protocol_text(b"\x1b[2J\\\xff") == "\\x1b[2J\\x5c\\xff"
