"""The kernel's hello parser against the engine's: a name in the kernel is the engine's complete name, or none."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.model.facts import NameState
from engine.protocols.records import HelloAssembler
from engine.protocols.tls import HelloReading
from tests.support import hello as build

from .conftest import Parsers

LONGEST = "a.long.label." * 15 + "exam"
NAMES = st.one_of(
    st.sampled_from(["example.com", "EXAMPLE.Com", "a.b.c.d.example", "x" * 63 + ".example", "_a.-b.example", "e"]),
    st.from_regex(rb"\A[a-zA-Z0-9._-]{1,80}\Z"),
    st.binary(min_size=1, max_size=40),
)
EXTENSIONS = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 70), st.sampled_from([0x0A0A, 0x1A1A, 0xFF01, 17513, 0xFE0D])), st.binary(max_size=12)
    ),
    max_size=6,
)  # fmt: skip
HELLOS = st.builds(
    build.client_hello,
    NAMES,
    alpn=st.lists(st.sampled_from(["h2", "http/1.1", "h3", "x" * 255]), max_size=4, unique=True),
    extensions=EXTENSIONS,
    ech=st.booleans(),
    size=st.one_of(st.none(), st.integers(2400, 4200)),
)
"""With random extensions most contradict themselves somewhere; PLAIN does not."""
PLAIN = st.builds(build.client_hello, st.sampled_from(["example.com", "EXAMPLE.Com", LONGEST]), alpn=st.just(["h2"]))
DAMAGE = st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 255)), min_size=1, max_size=4)


def engine_reads(payload: bytes) -> HelloReading | None:
    return HelloAssembler().feed(payload)


def agree(parsers: Parsers, payload: bytes) -> bytes | None:
    """Return the kernel's name after holding it to the engine's reading of the same bytes."""
    name = parsers.hello(payload)
    assert parsers.hello(payload, fill=0xA5) == name, "what an earlier packet left behind changed the answer"
    assert parsers.hello(payload, fill=0x01) == name
    if name is None:
        return None
    reading = engine_reads(payload)
    assert reading is not None, "the engine would wait for more"
    assert reading.raw_name == name
    assert not reading.name.ech
    if reading.state is NameState.INVALID:
        # A last label that is a number: an address to the engine, and no key of the gate ends in one.
        assert reading.reason == "the server name is an IPv4 address, not a host name"
    else:
        assert reading.state is NameState.COMPLETE, reading.reason
        assert reading.name.value.encode() == name.lower()
    return name


@given(PLAIN)
def test_a_plain_hello_is_named(parsers: Parsers, payload: bytes) -> None:
    assert agree(parsers, payload) is not None


@given(HELLOS)
@settings(max_examples=400)
def test_a_hello_of_any_kind(parsers: Parsers, payload: bytes) -> None:
    agree(parsers, payload)


@given(st.one_of(PLAIN, HELLOS), DAMAGE, st.integers(0, 5000))
@settings(max_examples=600)
def test_a_damaged_hello(parsers: Parsers, payload: bytes, damage: list[tuple[int, int]], length: int) -> None:
    damaged = bytearray(payload)
    for place, flip in damage:
        damaged[place % len(damaged)] ^= flip
    agree(parsers, bytes(damaged))
    agree(parsers, bytes(damaged[: length % (len(damaged) + 1)]))


@given(st.binary(max_size=5000), st.booleans())
@settings(max_examples=200)
def test_any_bytes(parsers: Parsers, payload: bytes, framed: bool) -> None:
    if framed:
        payload = build.in_records(b"\x01" + len(payload).to_bytes(3, "big") + payload)
    agree(parsers, payload)


@pytest.mark.parametrize("size", [None, 1900, 4096])
def test_no_truncation_gives_a_name(parsers: Parsers, size: int | None) -> None:
    payload = build.client_hello("example.com", alpn=["h2", "http/1.1"], size=size)
    assert parsers.hello(payload) == b"example.com"
    for length in range(len(payload)):
        assert parsers.hello(payload[:length], fill=payload[0]) is None, length


def test_every_single_damaged_byte(parsers: Parsers) -> None:
    payload = build.client_hello("example.com", alpn=["h2"])
    for place in range(len(payload)):
        for flip in (0x01, 0x20, 0x80, 0xFF):
            damaged = bytearray(payload)
            damaged[place] ^= flip
            agree(parsers, bytes(damaged))


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("a" * 55 + ".example", True),
        ("a" * 64 + ".example", False),
        ("x." + "a" * 64 + ".example", False),
        ("xxxxxxx." + "a" * 64 + ".example", False),
        ("a" * 55 + "." + "b" * 55 + "." + "c" * 55 + ".example", True),
        (LONGEST, True),
        (LONGEST + "p", False),
        ("example.com.", False),
        ("." + "example.com", False),
        ("evil..example.com", False),
        ("evilevil..example.com", False),
        ("sevenab..example.com", False),
        (b"evil\0example.com", False),
        (b"example.com\0", False),
        (b"evil\xff.example.com", False),
        (b"evil/.example.com", False),
        (b"evil .example.com", False),
        (b"evil@.example.com", False),
        (b"evil[.example.com", False),
        (b"evil`.example.com", False),
        (b"evil{.example.com", False),
        (b"evil:.example.com", False),
        (b"evil,.example.com", False),
        ("node1", True),
        (b"[2001:db8::1]", False),
        ("xn--mnchen-3ya.example", True),
        ("a-_9.Z", True),
    ],
)  # fmt: skip
def test_names_that_only_the_engine_may_judge(parsers: Parsers, name: str | bytes, named: bool) -> None:
    assert len(LONGEST) == 199
    assert (agree(parsers, build.client_hello(name)) is not None) is named


@pytest.mark.parametrize("place", range(1, 16))
@pytest.mark.parametrize("byte", [b"\0", b"\x80", b"/", b".."])
def test_a_bad_byte_is_seen_at_every_place(parsers: Parsers, place: int, byte: bytes) -> None:
    name = b"abcdefghijklmnopqrst"
    assert parsers.hello(build.client_hello(name[:place] + byte + name[place:])) is None


SNI = (build.SERVER_NAME, build.server_names("example.com"))


@pytest.mark.parametrize(
    ("what", "extensions"),
    [
        ("two names in the list", [(0, build.server_names("example.com", "evil.com"))]),
        ("two name extensions", [SNI, (0, build.server_names("evil.com"))]),
        ("the same extension twice", [SNI, (35, b""), (35, b"")]),
        ("the same GREASE twice", [SNI, (0x2A2A, b""), (0x2A2A, b"")]),
        ("a name of another type", [(0, b"\0\x0e\x01\0\x0bexample.com")]),
        ("an empty name", [(0, b"\0\x03\0\0\0")]),
        ("an empty name list", [(0, b"\0\0")]),
        ("a name behind its list", [(0, build.server_names("example.com") + b"x")]),
        ("encrypted hello", [SNI, (build.ECH, b"\0" * 8)]),
        ("encrypted hello first", [(build.ECH, b""), SNI]),
        ("no extension", []),
        ("no name", [(16, build.counted(b"\x02h2"))]),
        ("an empty protocol", [SNI, (16, build.counted(b"\x02h2\0"))]),
        ("a protocol past its list", [SNI, (16, build.counted(b"\x02h2\x05h2"))]),
        ("an empty protocol list", [SNI, (16, build.counted(b""))]),
        ("a version list without a version", [SNI, (43, b"\0")]),
        ("half a version", [SNI, (43, b"\x03\x03\x04\x03")]),
        ("half an algorithm", [SNI, (13, build.counted(b"\x04\x03\x08"))]),
        ("no algorithm", [SNI, (13, build.counted(b""))]),
        ("more extensions than are read", [SNI, *((1000 + 16 * n, b"") for n in range(40))]),
        ("more protocols than are read", [SNI, (16, build.counted(b"\x02h2" * 17))]),
    ],
)
def test_hellos_that_only_the_engine_may_judge(
    parsers: Parsers, what: str, extensions: list[tuple[int, bytes]]
) -> None:
    assert agree(parsers, build.in_records(build.message(extensions))) is None, what


def test_what_browsers_send_is_named(parsers: Parsers) -> None:
    """GREASE at both ends, every registered extension once: nothing of it may share a bit with another."""
    known = (5, 10, 11, 18, 21, 22, 23, 27, 28, 34, 35, 45, 51, 17513, 17613, 65281, 13172, 30031)
    middle = [SNI, (16, build.counted(b"\x02h2\x08http/1.1")), (43, b"\x04\x03\x04\x03\x03"),
              (13, build.counted(b"\x04\x03")), *((kind, b"\0\0") for kind in known)]  # fmt: skip
    grease = [0x0A0A + 0x1010 * n for n in range(16)]
    for first in grease:
        for last in grease:
            if first != last:
                payload = build.in_records(build.message([(first, b""), *middle, (last, b"\0")]))
                assert agree(parsers, payload) == b"example.com"


@pytest.mark.parametrize(
    ("what", "payload"),
    [
        ("two records", build.client_hello("example.com", records=2)),
        ("two messages in a record", build.in_records(build.handshake("example.com") * 2)),
        ("a byte more in the record", build.in_records(build.handshake("example.com") + b"\0")),
        ("a record of another type", b"\x17" + build.client_hello("example.com")[1:]),
        ("a server's hello", build.in_records(b"\x02" + build.handshake("example.com")[1:])),
        ("SSL 2 record version", b"\x16\x02" + build.client_hello("example.com")[2:]),
        ("4097 bytes", build.client_hello("example.com", size=4097)),
        ("version 4", build.in_records(build.message([SNI], version=0x0400))),
        ("no cipher", build.in_records(build.message([SNI], ciphers=()))),
        ("a session id of 33 bytes", build.in_records(build.message([SNI], session_id=bytes(33)))),
        ("no extension list", build.in_records(build.message(None))),
    ],
)
def test_records_that_only_the_engine_may_judge(parsers: Parsers, what: str, payload: bytes) -> None:
    assert agree(parsers, payload) is None, what


def test_a_second_record_behind_the_hello_changes_nothing(parsers: Parsers) -> None:
    payload = build.client_hello("example.com") + struct.pack("!BHH", 20, 0x0303, 1) + b"\x01"
    assert agree(parsers, payload) == b"example.com"
