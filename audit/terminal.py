"""Text for terminals. Server names, paths and arguments are chosen by whoever is being watched."""

from __future__ import annotations

import re

# C0 and C1 controls and DEL drive the terminal; bidirectional controls (CVE-2021-42574) and line separators
# reorder or break what is read; zero-width characters, tags and the like make two different names look alike.
# Lone surrogates cannot be printed at all.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)


def escape(text: str) -> str:
    """Return text that is safe to show: what is invisible or steers a terminal is written as an escape.

    The forms are those of a Python string, two, four or eight hex digits. A backslash is doubled, so that no
    name can imitate an escape.
    """
    return _UNSAFE.sub(_escaped, text.replace("\\", "\\\\"))


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code <= 0xFF else (f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}")


def quote(text: str) -> str:
    """Return text to stand among other words: escaped, and in quotes where it could look like several of them."""
    shown = escape(text)
    if shown and not re.search(r'[\s"=\[\]]', shown):
        return shown
    return '"' + shown.replace('"', '\\"') + '"'


def escape_json(text: str) -> str:
    """Return JSON text with the same characters as JSON escapes: another spelling of the same values."""
    return _UNSAFE.sub(_json_escaped, text)


def _json_escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code <= 0xFFFF:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 | code >> 10:04x}\\u{0xDC00 | code & 0x3FF:04x}"
