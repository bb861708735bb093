"""Entries: what one line of the log says, and its bytes. FORMAT.md sections 2 and 3.

Build one with a function of `audit.ocsf` (network and process events) or with `note` (everything else), and
give it to `AuditLog.append`, which fills in sequence number and time.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec

from audit.errors import FormatError

FORMAT_VERSION = 1

EntryType = Literal[
    "decision", "flow", "socket", "start", "stop", "policy", "gap", "clock", "recovery", "heartbeat", "alert",
    "command", "failure",
]  # fmt: skip
NOTE_TYPES = frozenset(
    {"start", "stop", "policy", "gap", "clock", "recovery", "heartbeat", "alert", "command", "failure"}
)


class Generation(msgspec.Struct, frozen=True, gc=False):
    """The policy in force: `digest` hex of the policy folder, `commit` empty outside git."""

    number: int
    digest: str
    commit: str = ""
    dirty: bool = False


class Entry(msgspec.Struct, omit_defaults=True, gc=False):
    """One line. The first five members are always written; `seq`, times and `boot` are for the log."""

    seq: int
    time_ns: int
    mono_ns: int
    boot: str
    type: str
    generation: Generation | None = None
    detail: dict[str, Any] | None = None
    ocsf: Any = None


_Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class EntryHeader(msgspec.Struct, gc=False):
    """The members that every line must have: all that a verifier needs."""

    seq: _Count
    time_ns: _Count
    mono_ns: _Count
    boot: str
    type: str


def blank(kind: EntryType, *, generation: Generation | None = None, ocsf: Any = None) -> Entry:
    """Return an entry without place and time."""
    return Entry(-1, 0, 0, "", kind, generation, None, ocsf)


def note(kind: EntryType, /, *, generation: Generation | None = None, **detail: Any) -> Entry:
    """Return an entry that says `detail`: JSON values, lists and dicts of them."""
    return Entry(-1, 0, 0, "", kind, generation, detail)


_encoder = msgspec.json.Encoder()
_header_decoder = msgspec.json.Decoder(EntryHeader)
_entry_decoder = msgspec.json.Decoder(Entry)
_SURROGATE = re.compile("[\ud800-\udfff]")


def encode(entry: Entry) -> bytes:
    """Return the line of an entry, without its newline."""
    try:
        return _encoder.encode(entry)
    except UnicodeEncodeError:
        # A path is bytes: os.fsdecode turns stray ones into lone surrogates, which UTF-8 cannot hold. A
        # program with such a name must not thereby escape the log.
        return _encoder.encode(plain_text(msgspec.to_builtins(entry)))


def plain_text(value: Any) -> Any:
    """Return the value with lone surrogates, which UTF-8 cannot hold, written out as the bytes that they stand for."""
    if isinstance(value, str):
        return _SURROGATE.sub(lambda found: f"\\x{ord(found[0]) & 0xFF:02x}", value)
    if isinstance(value, dict):
        return {plain_text(key): plain_text(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain_text(inner) for inner in value]
    return value


def decode_header(line: bytes) -> EntryHeader:
    """Read the five members that every line has. Raise FormatError."""
    try:
        if not line.isascii():
            line.decode()  # msgspec skips members that are not asked for without looking at their UTF-8
        header = _header_decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"The line is no entry: {error}") from error
    return header


def decode(line: bytes) -> Entry:
    """Read a whole line; `ocsf` comes as plain dicts. Raise FormatError."""
    try:
        return _entry_decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"The line is no entry: {error}") from error
