"""What a stream carried when it was judged, and what comes again in its place."""

from __future__ import annotations

import pytest

from engine.abi.numbers import FlowFlag
from engine.abi.records import Held, Identity, KeptHello, Tuple
from engine.config import Hold
from engine.model.facts import NameState
from engine.protocols import packet as packets
from engine.protocols.packet import ACK, SYN, URG, Packet
from engine.protocols.tls import HelloReading
from engine.runtime.carried import Carried
from engine.runtime.first_payload import FirstPayload
from engine.runtime.flows import JUDGED_MOST, Flow, Waiting
from tests.support import captures
from tests.support.simulator import SimulatedGate

WHO = Identity(0, 0, 0, 0, 0, 0)
FLOW = Tuple(bytes(16), bytes(16), 40000, 443, packets.TCP)
CONTENT = bytes(range(100))


def flow(start: int = 1000, *, cookie: int = 7, port: int = 40000) -> Flow:
    held = Held(WHO, cookie, 0, 1, 1, 0, 1, start, 1, int(FlowFlag.STARTED))
    return Flow(FLOW._replace(sport=port), held, start=start, judged=(start + len(CONTENT)) & 0xFFFFFFFF)


def segment(seq: int, payload: bytes, flags: int = ACK) -> Packet:
    packet = packets.parse(
        captures.ethernet(captures.ipv4(6, captures.tcp(40000, 443, payload, seq=seq & 0xFFFFFFFF, flags=flags)))
    )
    assert isinstance(packet, Packet)
    return packet


@pytest.mark.parametrize("start", [1000, 0xFFFFFFD0, 0])
def test_the_same_bytes_come_again_however_they_are_cut(start: int) -> None:
    carried, one = Carried(SimulatedGate()), flow(start)
    carried.keep(one, CONTENT)
    for first, end in ((0, 100), (0, 30), (30, 100), (99, 100)):
        packet = segment(start + first, CONTENT[first:end])
        assert one.comes_again(packet)
        assert carried.contradiction(one, packet) == ""
        behind = segment(start + first, CONTENT[first:] + b"and what nobody has judged")
        assert carried.contradiction(one, behind) == ""
    assert carried.contradiction(one, segment(start - 1, CONTENT, SYN)) == "", "Fast Open"


@pytest.mark.parametrize("start", [1000, 0xFFFFFFD0])
@pytest.mark.parametrize("at", [0, 50, 99])
def test_one_other_byte_is_noticed(start: int, at: int) -> None:
    carried, one = Carried(SimulatedGate()), flow(start)
    carried.keep(one, CONTENT)
    other = CONTENT[:at] + b"\xff" + CONTENT[at + 1 :]
    for first in {0, at}:
        assert "is not what" in carried.contradiction(one, segment(start + first, other[first:]))
    assert "is not what" in carried.contradiction(one, segment(start - 5, b"front" + other))


def test_urgent_data_makes_another_reading_of_the_same_bytes() -> None:
    carried, one = Carried(SimulatedGate()), flow()
    carried.keep(one, CONTENT)
    assert "urgent" in carried.contradiction(one, segment(1000, CONTENT, ACK | URG))


def test_what_lies_behind_does_not_come_again() -> None:
    one = flow()
    assert not one.comes_again(segment(1100, b"data"))
    assert not one.comes_again(segment(1050, b"")), "an acknowledgement from before"
    assert not one.comes_again(segment(1100 - JUDGED_MOST - 1, b"data"))


def test_numbers_that_come_round_are_no_repetition() -> None:
    one = flow()
    one.progressed(segment(1100 + (1 << 30) - 1, b"data"))
    assert one.judged == 1100
    one.progressed(segment(1100 + (1 << 30), b"data"))
    assert one.judged is None


def test_the_gate_s_own_copy_counts_only_for_its_very_stream() -> None:
    gate = SimulatedGate()
    carried, one = Carried(gate), flow()
    gate.hellos[7] = KeptHello(FLOW, 1000, CONTENT)
    assert carried.contradiction(one, segment(1000, CONTENT)) == ""
    for other in (KeptHello(FLOW._replace(sport=1), 1000, CONTENT), KeptHello(FLOW, 999, CONTENT)):
        gate.hellos[7] = other
        assert "not known here any more" in carried.contradiction(one, segment(1000, CONTENT))


def test_the_newest_are_kept() -> None:
    carried = Carried(SimulatedGate(), limit=250)
    flows = [flow(port=port) for port in (1, 2, 3)]
    for each in flows:
        carried.keep(each, CONTENT)
    known = [carried.contradiction(each, segment(1000, CONTENT)) == "" for each in flows]
    assert known == [False, True, True]


def test_what_is_over_takes_no_room() -> None:
    carried = Carried(SimulatedGate(), limit=250)
    flows = [flow(port=port) for port in (1, 2, 3)]
    for each in flows[:2]:
        carried.keep(each, CONTENT)
    carried.forget(flows[1])
    carried.keep(flows[2], CONTENT)
    known = [carried.contradiction(each, segment(1000, CONTENT)) == "" for each in flows]
    assert known == [True, False, True]


def test_a_longer_one_than_all_may_take_is_kept_alone() -> None:
    carried, one = Carried(SimulatedGate(), limit=50), flow()
    carried.keep(one, CONTENT)
    assert carried.contradiction(one, segment(1000, CONTENT)) == ""


def test_a_request_is_read_from_the_first_byte_of_its_stream() -> None:
    """Two bytes that may still begin an SSL 2.0 hello: what follows them is no request of its own."""
    reader, one = FirstPayload(Hold()), flow()
    one.judged, one.waiting = None, Waiting()
    request = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
    assert reader.segment(one, segment(1000, b"\x80\x01"), requests=True) is None
    reading = reader.segment(one, segment(1002, request), requests=True)
    assert isinstance(reading, HelloReading)
    assert reading.name.state is NameState.NOT_TLS
    assert one.http is not None
    assert one.http.host == ""
    assert one.judged == 1002 + len(request)
    assert reader.read(one) == b"\x80\x01" + request
