"""Keys and heads: one form each, everything else refused."""

from __future__ import annotations

import re

import pytest

from audit.checkpoint import Head, SigningKey, VerifierKey, check_name, decode_base64, decode_decimal, encode_base64
from audit.errors import FormatError

KEY = SigningKey.from_seed("example.com/log", bytes(range(32)))
HEAD = Head.sign(KEY, 42, bytes(32))
NOTE = HEAD.note().decode()


def test_a_head_reads_like_the_specification_says() -> None:
    assert re.fullmatch(
        r"example\.com/log\n42\n[A-Za-z0-9+/]{43}=\n\n\u2014 example\.com/log [A-Za-z0-9+/]{91}=\n", NOTE
    )
    assert HEAD.verifies(KEY.verifier)


@pytest.mark.parametrize(
    "note",
    [
        "",
        NOTE[:-1],
        NOTE + "\n",
        NOTE + NOTE.split("\n")[4] + "\n",
        NOTE.replace("\n42\n", "\n042\n"),
        NOTE.replace("\n42\n", "\n+42\n"),
        NOTE.replace("\n42\n", "\n4_2\n"),
        NOTE.replace("\n42\n", "\n\u0664\u0662\n"),
        NOTE.replace("\n42\n", "\n0\n"),
        NOTE.replace("\n42\n", "\n99999999999999999999\n"),
        NOTE.replace("\n42\n", "\n42 \n"),
        NOTE.replace("A=\n\n", "B=\n\n"),
        NOTE.replace("A=\n\n", "A\n\n"),
        NOTE.replace("A=\n\n", "A=\nextension\n\n"),
        NOTE.replace("\n\n", "\nx\n"),
        NOTE.replace("\u2014 ", "- "),
        NOTE.replace("\u2014 ", "\u2014  "),
        NOTE.replace("\u2014 example.com/log", "\u2014 example.com/other"),
        NOTE.replace("example.com", "example\u00a0com"),
        NOTE.replace("example.com", "example+com"),
        NOTE.replace("example.com", "example\u202ecom"),
        NOTE.replace("\n", "\r\n"),
    ],
)
def test_what_is_not_canonical_is_no_head(note: str) -> None:
    assert note != NOTE
    with pytest.raises(FormatError):
        Head.parse(note.encode())


def test_bytes_that_are_not_utf8_are_no_head() -> None:
    with pytest.raises(FormatError):
        Head.parse(HEAD.note().replace(b"example", b"ex\xffmple"))


@pytest.mark.parametrize(
    "other",
    [
        SigningKey.from_seed("example.com/log", bytes(32)),
        SigningKey.from_seed("example.com/other", bytes(range(32))),
    ],
)
def test_a_head_belongs_to_one_key_under_one_name(other: SigningKey) -> None:
    assert not HEAD.verifies(other.verifier)


def test_a_changed_head_does_not_verify() -> None:
    for changed in (
        Head(HEAD.origin, 43, HEAD.root, HEAD.key_id, HEAD.signature),
        Head(HEAD.origin, 42, bytes([1]) + bytes(31), HEAD.key_id, HEAD.signature),
        Head(HEAD.origin, 42, HEAD.root, bytes(4), HEAD.signature),
        Head(HEAD.origin, 42, HEAD.root, HEAD.key_id, bytes(64)),
    ):
        assert not changed.verifies(KEY.verifier)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("+", "-", 1),
        lambda text: text.replace("example.com", "example.org"),
        lambda text: text[:-4] + "AAAA",
        lambda text: text.upper(),
        lambda text: text + " ",
        lambda text: text + "=",
        lambda text: re.sub(r"\+[0-9a-f]{8}\+", "+00000000+", text),
        lambda text: text.rpartition("+")[0] + "+" + encode_base64(b"\x04" + bytes(32)),
        lambda text: text.rpartition("+")[0] + "+" + encode_base64(b"\x01" + bytes(31)),
    ],
)
def test_keys_that_were_changed_are_refused(change) -> None:
    for text, parse in ((str(KEY.verifier), VerifierKey.parse), (KEY.private_text(), SigningKey.parse)):
        assert parse(text)
        with pytest.raises(FormatError):
            parse(change(text))


def test_a_key_shows_its_name_never_its_seed() -> None:
    assert repr(KEY) == "SigningKey('example.com/log')"


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb", "a\u2028b", "a\x00", "\u200b", "a\x7f"])
def test_names_that_a_note_cannot_carry_are_refused(name: str) -> None:
    with pytest.raises(FormatError):
        check_name(name)


@pytest.mark.parametrize("text", ["AA", "AA=", "AB==", "AA==\n", "A A=", "-_==", "====", "AAA=A"])
def test_base64_has_one_form(text: str) -> None:
    with pytest.raises(FormatError):
        decode_base64(text)


@pytest.mark.parametrize("text", ["", "-1", "01", "1 ", "1\n", "1e3", "\u0661", "1" * 20])
def test_a_decimal_has_one_form(text: str) -> None:
    with pytest.raises(FormatError):
        decode_decimal(text)
