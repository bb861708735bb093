"""The reassembler against a model: an array of bytes and the set of positions that were seen."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.protocols.stream import Outcome, StreamAssembler

SIZE = 64
TRUTH = bytes(range(SIZE))
SEGMENTS = st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(0, 20)), max_size=30)


@given(SEGMENTS, st.integers(0, 0xFFFFFFFF))
@settings(max_examples=300)
def test_what_comes_out_is_the_contiguous_part_of_what_came_in(segments: list[tuple[int, int]], isn: int) -> None:
    stream = StreamAssembler(start=isn)
    seen: set[int] = set()
    out = b""
    for start, length in segments:
        data = TRUTH[start : start + length]
        push = stream.push(isn + start & 0xFFFFFFFF, data)
        new = set(range(start, start + len(data))) - seen
        seen |= new
        assert (push.outcome is Outcome.DUPLICATE) == (not new)
        for position, piece in push.pieces:
            assert position == len(out)
            out += piece
        contiguous = next((index for index in range(SIZE) if index not in seen), SIZE)
        assert out == TRUTH[:contiguous]
    assert stream.content == out
    assert stream.expected_seq == isn + len(out) & 0xFFFFFFFF


@given(SEGMENTS, st.integers(0, SIZE - 1), st.integers(1, 255))
@settings(max_examples=300)
def test_another_version_of_a_byte_that_is_known_is_always_a_conflict(
    segments: list[tuple[int, int]], place: int, flip: int
) -> None:
    stream = StreamAssembler(start=0)
    seen: set[int] = set()
    for start, length in segments:
        stream.push(start, TRUTH[start : start + length])
        seen |= set(range(start, min(SIZE, start + length)))
    other = bytes([TRUTH[place] ^ flip])
    outcome = stream.push(place, other).outcome
    assert (outcome is Outcome.CONFLICT) == (place in seen)


@given(
    st.lists(st.tuples(st.integers(0, 0xFFFFFFFF), st.binary(max_size=40), st.booleans()), max_size=30), st.booleans()
)
@settings(max_examples=200)
def test_any_segments_keep_the_bounds(segments: list[tuple[int, bytes, bool]], window: bool) -> None:
    stream = StreamAssembler(limit=100, max_segments=4, start=0, window=window)
    for seq, data, syn in segments:
        stream.push(seq, data, syn=syn)
        assert len(stream.content) <= 100
