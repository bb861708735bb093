"""QUIC Initials: the published vectors, and first flights in every order."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from engine.model.facts import NameState
from engine.protocols.quic import V1, V2, ClientKeys, InitialAssembler, client_initial, crypto_frames, initial_packets
from engine.protocols.tls import HelloReading
from tests.support import hello as build
from tests.support import initials

HELLO = build.handshake("quic.example", alpn=("h3",), size=1700)
DRAFT_29 = 0xFF00001D


def read(*datagrams: bytes) -> HelloReading | None:
    assembler = InitialAssembler()
    for datagram in datagrams:
        assembler.feed(datagram)
    return assembler.reading


@pytest.mark.parametrize(
    ("version", "key", "iv", "hp"),
    [
        (V1, "1f369613dd76d5467730efcbe3b1a22d", "fa044b2f42a3fd3b46fb255c", "9f50449e04a0e810283a1e9933adedd2"),
        (V2, "8b1a0bc121284290a29e0971b5cd045d", "91f73e2351d8fa91660e909f", "45b95e15235d6f45a6b19cbcb0294ba9"),
        (DRAFT_29, "175257a31eb09dea9366d8bb79ad80ba", "6b26114b9cba2b63a9e8dd4f", "9ddd12c994c0698b89374a9c077a3077"),
    ],
    ids=["RFC 9001 A.1", "RFC 9369 A.1", "draft 29 A.1"],
)
def test_keys_are_those_of_the_specifications(version: int, key: str, iv: str, hp: str) -> None:
    keys = ClientKeys(version, initials.DCID)
    assert (keys.key.hex(), keys.iv.hex(), keys.hp.hex()) == (key, iv, hp)


def test_the_client_initial_of_rfc_9001() -> None:
    datagram = bytes.fromhex(Path(__file__).with_name("rfc9001_a2.hex").read_text(encoding="ascii"))
    reading = read(datagram)
    assert reading is not None
    assert (reading.name.value, reading.alpn, reading.versions) == ("example.com", ("alpn",), ("1.3",))
    assert reading.ja4.startswith("q13d")


@pytest.mark.parametrize("version", [V1, V2, DRAFT_29, 0xFF000017])
def test_a_hello_over_three_datagrams_in_any_order(version: int) -> None:
    for order in itertools.permutations(initials.flight(HELLO, (100, 1000), version=version)):
        assembler = InitialAssembler()
        assert assembler.feed(order[0]) is None
        assert assembler.feed(order[1]) is None
        reading = assembler.feed(order[2])
        assert reading is not None
        assert (reading.name.value, reading.size, reading.quic) == ("quic.example", len(HELLO), True)


def test_frames_scrambled_with_pings_and_padding() -> None:
    small = build.handshake("quic.example", alpn=("h3",))
    pieces = [initials.crypto(at, small[at : at + 13]) for at in range(0, len(small), 13)]
    frames = b"\x01\0\0".join(reversed(pieces)) + b"\x02\x05\x00\x01\x00\x00\x00" + pieces[3]
    reading = read(initials.initial(frames))
    assert reading is not None
    assert reading.name.value == "quic.example"


def test_the_servers_connection_id_comes_with_the_first_keys() -> None:
    first = initials.initial(initials.crypto(0, HELLO[:900]))
    second = initials.initial(initials.crypto(900, HELLO[900:]), dcid=b"server!!", keys_from=initials.DCID, number=1)
    reading = read(first, second)
    assert reading is not None
    assert reading.name.value == "quic.example"


def test_after_a_retry_the_hello_starts_afresh() -> None:
    first = initials.initial(initials.crypto(0, HELLO[:900]))
    retried = [
        initials.initial(initials.crypto(0, HELLO[:800]), dcid=b"fromretry", token=b"token" * 10, number=1),
        initials.initial(initials.crypto(800, HELLO[800:]), dcid=b"fromretry", token=b"token" * 10, number=2),
    ]
    reading = read(first, *retried)
    assert reading is not None
    assert reading.name.value == "quic.example"


def test_another_connection_on_the_flow_is_not_mixed_with_the_first() -> None:
    other = build.handshake("other.example", size=1300)
    reading = read(
        initials.initial(initials.crypto(0, HELLO[:900])),
        initials.initial(initials.crypto(0, other[:700]), dcid=b"another one"),
        initials.initial(initials.crypto(700, other[700:]), dcid=b"another one", number=1),
    )
    assert reading is not None
    assert reading.name.value == "other.example"


@pytest.mark.parametrize("version", [V1, V2])
def test_a_client_may_leave_the_quic_bit_out(version: int) -> None:
    own = initials.initial(initials.crypto(0, HELLO[:1000]), version=version)
    rest = initials.initial(initials.crypto(1000, HELLO[1000:]), version=version, number=1, greased=True)
    reading = read(own, rest)
    assert reading is not None
    assert reading.name.value == "quic.example"
    assert client_initial(rest)
    assembler = InitialAssembler()
    assembler.feed(own)
    assembler.feed(rest)
    assert assembler.continues(rest)
    hello = initials.crypto(0, build.handshake("other.example"))
    another = initials.initial(hello, version=version, dcid=b"another1", greased=True)
    assert not assembler.continues(another)
    reading = read(another)
    assert reading is not None
    assert reading.name.value == "other.example"


def test_packet_numbers_are_counted_on_past_their_truncation() -> None:
    first = initials.initial(initials.crypto(0, HELLO[:900]), number=0xFFF0)
    second = initials.initial(initials.crypto(900, HELLO[900:]), number=0x10003)
    reading = read(first, second)
    assert reading is not None
    assert reading.name.value == "quic.example"


def test_coalesced_packets() -> None:
    zero_rtt = b"\xd1" + V1.to_bytes(4, "big") + b"\x08" + initials.DCID + b"\0" + b"\x40\x20" + b"\xee" * 32
    small = build.handshake("quic.example")
    first = initials.initial(initials.crypto(0, small[:100]), size=300)
    second = initials.initial(initials.crypto(100, small[100:]), number=1, size=300)
    reading = read(first + zero_rtt + second + b"\x40short header")
    assert reading is not None
    assert reading.name.value == "quic.example"
    assert len(list(initial_packets(first + zero_rtt + second))) == 2


def test_a_changed_byte_is_malformed() -> None:
    datagram = initials.initial(initials.crypto(0, build.handshake("quic.example")))
    for offset in (6, 20, 100, len(datagram) - 1):
        changed = bytearray(datagram)
        changed[offset] ^= 1
        reading = read(bytes(changed))
        assert reading is not None
        assert (reading.state, reading.name.value) == (NameState.MALFORMED, "")


def test_two_versions_of_the_same_bytes_are_malformed() -> None:
    other = build.handshake("other.example", alpn=("h3",), size=1700)
    reading = read(
        initials.initial(initials.crypto(0, HELLO[:900])), initials.initial(initials.crypto(100, other[100:]), number=1)
    )
    assert reading is not None
    assert reading.state is NameState.MALFORMED
    assert "two versions" in reading.reason


@pytest.mark.parametrize("frames", [b"\x08\x00stream", b"\x06\x00\x44\x00short", b"\x02\x00\x00\x3f\x00\x00", b"\xff"])
def test_frames_that_may_not_stand_in_an_initial_are_malformed(frames: bytes) -> None:
    reading = read(initials.initial(frames, size=0) if len(frames) > 4 else initials.initial(frames))
    assert reading is not None
    assert reading.state is NameState.MALFORMED


def test_no_client_hello_is_malformed() -> None:
    reading = read(initials.initial(initials.crypto(0, b"\x02\0\0\x10" + bytes(16))))
    assert reading is not None
    assert reading.state is NameState.MALFORMED


def test_bounds() -> None:
    claimed = read(initials.initial(initials.crypto(0, b"\x01\x01\0\0" + bytes(50))))
    far = read(initials.initial(initials.crypto(20_000, b"x")))
    endless = read(*[initials.initial(b"\x01", number=number) for number in range(32)])
    for reading in (claimed, far, endless):
        assert reading is not None
        assert reading.state is NameState.PARTIAL


@pytest.mark.parametrize(
    ("datagram", "state"),
    [
        (b"\xc3Q046\x50" + b"\x11" * 1300, NameState.UNSUPPORTED),
        (b"\xc3\x1a\x2a\x3a\x4a\x08" + b"\x11" * 1300, NameState.UNSUPPORTED),
        (b"\x40" + b"\x11" * 60, NameState.NOT_TLS),
        (b"\xc3\0\0\0\0\x08" + b"\x11" * 60, NameState.NOT_TLS),
        (b"", NameState.NOT_TLS),
        (b"\x80\x01\x02", NameState.NOT_TLS),
        (b"\xc3\x12\x34\x56\x78" + b"\x11" * 1300, NameState.NOT_TLS),
    ],
)
def test_other_datagrams_have_a_state(datagram: bytes, state: NameState) -> None:
    reading = read(datagram)
    assert reading is not None
    assert reading.state is state


def test_the_servers_initial_does_not_open() -> None:
    datagram = initials.initial(initials.crypto(0, HELLO[:500]), dcid=b"client!!", keys_from=initials.DCID)
    assembler = InitialAssembler()
    assembler.feed(datagram)
    assert not assembler.opened
    assert client_initial(datagram)


def test_crypto_frames_end_at_a_close() -> None:
    frames = initials.crypto(0, b"ab") + b"\x1c\x01\x06\x00" + initials.crypto(2, b"cd")
    assert list(crypto_frames(frames)) == [(0, b"ab")]
