"""DNS messages: read whole or with a stated fault; names end, whatever the pointers say."""

from __future__ import annotations

import struct

import pytest

from engine.protocols.dns import (
    MAX_MESSAGE,
    MAX_RECORDS,
    Address,
    Alias,
    Kind,
    Malformed,
    Message,
    MessageStream,
    Question,
    Service,
    encode,
    parse,
)

# The message of RFC 1035 section 4.1.4's kind, as a resolver sends it: a question, an alias, an address, EDNS.
ANSWER = bytes.fromhex(
    "1a2b 8180 0001 0002 0000 0001"
    "03777777 07657861 6d706c65 00 0001 0001"
    "c00c 0005 0001 0000003c 0006 0363646e c010"
    "c029 0001 0001 0000001e 0004 c6336414"
    "00 0029 04d0 00000000 0000"
)
WWW, CDN = (b"www", b"example"), (b"cdn", b"example")


def header(*counts: int, flags: int = 0x8180) -> bytes:
    return struct.pack("!6H", 1, flags, *counts)


def record(kind: int, data: bytes, *, owner: bytes = b"\1a\0", ttl: int = 60, klass: int = 1) -> bytes:
    return owner + struct.pack("!HHIH", kind, klass, ttl, len(data)) + data


def reason(data: bytes) -> str:
    found = parse(data)
    assert isinstance(found, Malformed), found
    return found.reason


def read(data: bytes) -> Message:
    found = parse(data)
    assert isinstance(found, Message), found
    return found


def test_an_answer_as_resolvers_send_it() -> None:
    assert read(ANSWER) == Message(
        0x1A2B, True, (Question(WWW, Kind.A),), (Alias(WWW, 60, CDN), Address(CDN, 30, bytes([198, 51, 100, 20]))),
        edns=True,
    )  # fmt: skip


def test_the_printer_compresses_as_servers_do() -> None:
    # Without the bits that say nothing here: recursion desired, recursion available.
    assert encode(read(ANSWER)) == ANSWER[:2] + b"\x80\0" + ANSWER[4:]


def test_a_service_record_gives_its_hints_and_no_other_parameter() -> None:
    hints = b"\0\1\0\3\2h2" + b"\0\4\0\x08" + bytes([192, 0, 2, 1, 192, 0, 2, 2]) + b"\0\6\0\x10" + bytes(16)
    message = read(header(0, 1, 0, 0) + record(Kind.HTTPS, b"\0\1\0" + hints))
    addresses = (b"\xc0\0\2\1", b"\xc0\0\2\2", bytes(16))
    assert message.answers == (Service((b"a",), 60, Kind.HTTPS, 1, (), addresses),)


def test_what_ties_no_name_to_an_address_is_not_kept() -> None:
    text = record(16, b"\3abc") + record(Kind.A, bytes(4), klass=3)
    assert read(header(0, 2, 1, 1) + text + record(Kind.A, bytes(4)) + record(Kind.A, bytes(4))).answers == ()


def test_a_time_with_the_first_bit_set_is_none() -> None:
    (one,) = read(header(0, 1, 0, 0) + record(Kind.A, bytes(4), ttl=1 << 31)).answers
    assert one.ttl == 0


def test_the_response_code_has_the_bits_of_edns() -> None:
    opt = b"\0" + struct.pack("!HHIH", 41, 1232, 1 << 24, 0)
    # Without them this one, BADVERS, would be taken for success.
    assert read(header(0, 0, 0, 1) + opt).rcode == 16


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "past the end"),
        (ANSWER[:11], "past the end"),
        (ANSWER[:-1], "past the end"),
        (ANSWER + b"\0", "does not end with"),
        (header(1, 0, 0, 0) + b"\3ww", "label runs past the end"),
        (header(1, 0, 0, 0) + b"\1a", "name runs past the end"),
        (header(1, 0, 0, 0) + b"\x40\0\0\1\0\1", "unknown type 0x40"),
        (header(1, 0, 0, 0) + b"\x80\0\0\1\0\1", "unknown type 0x80"),
        (header(1, 0, 0, 0) + b"\xc0\x0c\0\1\0\1", "does not lead back"),
        (header(1, 0, 0, 0) + b"\1a\xc0\x0c\0\1\0\1", "does not lead back"),
        (header(1, 0, 0, 0) + b"\xc0\x20\0\1\0\1", "does not lead back"),
        (header(1, 0, 0, 0) + b"\xc0\x02\0\1\0\1", "does not lead back"),
        (header(1, 0, 0, 0) + b"\xc0", "name runs past the end"),
        (header(1, 0, 0, 0) + b"\x3f" + b"x" * 63 + (b"\x3f" + b"x" * 63) * 3 + b"\0\0\1\0\1", "more than 255"),
        (header(0, 1, 0, 0) + record(Kind.A, bytes(3)), "past the end"),
        (header(0, 1, 0, 0) + record(Kind.A, bytes(5)), "type 1 with 5 bytes"),
        (header(0, 1, 0, 0) + record(Kind.AAAA, bytes(4)) + bytes(12), "type 28 with 4 bytes"),
        (header(0, 1, 0, 0) + record(Kind.CNAME, b"\1b\0\0"), "type 5 with 4 bytes"),
        (header(0, 1, 0, 0) + record(Kind.HTTPS, b"\0\1\0\0\4\0\2\1\1"), "hints of 2 bytes"),
        (header(0, 1, 0, 0) + record(Kind.HTTPS, b"\0\1\0\0\4\0\0"), "hints of 0 bytes"),
        (header(0, 1, 0, 0) + record(Kind.HTTPS, b"\0\1\0\0\1\0\0\0\1\0\0"), "out of order"),
        (header(0, 0, 0, 2) + (b"\0" + struct.pack("!HHIH", 41, 0, 0, 0)) * 2, "OPT"),
        (header(0, 1, 0, 0) + b"\0" + struct.pack("!HHIH", 41, 0, 0, 0), "OPT"),
        (header(0, 0, 0, 1) + record(41, b""), "OPT"),
        (header(0, MAX_RECORDS, 1, 0), "more than 256 records"),
        (header(0, 2, 0, 0) + record(Kind.A, bytes(4)), "past the end"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_stated(data: bytes, words: str) -> None:
    assert words in reason(data)


def test_pointers_that_lead_ever_further_back_end() -> None:
    # Two pointers that lead to each other, one forward: a reader that only bounds the jumps reads this one for long.
    data = header(2, 0, 0, 0) + b"\1a\xc0\x14\0\1\0\1" + b"\1b\xc0\x0c\0\1\0\1"
    assert "does not lead back" in reason(data)
    chain = header(3, 0, 0, 0) + b"\1a\0\0\1\0\1" + b"\1b\xc0\x0c\0\1\0\1" + b"\1c\xc0\x13\0\1\0\1"
    assert [question.name for question in read(chain).questions] == [(b"a",), (b"b", b"a"), (b"c", b"b", b"a")]


def test_no_loop_of_pointers_in_what_is_not_read_catches_a_name() -> None:
    # A text record holds two pointers that lead to each other; the name of the next one leads to them.
    text = record(16, b"\xc0\x1b\xc0\x19")
    assert text[-4:] == (header(0, 2, 0, 0) + text)[0x19:0x1D]
    assert "does not lead back" in reason(header(0, 2, 0, 0) + text + b"\xc0\x1b" + record(1, bytes(4))[3:])


def test_the_target_of_a_service_is_printed_whole() -> None:
    # RFC 9460 section 2.2: resolvers that do not know the type could not expand it.
    service = Service((b"a", b"example"), 60, Kind.HTTPS, 1, (b"a", b"example"))
    assert encode(Message(1, True, (), (service,))).count(b"\7example") == 2


@pytest.mark.parametrize(
    "message",
    [
        Message(1, True, (Question((b"x" * 64,), 1),)),
        Message(1, True, (Question((b"",), 1),)),
        Message(1, True, (Question((b"x" * 63,) * 4, 1),)),
        Message(1, True, (), rcode=16),
    ],
)
def test_what_has_no_wire_form_is_not_printed(message: Message) -> None:
    with pytest.raises(ValueError, match=r"too long|EDNS"):
        encode(message)


# ---- streams


def framed(*messages: bytes) -> bytes:
    return b"".join(struct.pack("!H", len(message)) + message for message in messages)


def pushed(stream: MessageStream, seq: int, data: bytes) -> list[bytes]:
    found = stream.push(seq & 0xFFFFFFFF, data)
    assert not isinstance(found, Malformed), found
    return found


@pytest.mark.parametrize("step", [1, 2, 3, 30, 1000])
def test_messages_come_out_of_a_stream_however_it_is_cut(step: int) -> None:
    data, start = framed(ANSWER, ANSWER[:40], ANSWER), 0xFFFFFFF0  # the number wraps
    stream = MessageStream(start)
    found: list[bytes] = []
    for at in range(0, len(data), step):
        found += pushed(stream, start + at, data[at : at + step])
    assert found == [ANSWER, ANSWER[:40], ANSWER]


def test_segments_out_of_order_and_twice_make_the_same_messages() -> None:
    data = framed(ANSWER, ANSWER)
    stream = MessageStream(5)
    assert pushed(stream, 5 + 60, data[60:]) == []
    assert pushed(stream, 5, data[:70]) == [ANSWER, ANSWER]
    assert pushed(stream, 5, data[:70]) == []


@pytest.mark.parametrize("data", [b"\0\x0b" + bytes(11), struct.pack("!H", MAX_MESSAGE + 1)])
def test_a_length_that_no_message_has_ends_the_stream(data: bytes) -> None:
    assert isinstance(MessageStream(1).push(1, data), Malformed)


def test_two_versions_of_a_byte_end_the_stream() -> None:
    stream = MessageStream(1)
    assert pushed(stream, 1, framed(ANSWER)[:30]) == []
    found = stream.push(11, b"another name" + bytes(100))
    assert isinstance(found, Malformed)
    assert "two versions" in found.reason


def test_a_segment_from_far_ahead_ends_the_stream() -> None:
    assert isinstance(MessageStream(1).push(MAX_MESSAGE, bytes(4000)), Malformed)


def test_a_long_lived_stream_keeps_only_what_it_needs() -> None:
    stream = MessageStream(1)
    data = framed(ANSWER)
    for number in range(1000):
        assert pushed(stream, 1 + number * len(data), data) == [ANSWER]
