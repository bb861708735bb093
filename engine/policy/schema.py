"""The policy input as a schema: the facts of engine/model/facts.py with their subfields and types.

policies/schemas/input.json is printed from here (a test compares); `opa eval --schema` can read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from engine.model.facts import Direction, Event, NameState, Transport

Path = tuple[str, ...]


@dataclass(frozen=True)
class Field:
    """`kind`: string, integer, boolean, strings (a list of strings), map (string → string). `choices` for a string
    of a closed set; `minimum` and `maximum` for an integer. `ascii`: no letter beyond ASCII can occur."""

    kind: str = "string"
    choices: tuple[str, ...] = ()
    minimum: int = 0
    maximum: int = 0
    ascii: bool = False


def _choices(family: type[Enum]) -> Field:
    return Field(choices=tuple(member.value for member in family), ascii=True)


_TEXT = Field()
_ASCII = Field(ascii=True)
_TEXTS = Field("strings")
_PORT = Field("integer", maximum=65535)
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
LOCALITIES = ("unspecified", "loopback", "multicast", "link_local", "private", "public")

SCHEMA: dict[str, Field | dict[str, Field]] = {
    "event": _choices(Event),
    "direction": _choices(Direction),
    "dest": {
        "address": _ASCII,
        "port": _PORT,
        "transport": _choices(Transport),
        "locality": Field(choices=LOCALITIES, ascii=True),
    },
    "exe": {"path": _TEXT, "sha256": _ASCII},
    "cgroup": {"path": _TEXT, "unit": _TEXT, "container": _TEXT},
    "user": {"uid": Field("integer", minimum=-1, maximum=(1 << 32) - 1), "name": _TEXT},
    "name": {"value": _ASCII, "state": _choices(NameState), "ech": Field("boolean")},
    "dest_names": _TEXTS,
    "clock": {"hour": Field("integer", maximum=23), "weekday": Field(choices=WEEKDAYS, ascii=True)},
    "hello": {"versions": _TEXTS, "alpn": _TEXTS, "ja4": _ASCII},
    "http": {"method": _TEXT, "host": _TEXT, "path": _TEXT},
    "source": {"address": _ASCII, "port": _PORT, "interface": _TEXT},
    "process": {"pid": Field("integer", maximum=1 << 22), "comm": _TEXT, "args": _TEXTS, "parents": _TEXTS},
    "host": {"name": _TEXT, "labels": Field("map")},
}


def lookup(path: Path) -> Field | dict[str, Field] | None:
    """Return what stands at a path below `input`: a field, a fact with subfields, or None when there is no such.

    Below a list or a map any further part is allowed, and the list or map itself is returned.
    """
    if not path or path[0] not in SCHEMA:
        return None
    entry = SCHEMA[path[0]]
    rest = path[1:]
    if isinstance(entry, dict):
        if not rest:
            return entry
        if rest[0] not in entry:
            return None
        entry, rest = entry[rest[0]], rest[1:]
    if rest and entry.kind not in ("strings", "map"):
        return None
    return entry


def canonical_read(path: Path) -> str:
    """Return a read path in its dotted form, cut where the schema ends: "exe.sha256", "dest", "host.labels"."""
    depth = 2 if isinstance(SCHEMA[path[0]], dict) else 1
    return ".".join(path[:depth])


def suggestions(path: Path) -> list[str]:
    """Return the names that could stand where an unknown path goes wrong."""
    if path[0] not in SCHEMA:
        return sorted(SCHEMA)
    entry = SCHEMA[path[0]]
    return sorted(entry) if isinstance(entry, dict) else []


def json_schema() -> dict[str, Any]:
    """Return the schema of the complete input as JSON Schema (draft 7)."""

    def one(entry: Field) -> dict[str, Any]:
        if entry.kind == "strings":
            return {"type": "array", "items": {"type": "string"}}
        if entry.kind == "map":
            return {"type": "object", "additionalProperties": {"type": "string"}}
        if entry.kind == "integer":
            return {"type": "integer", "minimum": entry.minimum, "maximum": entry.maximum}
        plain: dict[str, Any] = {"type": entry.kind}
        return plain | {"enum": list(entry.choices)} if entry.choices else plain

    def fact(entry: Field | dict[str, Field]) -> dict[str, Any]:
        if isinstance(entry, Field):
            return one(entry)
        return {
            "type": "object",
            "properties": {name: one(inner) for name, inner in entry.items()},
            "required": list(entry),
            "additionalProperties": False,
        }

    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Sallyport policy input",
        "type": "object",
        "properties": {name: fact(entry) for name, entry in SCHEMA.items()},
        "required": list(SCHEMA),
        "additionalProperties": False,
    }
