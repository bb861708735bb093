"""What is shown, to the letter."""

from __future__ import annotations

import pytest

from audit.terminal import escape, escape_json, quote


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain.example", "plain.example"),
        ("bücher.example", "bücher.example"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\\x1b[2J", "\\\\x1b[2J"),
        ("\x7f\x9b", "\\x7f\\x9b"),
        ("gpj\u202eexe", "gpj\\u202eexe"),
        ("pay\u200bpal", "pay\\u200bpal"),
        ("\U000e0041", "\\U000e0041"),
        ("\udcff", "\\udcff"),
    ],
)
def test_escapes(text: str, shown: str) -> None:
    assert escape(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/bin/x", "/bin/x"),
        ("", '""'),
        ("a b", '"a b"'),
        ('a"b', '"a\\"b"'),
        ("uid=0", '"uid=0"'),
        ("x\u3000y", '"x\u3000y"'),
    ],
)
def test_quotes_keep_one_name_one_word(text: str, shown: str) -> None:
    assert quote(text) == shown


def test_json_escapes() -> None:
    assert escape_json('"\x9b\u202e\U000e0041"') == '"\\u009b\\u202e\\udb40\\udc41"'
