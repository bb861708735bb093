"""TCP reassembly: order, overlap, bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.protocols.stream import Outcome, StreamAssembler


def test_segments_in_order() -> None:
    stream = StreamAssembler()
    assert stream.push(100, b"abc").pieces == [(0, b"abc")]
    assert stream.push(103, b"def").pieces == [(3, b"def")]
    assert stream.content == b"abcdef"
    assert stream.expected_seq == 106


def test_out_of_order_waits_and_is_drained_piece_by_piece() -> None:
    stream = StreamAssembler(start=100)
    assert stream.push(106, b"ghi").outcome is Outcome.WAITING
    assert stream.push(103, b"def").outcome is Outcome.WAITING
    push = stream.push(100, b"abc")
    assert push.pieces == [(0, b"abc"), (3, b"def"), (6, b"ghi")]
    assert push.data == b"abcdefghi"


def test_retransmissions_are_recognised_whole_and_in_part() -> None:
    stream = StreamAssembler(start=100)
    stream.push(100, b"abcdef")
    assert stream.push(100, b"abcdef").outcome is Outcome.DUPLICATE
    assert stream.push(102, b"cd").outcome is Outcome.DUPLICATE
    assert stream.push(103, b"defghi").pieces == [(6, b"ghi")]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((100, b"abcdef"), (100, b"aXcdef")),
        ((100, b"abcdef"), (105, b"Xghi")),
        ((110, b"abcdef"), (112, b"X")),
        ((110, b"abcdef"), (108, b"zzabX")),
    ],
    ids=["in order", "at the edge", "waiting", "waiting, from before"],
)
def test_two_versions_of_a_byte_are_a_final_conflict(first: tuple[int, bytes], second: tuple[int, bytes]) -> None:
    stream = StreamAssembler(start=100)
    stream.push(*first)
    assert stream.push(*second).outcome is Outcome.CONFLICT
    assert "two versions" in stream.reason
    assert stream.push(200, b"later").outcome is Outcome.CONFLICT


def test_identical_overlap_of_waiting_segments_is_fine() -> None:
    stream = StreamAssembler(start=0)
    stream.push(4, b"efgh")
    stream.push(2, b"cdefghij")
    assert stream.push(0, b"ab").data == b"abcdefghij"


def test_sequence_numbers_wrap() -> None:
    stream = StreamAssembler(start=0xFFFFFFFE)
    assert stream.push(2, b"ef").outcome is Outcome.WAITING
    assert stream.push(0xFFFFFFFE, b"abcd").data == b"abcdef"
    assert stream.push(0, b"cd").outcome is Outcome.DUPLICATE
    assert stream.expected_seq == 4


def test_data_in_the_syn_is_data_and_may_be_sent_again() -> None:
    stream = StreamAssembler()
    assert stream.push(99, b"abc", syn=True).data == b"abc"
    assert stream.push(100, b"abcdef").data == b"def"


def test_a_stream_began_with_its_first_segment_unless_it_is_known_where() -> None:
    assert StreamAssembler().began is None
    for stream in (StreamAssembler(), StreamAssembler(start=1000)):
        stream.push(1000, b"abc")
        stream.push(990, b"before")
        assert stream.began == 1000
    known = StreamAssembler(start=1000)
    assert known.began == 1000
    known.push(1003, b"def")
    assert known.began == 1000
    for seq, began in ((99, 100), (0xFFFFFFFF, 0)):
        opened = StreamAssembler()
        opened.push(seq, b"in the SYN", syn=True)
        opened.push(seq, b"", syn=True)
        assert opened.began == began


@given(st.integers(0, 0xFFFFFFFF), st.lists(st.tuples(st.integers(0, 40), st.integers(0, 20)), max_size=12))
def test_the_content_lies_between_where_a_stream_began_and_what_comes_next(
    start: int, cuts: list[tuple[int, int]]
) -> None:
    whole, stream = bytes(range(60)), StreamAssembler(start=start)
    for at, length in cuts:
        stream.push((start + at) & 0xFFFFFFFF, whole[at : at + length])
    assert stream.began == start
    assert stream.expected_seq == (start + len(stream.content)) & 0xFFFFFFFF
    assert stream.content == whole[: len(stream.content)]


def test_a_second_syn_elsewhere_is_a_conflict() -> None:
    stream = StreamAssembler()
    stream.push(99, b"", syn=True)
    assert stream.push(99, b"", syn=True).outcome is Outcome.DUPLICATE
    assert stream.push(500, b"", syn=True).outcome is Outcome.CONFLICT


def test_the_bound_in_bytes_counts_what_is_kept_and_what_waits() -> None:
    stream = StreamAssembler(limit=10, start=0)
    assert stream.push(0, b"12345").outcome is Outcome.DATA
    assert stream.push(6, b"7890").outcome is Outcome.WAITING
    assert stream.push(5, b"6").data == b"67890"
    assert stream.push(10, b"x").outcome is Outcome.FULL
    assert stream.push(0, b"1").outcome is Outcome.FULL
    assert StreamAssembler(limit=10, start=0).push(11, b"x").outcome is Outcome.FULL


def test_the_bound_in_segments() -> None:
    stream = StreamAssembler(max_segments=2, start=0)
    assert stream.push(2, b"c").outcome is Outcome.WAITING
    assert stream.push(4, b"e").outcome is Outcome.WAITING
    assert stream.push(6, b"g").outcome is Outcome.FULL


def test_bytes_before_the_start_are_no_part_of_the_stream() -> None:
    stream = StreamAssembler(start=100)
    assert stream.push(95, b"?????ab").data == b"ab"
    assert stream.push(90, b"!").outcome is Outcome.DUPLICATE


def test_a_window_follows_a_stream_of_any_length_and_over_gaps() -> None:
    stream = StreamAssembler(limit=8, start=0, window=True)
    for index in range(100):
        assert stream.push(index * 4, b"abcd").outcome is Outcome.DATA
    assert stream.content == b"abcdabcd"
    assert stream.push(404, b"next").outcome is Outcome.WAITING
    assert stream.skip_gap().pieces == [(404, b"next")]
    assert stream.push(5000, b"far").outcome is Outcome.FULL
    stream.resume(5000)
    assert stream.push(5000, b"far").pieces == [(5000, b"far")]
