"""Finding every client hello of a capture, early and late, and nothing else."""

from __future__ import annotations

import random
import struct
from itertools import pairwise

import pytest

from engine.model.facts import NameState
from engine.protocols.capture import CaptureRecord
from engine.protocols.survey import Sighting, Survey
from tests.support import captures as build
from tests.support import hello, initials

HELLO = hello.client_hello("late.example", alpn=("h2",))
SERVER_HELLO = hello.record(b"\x02\0\0\x26\x03\x03" + bytes(36))


def survey(frames: list[bytes], link: int = 1) -> list[Sighting]:
    machine = Survey()
    found = []
    for number, frame in enumerate(frames, 1):
        found += machine.feed(CaptureRecord(number, number * 1000, link, frame, len(frame)))
    return found + machine.finish()


def names(frames: list[bytes]) -> list[tuple[str, bool]]:
    return [(one.reading.name.value, one.late) for one in survey(frames)]


class Talk:
    """A TCP connection written line by line: `client` and `server` send one segment each."""

    def __init__(self, *, dport: int = 443, isn: int = 0xFFFFFF00) -> None:
        self._dport = dport
        self._seq = {True: isn + 1, False: 7_001}
        self.frames = [
            build.tcp_frame(seq=isn, flags=build.SYN, dport=dport),
            build.reply_frame(seq=7_000, flags=build.SYN | build.ACK, dport=dport),
        ]

    def client(self, data: bytes) -> Talk:
        return self._say(data, client=True)

    def server(self, data: bytes) -> Talk:
        return self._say(data, client=False)

    def _say(self, data: bytes, *, client: bool) -> Talk:
        make = build.tcp_frame if client else build.reply_frame
        self.frames.append(make(data, seq=self._seq[client] & 0xFFFFFFFF, dport=self._dport))
        self._seq[client] += len(data)
        return self


def test_a_hello_at_the_start() -> None:
    (found,) = survey(Talk().client(HELLO).server(SERVER_HELLO).frames)
    assert (found.reading.name.value, found.late, found.packet, found.transport) == ("late.example", False, 3, "tcp")
    assert (str(found.src), found.flow[1], str(found.dst), found.flow[3]) == (build.CLIENT, 40_000, build.SERVER, 443)


# What the two sides say before the hello: c: client, s: server.
NEGOTIATIONS: dict[str, tuple[int, str, list[bytes]]] = {
    "smtp": (25, "scscs", [b"220 hi\r\n", b"EHLO x\r\n", b"250 STARTTLS\r\n", b"STARTTLS\r\n", b"220 go\r\n"]),
    "connect": (3128, "cs", [b"CONNECT late.example:443 HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"]),
    "socks": (1080, "cscs", [b"\5\1\0", b"\5\0", b"\5\1\0\3\x0clate.example\1\xbb", b"\5\0\0\1" + bytes(6)]),
    "postgres": (15_432, "cs", [struct.pack("!II", 8, 80_877_103), b"S"]),
    "mysql": (3306, "sc", [b"\x4a\0\0\0\x0a8.0", b"\x20\0\0\1\x85\xae\xff\x19" + bytes(28)]),
    "ldap": (389, "cs", [b"\x30\x1d\2\1\1\x77\x18\x80\x161.3.6.1.4.1.1466.20037", b"0\x0c\2"]),
    "rdp": (3389, "cs", [b"\3\0\0\x13\x0e\xe0" + bytes(13), b"\3\0\0\x13\x0e\xd0" + bytes(13)]),
}


@pytest.mark.parametrize("protocol", NEGOTIATIONS)
@pytest.mark.parametrize("pieces", [1, 3, len(HELLO)])
def test_a_late_hello_is_found_whatever_came_before(protocol: str, pieces: int) -> None:
    port, turns, words = NEGOTIATIONS[protocol]
    talk = Talk(dport=port)
    for turn, said in zip(turns, words, strict=True):
        (talk.client if turn == "c" else talk.server)(said)
    cuts = [len(HELLO) * index // pieces for index in range(pieces + 1)]
    for a, b in pairwise(cuts):
        talk.client(HELLO[a:b])
    assert names(talk.server(SERVER_HELLO).frames) == [("late.example", True)]


@pytest.mark.parametrize(
    "before",
    [
        b"PROXY TCP4 192.0.2.1 192.0.2.2 40000 443\r\n",
        b"CONNECT late.example:443 HTTP/1.1\r\n\r\n",
        struct.pack("!II", 8, 80_877_103),
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12),
        b"\x12\x01\0\xc0\0\0\0\0",
    ],
    ids=["proxy v1", "connect", "postgres", "proxy v2", "tds"],
)
def test_a_hello_behind_a_request_in_the_same_segment(before: bytes) -> None:
    assert names(Talk().client(before + HELLO).frames) == [("late.example", True)]


def test_a_hello_behind_a_request_goes_on_in_the_next_segment() -> None:
    talk = Talk().client(b"CONNECT late.example:443 HTTP/1.1\r\n\r\n" + HELLO[:90]).client(HELLO[90:])
    assert names(talk.frames) == [("late.example", True)]


def test_a_hello_that_the_server_side_opens_is_found_too() -> None:
    talk = Talk(dport=21).server(b"220 hi\r\n").client(b"x\r\n").server(HELLO)
    assert names(talk.frames) == [("late.example", True)]


def test_segments_out_of_order_and_repeated() -> None:
    frames = build.connection([HELLO[:50], HELLO[50:120], HELLO[120:]], isn=0xFFFFFFF0)
    shuffled = [frames[0], frames[3], frames[1], frames[1], frames[3], frames[2]]
    assert names(shuffled) == [("late.example", False)]


def test_a_connection_whose_beginning_is_missing() -> None:
    frames = build.connection([b"EHLO x\r\n", b"STARTTLS\r\n", HELLO])
    assert names(frames[2:]) == [("late.example", True)]


def test_lost_packets_do_not_hide_what_follows() -> None:
    frames = build.connection([b"x" * 1400] * 40 + [HELLO])
    assert names(frames[:5] + frames[6:]) == [("late.example", True)]
    assert names(frames[:5] + frames[-1:]) == [("late.example", True)]


def test_the_second_hello_after_a_retry_request_is_the_same_hello() -> None:
    talk = Talk().client(HELLO).server(SERVER_HELLO).client(hello.record(b"\x01", kind=20) + HELLO)
    assert names(talk.frames) == [("late.example", False)]


def test_a_second_hello_with_another_name_is_told() -> None:
    talk = Talk().client(HELLO).server(SERVER_HELLO).client(hello.client_hello("other.example"))
    assert names(talk.frames) == [("late.example", False), ("other.example", True)]


def test_ports_used_anew_are_another_connection() -> None:
    frames = build.connection([HELLO], isn=1) + build.connection([HELLO], isn=900_000)
    assert len(names(frames)) == 2


def test_a_hello_cut_off_is_partial_without_a_name() -> None:
    (found,) = survey(build.connection([HELLO[:-1]]))
    assert (found.reading.state, found.reading.name.value, found.packet) == (NameState.PARTIAL, "", 2)


def test_a_hello_with_a_hole_is_partial() -> None:
    frames = build.connection([HELLO[:40], HELLO[40:80], HELLO[80:]])
    (found,) = survey([frames[0], frames[1], frames[3]])
    assert found.reading.state is NameState.PARTIAL


def test_two_versions_of_a_segment_are_malformed() -> None:
    other = HELLO[:60] + b"?" + HELLO[61:100]
    frames = build.connection([HELLO[:100], HELLO[100:]])
    (found,) = survey([*frames[:2], build.connection([other])[1], frames[2]])
    assert (found.reading.state, found.reading.name.value) == (NameState.MALFORMED, "")


def test_a_keep_alive_with_a_byte_of_garbage_is_no_conflict() -> None:
    frames = build.connection([HELLO[:100], HELLO[100:]])
    probe = build.tcp_frame(b"\0", seq=1_000 + 1 + 99)
    assert names([*frames[:2], probe, frames[2]]) == [("late.example", False)]


def test_a_fake_header_at_the_start_is_malformed() -> None:
    (found,) = survey(Talk().client(b"\x16\x03\x01\x02\x00GET / HTTP/1.1\r\n\r\n").frames)
    assert found.reading.state is NameState.MALFORMED


def test_random_data_is_no_hello() -> None:
    dice = random.Random(20)
    frames = []
    for port in range(40_000, 40_020):
        segments = [dice.randbytes(dice.randrange(1, 1400)) for _ in range(50)]
        segments += [b"\x16\x03" + dice.randbytes(200), b"\x16\x03\x01\x01\x00\x01\x00" + dice.randbytes(200)]
        frames += build.connection(segments, sport=port)
        frames += [build.udp_frame(b"\xc0" + dice.randbytes(1250), sport=port)]
        frames += [build.udp_frame(b"\xc0\0\0\0\x01\x08" + dice.randbytes(1250), sport=port)]
    assert survey(frames) == []


def test_a_hello_inside_a_file_that_is_transferred_is_none() -> None:
    file = build.pcap([*build.connection([HELLO]), build.tcp_frame(b"x" * 900)])
    talk = Talk(dport=80).client(b"GET /x.pcap HTTP/1.1\r\n\r\n").server(b"HTTP/1.1 200 OK\r\n\r\n" + file)
    assert survey(talk.frames) == []


def test_fast_open_data_in_the_syn() -> None:
    frames = [build.tcp_frame(HELLO, seq=5, flags=build.SYN), build.tcp_frame(HELLO, seq=6)]
    assert names(frames) == [("late.example", False)]


def test_a_quic_hello_over_datagrams_and_what_repeats_it() -> None:
    message = hello.handshake("quic.example", alpn=("h3",), size=1700)
    flight = initials.flight(message, (900,))
    retried = initials.flight(message, (700,), dcid=b"fromretry")
    frames = [build.udp_frame(one) for one in [*flight, flight[0], *retried, b"\x40short"]]
    (found,) = survey(frames)
    assert (found.transport, found.reading.name.value, found.packet) == ("quic", "quic.example", 2)


def test_two_quic_connections_on_one_pair_of_ports() -> None:
    first = initials.flight(hello.handshake("one.example"))
    second = initials.flight(hello.handshake("two.example"), dcid=b"another!!")
    assert [name for name, _ in names([build.udp_frame(one) for one in first + second])] == [
        "one.example",
        "two.example",
    ]


def test_quic_of_an_unknown_version_is_told_once() -> None:
    frames = [build.udp_frame(b"\xc3Q046\x50" + b"\x11" * 1300)] * 2
    (found,) = survey(frames)
    assert found.reading.state is NameState.UNSUPPORTED


def test_an_unfinished_quic_hello_is_partial() -> None:
    flight = initials.flight(hello.handshake("quic.example", size=1700), (900,))
    (found,) = survey([build.udp_frame(flight[0])])
    assert (found.reading.state, found.packet) == (NameState.PARTIAL, 1)


def test_a_hello_in_ip_fragments_inside_a_tunnel() -> None:
    segment = build.tcp(40_000, 443, HELLO)
    pieces = [(0, 104, True), (104, 208, True), (208, len(segment), False)]
    inner = [build.ipv4(6, segment[a:b], offset=a, more=more, ident=9) for a, b, more in pieces]
    frames = [build.ethernet(build.ipv4(47, b"\0\0\x08\0" + ip)) for ip in inner]
    (found,) = survey(frames)
    assert (found.reading.name.value, found.encaps) == ("late.example", ("gre",))


def test_frames_that_are_no_packets_are_counted_by_reason() -> None:
    machine = Survey()
    machine.feed(CaptureRecord(1, 0, 127, b"radiotap", 8))
    machine.feed(CaptureRecord(2, 0, 1, b"short", 5))
    assert dict(machine.refusals) == {"unknown_link": 1, "truncated": 1}
    assert dict(machine.unknown_links) == {127: 1}
