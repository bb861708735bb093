"""IP reassembly: order does not matter, overlap is refused."""

from __future__ import annotations

import itertools
import struct

import pytest

from engine.protocols.defrag import Defragmenter
from engine.protocols.packet import Fragment, Packet, Parsed, Refusal, parse
from tests.support import captures as build

DATAGRAM = build.udp(1111, 443, bytes(range(200)) * 3)


def fragment(start: int, end: int | None, *, version: int = 4, ident: int = 5) -> Fragment:
    stop = len(DATAGRAM) if end is None else end
    piece = DATAGRAM[start:stop]
    if version == 4:
        frame = build.ethernet(build.ipv4(17, piece, ident=ident, offset=start, more=end is not None))
    else:
        header = b"\x11\0" + struct.pack("!HI", start | (end is not None), ident)
        frame = build.ethernet(build.ipv6(44, header + piece))
    got = parse(frame)
    assert isinstance(got, Fragment)
    return got


def feed(*fragments: Fragment) -> list[Parsed | None]:
    defragmenter = Defragmenter()
    return [defragmenter.add(one) for one in fragments]


@pytest.mark.parametrize("version", [4, 6])
def test_any_order_gives_the_packet(version: int) -> None:
    pieces = [fragment(*span, version=version) for span in ((0, 200), (200, 400), (400, None))]
    for order in itertools.permutations(pieces):
        *before, last = feed(*order)
        assert before == [None, None]
        assert isinstance(last, Packet)
        assert (last.sport, last.dport, last.payload) == (1111, 443, DATAGRAM[8:])


def test_a_duplicate_is_no_overlap() -> None:
    assert isinstance(feed(fragment(0, 200), fragment(0, 200), fragment(200, None))[-1], Packet)


@pytest.mark.parametrize("spans", [((0, 200), (104, None)), ((200, None), (0, 208)), ((400, None), (400, 408))])
def test_overlap_refuses_the_whole_packet(spans: tuple[tuple[int, int | None], ...]) -> None:
    *_, refused, after = feed(*[fragment(*span) for span in spans], fragment(208, 304))
    assert refused is Refusal.MALFORMED
    assert after is Refusal.MALFORMED


def test_packets_are_kept_apart_by_identification() -> None:
    assert feed(fragment(0, 200, ident=1), fragment(200, None, ident=2)) == [None, None]


def test_the_oldest_makes_room() -> None:
    defragmenter = Defragmenter(capacity=2)
    for ident in (1, 2, 3):
        defragmenter.add(fragment(0, 200, ident=ident))
    assert defragmenter.refused == 1
    assert defragmenter.add(fragment(200, None, ident=1)) is None
    assert isinstance(defragmenter.add(fragment(200, None, ident=3)), Packet)


def test_a_packet_larger_than_ip_allows_is_refused() -> None:
    got = parse(build.ethernet(build.ipv4(17, b"\0" * 800, offset=65_000, more=False)))
    assert isinstance(got, Fragment)
    assert feed(got) == [Refusal.MALFORMED]
