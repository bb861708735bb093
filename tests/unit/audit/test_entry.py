"""Lines: what a verifier needs of them, and what is none."""

from __future__ import annotations

import pytest

from audit.entry import EntryHeader, decode, decode_header, encode, note
from audit.errors import FormatError

LINE = b'{"seq":1,"time_ns":2,"mono_ns":3,"boot":"b","type":"new","detail":{"text":"x"},"later":[1]}'


def test_a_line_of_a_later_version_can_be_read() -> None:
    assert decode_header(LINE) == EntryHeader(1, 2, 3, "b", "new")
    assert decode(LINE).detail == {"text": "x"}


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"null",
        LINE[:-1],
        LINE + b"x",
        LINE.replace(b'"x"', b'"\xff"'),
        LINE.replace(b'"x"', b'"\xc0\x80"'),
        LINE.replace(b'"x"', b'"\x01"'),
        LINE.replace(b'"x"', b'"\t"'),
        LINE.replace(b'"seq":1', b'"seq":-1'),
        LINE.replace(b'"seq":1', b'"seq":1.5'),
        LINE.replace(b'"seq":1', b'"seq":"1"'),
        LINE.replace(b'"seq":1', b'"seq":9223372036854775808'),
        LINE.replace(b'"boot":"b"', b'"boot":null'),
    ],
)
def test_what_is_no_entry(line: bytes) -> None:
    with pytest.raises(FormatError, match="no entry"):
        decode_header(line)


def test_members_come_in_the_order_of_the_specification_and_the_first_five_always() -> None:
    assert encode(note("stop")) == b'{"seq":-1,"time_ns":0,"mono_ns":0,"boot":"","type":"stop","detail":{}}'
