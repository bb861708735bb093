"""The messages between the engine and its evaluator child: four bytes of length (big endian), then MessagePack.

Only msgspec is imported here: the child must stay small.
"""

from __future__ import annotations

from typing import Any

import msgspec

LENGTH_BYTES = 4
MAX_FRAME_BYTES = 256 << 20


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """What the child must know of a rule: its name, its package as a dotted data path, and what it defines.

    `decision`: the package is a whole-policy `data.sallyport.decision`.
    """

    rule: str
    package: str
    target: bool = False
    deny: bool = False
    reject: bool = False
    allow: bool = False
    ttl: bool = False
    decision: bool = False


class Part(msgspec.Struct, frozen=True, array_like=True):
    """What one interpreter holds: modules [(file, text)], data (JSON) and rules. `key` names it, and its content."""

    key: str
    modules: list[tuple[str, str]]
    data: bytes
    entries: list[Entry]


class Load(msgspec.Struct, tag="load", array_like=True):
    """Forget every part but those to `keep`, and take these."""

    parts: list[Part]
    keep: list[str] = []


class Ask(msgspec.Struct, array_like=True):
    """One rule, its filtered input as JSON, and whether only its target is wanted."""

    rule: str
    input: bytes
    only_target: bool = False


class Evaluate(msgspec.Struct, tag="evaluate", array_like=True):
    asks: list[Ask]


class Rouse(msgspec.Struct, tag="rouse", array_like=True):
    """Questions about these rules are on their way: be awake by then. It has no answer."""

    rules: list[str]


class Reply(msgspec.Struct, array_like=True):
    """The answer to one Ask; `error` is set when the rule gave none."""

    target: bool = True
    deny: list[str] = []
    reject: list[str] = []
    allow: list[str] = []
    ttl: float | None = None
    error: str = ""


class Evaluated(msgspec.Struct, tag="evaluated", array_like=True):
    replies: list[Reply]


class Query(msgspec.Struct, tag="query", array_like=True):
    """Evaluate rules of one part by path, without input."""

    part: str
    paths: list[str]


class Queried(msgspec.Struct, tag="queried", array_like=True):
    """For each path (value as JSON, error)."""

    results: list[tuple[bytes, str]]


class Ready(msgspec.Struct, tag="ready", array_like=True):
    """Loaded; or not, and why."""

    error: str = ""


Request = Load | Evaluate | Query
Response = Ready | Evaluated | Queried


def frame(message: Any) -> bytes:
    """Return a message with its length before it."""
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body
