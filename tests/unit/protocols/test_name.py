"""Server names: what is a name, what is none, and what the kernel's table is keyed by."""

from __future__ import annotations

import pytest

from engine.model.name import MAX_NAME, NamePattern, normalise, reversed_key


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b"example.com", "example.com"),
        (b"WWW.Example.COM", "www.example.com"),
        (b"example.com.", "example.com"),
        (b"localhost", "localhost"),
        (b"_dmarc.example.com", "_dmarc.example.com"),
        (b"r3---sn-4g5e6nsz.googlevideo.com", "r3---sn-4g5e6nsz.googlevideo.com"),
        (b"xn--bcher-kva.example", "xn--bcher-kva.example"),
        (b"1.2.3.4.example", "1.2.3.4.example"),
        (b"a" * 63 + b".example", "a" * 63 + ".example"),
    ],
)
def test_usable_names_are_folded_and_lose_one_trailing_dot(raw: bytes, value: str) -> None:
    assert normalise(raw) == (value, "")


@pytest.mark.parametrize(
    ("raw", "part_of_the_reason"),
    [
        (b"", "empty name"),
        (b".", "empty name"),
        (b"example.com..", "empty label"),
        (b"a..example", "empty label"),
        (b".example.com", "empty label"),
        (b"a" * 64 + b".example", "63"),
        (b"evil.com\0.example.com", "0x00"),
        (b"evil.com\r\nx", "0x0d"),
        (b"example.com\n", "0x0a"),
        (b"exa mple.com", "0x20"),
        (b"b\xc3\xbccher.example", "0xc3"),
        (b"example.com:443", "port"),
        (b"2001:db8::1", "IPv6"),
        (b"[::1]", "IPv6"),
        (b"192.0.2.1", "IPv4"),
        (b"127.1", "IPv4"),
        (b"2130706433", "IPv4"),
        (b"0x7f.1", "IPv4"),
        (b"a.0x7F000001", "IPv4"),
        (b"192.0.2.1.", "IPv4"),
        (b"*.example.com", "0x2a"),
    ],
)
def test_anything_else_has_no_value_and_says_why(raw: bytes, part_of_the_reason: str) -> None:
    value, reason = normalise(raw)
    assert value == ""
    assert part_of_the_reason in reason


def test_the_longest_name_is_253_bytes() -> None:
    longest = ".".join(["a" * 63] * 3 + ["b" * 61]).encode()
    assert len(longest) == MAX_NAME
    assert normalise(longest) == (longest.decode(), "")
    assert normalise(longest + b".") == (longest.decode(), "")
    assert "254 bytes" in normalise(longest + b"b")[1]


def test_keys_are_the_reversed_bytes() -> None:
    assert reversed_key("example.com") == b"moc.elpmaxe"


def test_a_wildcard_covers_what_is_below_and_not_the_name_itself() -> None:
    pattern = NamePattern.parse("*.Example.com")
    assert pattern.matches("www.example.com")
    assert pattern.matches("a.b.example.com")
    assert not pattern.matches("example.com")
    assert not pattern.matches("badexample.com")
    assert pattern.key() == b"moc.elpmaxe."
    assert str(pattern) == "*.example.com"


def test_an_exact_pattern_covers_one_name() -> None:
    pattern = NamePattern.parse("example.com.")
    assert pattern.matches("example.com")
    assert not pattern.matches("www.example.com")
    assert pattern.key() == b"moc.elpmaxe"
    assert str(pattern) == "example.com"


@pytest.mark.parametrize("text", ["", "*", "*.", "*.*.example.com", "a.*.example", "bücher.example", "10.0.0.1", "a b"])
def test_a_pattern_that_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is (an? |not )"):
        NamePattern.parse(text)
