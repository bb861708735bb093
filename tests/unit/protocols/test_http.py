"""Request heads, as servers read them: leniently where all of them do, not at all where two could differ."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.model.facts import Http
from engine.protocols.http import LIMIT, NOT_HTTP, HttpAssembler, Unread, read

PLAIN = b"GET /a?b=c HTTP/1.1\r\nHost: a.example\r\nUser-Agent: x\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "request_"),
    [
        (PLAIN, Http("GET", "a.example", "/a?b=c")),
        (PLAIN + b"the body", Http("GET", "a.example", "/a?b=c")),
        (b"POST / HTTP/1.0\r\n\r\n", Http("POST", "", "/")),
        (b"\r\n\r\nGET / HTTP/1.1\r\nHost: a.example\r\n\r\n", Http("GET", "a.example", "/")),
        (b"GET\t/ \t HTTP/1.1\nhost:a.example\n\n", Http("GET", "a.example", "/")),
        (b"PURGE /x HTTP/1.1\r\nHOST: A.Example.:8080 \r\n\r\n", Http("PURGE", "a.example", "/x")),
        (b"GET http://B.example/x HTTP/1.1\r\nHost: a.example\r\n\r\n", Http("GET", "b.example", "/x")),
        (b"GET http://u:p@b.example:80 HTTP/1.1\r\nHost: a.example\r\n\r\n", Http("GET", "b.example", "/")),
        (b"CONNECT b.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n", Http("CONNECT", "b.example", "")),
        (b"OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n", Http("OPTIONS", "a.example", "*")),
        (b"GET / HTTP/1.1\r\nHost: [2001:DB8::1]:8080\r\n\r\n", Http("GET", "2001:db8::1", "/")),
        (b"GET / HTTP/1.1\r\nHost: 192.0.2.1:80\r\n\r\n", Http("GET", "192.0.2.1", "/")),
        (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", Http("GET", "", "/")),
        (b"GET / HTTP/1.1\r\nHost: a.example\r\nHost: a.example\r\n\r\n", Http("GET", "a.example", "/")),
        (b"GET /\xff HTTP/1.1\r\nHost: a.example\r\n\r\n", Http("GET", "a.example", "/\\xff")),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Http("PRI", "", "*")),
        (b"GET /old\r\n", Http("GET", "", "/old")),
        (b"GET /x HTTP/1.10\r\nHost: a.example\r\n\r\n", Http("GET", "a.example", "/x")),
        (b"GET /x HTTP/001.099\r\nHost: a.example\r\n\r\n", Http("GET", "a.example", "/x")),
        (b"GET /x http/1.1\r\nHost: a.example\r\n\r\n", Http("GET", "a.example", "/x")),
        (b"A" * 5000 + b" /x HTTP/1.1\r\nHost: a.example\r\n\r\n", Http("A" * 5000, "a.example", "/x")),
        (b" GET /x HTTP/1.1\r\nHost: a.example\r\n\r\n", Http("GET", "a.example", "/x")),
    ],
)
def test_what_a_request_asks(head: bytes, request_: Http) -> None:
    assert read(head) == request_


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a.example\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: y\r\n Host: a.example\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a.example\rX: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        b"GET / HTTP/1.1\r\nno field\r\n\r\n",
        b"GET / a HTTP/1.1\r\nHost: a.example\r\n\r\n",
        b"GET / HTTP/\r\nHost: a.example\r\n\r\n",
        b"GET / HTTP/1\r\nHost: a.example\r\n\r\n",
        b"GET / HTTP/1.1234\r\nHost: a.example\r\n\r\n",
        b"GET / HTTP/1.1x\r\nHost: a.example\r\n\r\n",
        b"POST HTTP/1.1\r\nHost: a.example\r\n\r\n",
        b"GET / HTTP/1.1 x\r\nHost: a.example\r\n\r\n",
    ],
    ids=[
        "two hosts",
        "a blank before the colon",
        "folded",
        "a bare return",
        "no host name",
        "no colon",
        "four words",
        "no version",
        "half a version",
        "four digits",
        "a letter behind it",
        "no target",
        "a word behind it",
    ],
)
def test_what_two_servers_could_read_in_two_ways_is_malformed(head: bytes) -> None:
    reading = read(head)
    assert isinstance(reading, Unread)
    assert not reading.partial


@pytest.mark.parametrize(
    "data", [b"SSH-2.0-OpenSSH_9.2\r\n", b"\x16\x03\x01", b"GET\r\n", b"EHLO me\r\n", b"x" * 40 + b"\n"]
)
def test_what_is_something_else(data: bytes) -> None:
    assert read(data) == NOT_HTTP


def test_a_long_method_is_waited_for() -> None:
    assert read(b"x" * 40) is None


@pytest.mark.parametrize("end", range(1, len(PLAIN)))
def test_nothing_is_said_of_half_a_head(end: int) -> None:
    assert read(PLAIN[:end]) is None


def test_a_head_without_end_is_partial() -> None:
    assembler = HttpAssembler()
    assert assembler.feed(b"GET / HTTP/1.1\r\n") is None
    reading = assembler.feed(b"X: " + bytes(b"y" * LIMIT))
    assert isinstance(reading, Unread)
    assert reading.partial
    assert assembler.feed(b"\r\n\r\n") == reading


PIECES = st.sampled_from((b"GET", b" ", b"\t", b"/", b"HTTP/1.1", b"HTTP/", b"\r\n", b"\r", b"\n", b"Host:", b"a"))


@given(st.binary(max_size=200) | st.lists(PIECES).map(b"".join), st.integers(0, 200))
def test_the_reading_does_not_depend_on_the_cut(data: bytes, cut: int) -> None:
    assembler = HttpAssembler()
    first = assembler.feed(data[:cut])
    second = assembler.feed(data[cut:])
    assert second == read(data)
    assert first is None or first == second


@given(st.binary(max_size=200) | st.lists(PIECES).map(b"".join), st.sampled_from((0, 10, 2048, 5000, LIMIT)))
@example(PLAIN, 5000)
@example(b"GET /", 5000)
@example(b"SSH-2.0-x\r\n", LIMIT)
@example(b"GET " + b"a" * 3000 + b" HTTP/1.1\r\nHost: a.example\r\n\r\n", 100)
def test_a_reading_rests_on_what_was_taken_of_the_stream_and_on_no_byte_less(data: bytes, more: int) -> None:
    """Of a long stream: whoever sends it may change what comes behind, and nothing before."""
    data += b"x" * more
    assembler = HttpAssembler()
    reading, taken = assembler.feed(data), assembler.taken
    assert taken <= len(data)
    if len(data) > LIMIT and isinstance(reading, Unread) and reading.partial:
        assert taken > LIMIT
        return
    assert read(data[:taken]) == reading
    assert read(data[:taken] + bytes(byte ^ 0xFF for byte in data[taken:])) == reading
    if reading is not None and len(data) > 2048:
        assert read(data[: taken - 1]) is None


def test_what_comes_behind_a_reading_is_not_taken() -> None:
    assembler = HttpAssembler()
    assembler.feed(PLAIN)
    assembler.feed(b"x" * 5000)
    assert assembler.taken == len(PLAIN)
