"""A hello is read the same however it is cut, and no bytes whatever give a partial name."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.model.facts import NameState
from engine.protocols.quic import InitialAssembler
from engine.protocols.records import HelloAssembler
from engine.protocols.stream import Outcome, StreamAssembler
from engine.protocols.tls import HelloReading, parse_hello
from tests.support import hello as build
from tests.support import initials

NAMES = st.one_of(
    st.none(),
    st.sampled_from(["example.com", "EXAMPLE.com.", "a.b.c.example"]),
    st.binary(min_size=1, max_size=40),
)
HELLOS = st.builds(
    build.handshake,
    NAMES,
    alpn=st.lists(st.sampled_from(["h2", "http/1.1", "h3"]), unique=True),
    size=st.one_of(st.none(), st.integers(640, 3000)),
    ech=st.booleans(),
)


def facts(reading: HelloReading | None) -> tuple[object, ...]:
    assert reading is not None
    return reading.name, reading.raw_name, reading.reason, reading.hello(), reading.size


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in pairwise(edges)]


CUTS = st.lists(st.integers(0, 5000), max_size=12)


@given(HELLOS, CUTS, CUTS)
@settings(max_examples=150)
def test_every_cut_into_records_and_segments_reads_the_same(
    message: bytes, records: list[int], segments: list[int]
) -> None:
    stream = b"".join(build.record(piece) for piece in cut(message, records))
    whole = parse_hello(message)
    assembler = HelloAssembler()
    *early, last = cut(stream, segments)
    assert all(assembler.feed(piece) is None for piece in early)
    assert facts(assembler.feed(last)) == facts(whole)
    assert whole.whole


@given(HELLOS, CUTS, st.randoms(use_true_random=False), st.integers(0, 0xFFFFFFFF))
@settings(max_examples=100)
def test_every_order_and_repetition_of_segments_reads_the_same(
    message: bytes, places: list[int], dice: object, start: int
) -> None:
    stream = build.record(message)
    segments, at = [], 0
    for piece in cut(stream, places):
        segments.append((start + at & 0xFFFFFFFF, piece))
        at += len(piece)
    segments += segments[:2]
    dice.shuffle(segments)  # type: ignore[attr-defined]
    tcp, hello = StreamAssembler(start=start), HelloAssembler()
    for seq, piece in segments:
        push = tcp.push(seq, piece)
        assert push.outcome is not Outcome.CONFLICT
        hello.feed(push.data)
    assert facts(hello.reading) == facts(parse_hello(message))


@given(HELLOS, CUTS, st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_every_order_of_quic_datagrams_reads_the_same(message: bytes, places: list[int], dice: object) -> None:
    pieces, at = [], 0
    for piece in cut(message, places):
        pieces.append(initials.crypto(at, piece))
        at += len(piece)
    dice.shuffle(pieces)  # type: ignore[attr-defined]
    assembler = InitialAssembler()
    for number, frames in enumerate(pieces):
        assembler.feed(initials.initial(frames, number=number))
    assert facts(assembler.reading) == facts(parse_hello(message, quic=True))


def named(reading: HelloReading | None) -> bool:
    return reading is not None and bool(reading.name.value)


@given(HELLOS, st.integers(0, 4000), st.integers(1, 3))
@settings(max_examples=200)
def test_no_truncation_has_a_name(message: bytes, length: int, records: int) -> None:
    stream = build.in_records(message, records)
    assume(length < len(stream))
    assembler = HelloAssembler()
    assert assembler.feed(stream[:length]) is None
    assert not named(assembler.give_up("cut"))
    short = parse_hello(message[: min(length, len(message) - 1)])
    assert short.state is NameState.PARTIAL
    assert not named(short)


@given(HELLOS, st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 255)), min_size=1, max_size=6), CUTS)
@settings(max_examples=300)
def test_damage_never_crashes_and_reads_the_same_however_it_is_cut(
    message: bytes, damage: list[tuple[int, int]], places: list[int]
) -> None:
    stream = bytearray(build.in_records(message, 2))
    for place, flip in damage:
        stream[place % len(stream)] ^= flip
    data = bytes(stream)
    at_once, in_pieces = HelloAssembler(), HelloAssembler()
    at_once.feed(data)
    for piece in cut(data, places):
        in_pieces.feed(piece)
    assert (at_once.reading is None) == (in_pieces.reading is None)
    if at_once.reading is not None:
        assert facts(at_once.reading) == facts(in_pieces.reading)
        assert named(at_once.reading) == (at_once.reading.state is NameState.COMPLETE)
        assert not (named(at_once.reading) and at_once.reading.reason)
