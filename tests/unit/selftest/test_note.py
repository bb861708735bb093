"""The signed note: nothing but what the key signed is believed."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.checkpoint import Head, SigningKey
from audit.errors import FormatError
from engine.errors import InputError
from engine.selftest import note

KEY, OTHER = SigningKey.from_seed("sallyport/host/1", bytes(32)), SigningKey.from_seed("sallyport/host/1", b"\1" * 32)
DOCUMENT = {"passed": True, "kernel": "6.1", "proofs": [{"name": "a \u2014 b\n\x1b[31m", "passed": True}]}
NOTE = note.sign(DOCUMENT, KEY)

JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=8)


@given(st.dictionaries(st.text(), JSON))
def test_what_was_signed_is_read_again(document: dict[str, object]) -> None:
    assert note.verify(note.sign(document, KEY), KEY.verifier) == document


def test_it_is_a_note_as_c2sp_has_it() -> None:
    text, _, signature = NOTE.decode().partition("\n\n")
    assert text.startswith("sallyport selftest\n{")
    assert signature.startswith("\u2014 sallyport/host/1 ")
    signed = base64.b64decode(signature.split(" ")[2])
    assert signed[:4] == KEY.verifier.id
    assert KEY.verifier.verifies(signed[4:], (text + "\n").encode())
    # No control characters but newline, wherever the text came from.
    assert not any(char < " " and char != "\n" for char in NOTE.decode())


@given(st.integers(0, len(NOTE) - 1), st.integers(1, 255))
def test_a_changed_byte_is_found(at: int, by: int) -> None:
    changed = NOTE[:at] + bytes([NOTE[at] ^ by]) + NOTE[at + 1 :]
    with pytest.raises(InputError):
        note.verify(changed, KEY.verifier)


@pytest.mark.parametrize("tail", [b"\n", b"x", NOTE])
def test_nothing_may_follow(tail: bytes) -> None:
    with pytest.raises(InputError):
        note.verify(NOTE + tail, KEY.verifier)


@given(st.binary(max_size=300))
def test_garbage_is_no_note(data: bytes) -> None:
    with pytest.raises(InputError):
        note.verify(data, KEY.verifier)


def test_another_key_of_the_same_name_is_told_apart() -> None:
    with pytest.raises(InputError, match="another key"):
        note.verify(NOTE, OTHER.verifier)


def test_a_changed_document_is_told_as_such() -> None:
    with pytest.raises(InputError, match="was changed"):
        note.verify(NOTE.replace(b'"passed": true', b'"passed": 1234', 1), KEY.verifier)


def test_a_head_of_the_log_is_no_selftest_and_a_selftest_is_no_head() -> None:
    # One key signs both: neither may pass for the other.
    head = Head.sign(KEY, 7, bytes(32))
    with pytest.raises(InputError):
        note.verify(head.note(), KEY.verifier)
    with pytest.raises(FormatError):
        Head.parse(NOTE)
    with pytest.raises(FormatError):
        SigningKey.from_seed(note.TITLE, bytes(32))


def test_the_document_is_one_line_of_json() -> None:
    assert json.loads(NOTE.splitlines()[1]) == DOCUMENT
