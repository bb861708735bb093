"""Read a log: filters, a line for people, a line for programs. Streams; nothing here verifies (see
`audit.verify`)."""

from __future__ import annotations

import fnmatch
import ipaddress
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from audit.entry import Entry, decode
from audit.errors import FormatError
from audit.layout import Layout, Segment, read_lines
from audit.report import when
from audit.terminal import escape, escape_json, quote

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_FOLLOW_PAUSE = 0.2


@dataclass(frozen=True)
class Filter:
    """What to show: every condition that is given must hold. Texts empty and None mean "any".

    `since`, `until`: wall time in ns, the second exclusive. `verdict` also matches a verdict that was only
    observed. `name`, `exe`, `rule`: shell patterns. `address`: either end of the flow. `first`, `last`:
    sequence numbers, both inclusive.
    """

    since: int | None = None
    until: int | None = None
    type: str = ""
    verdict: str = ""
    name: str = ""
    address: Network | None = None
    exe: str = ""
    rule: str = ""
    first: int = 0
    last: int | None = None

    def matches(self, entry: Entry) -> bool:
        if entry.seq < self.first or (self.last is not None and entry.seq > self.last):
            return False
        if (self.since is not None and entry.time_ns < self.since) or (
            self.until is not None and entry.time_ns >= self.until
        ):
            return False
        if self.type and entry.type != self.type:
            return False
        if not (self.verdict or self.name or self.address or self.exe or self.rule):
            return True
        ours = _inner(entry.ocsf, "unmapped")
        if self.verdict and self.verdict not in (ours.get("verdict"), ours.get("would")):
            return False
        if self.name and not fnmatch.fnmatchcase(server_name(entry), self.name.lower()):
            return False
        if self.exe and not fnmatch.fnmatchcase(executable(entry), self.exe):
            return False
        if self.rule and not any(fnmatch.fnmatchcase(rule, self.rule) for rule, _ in reasons(entry)):
            return False
        return self.address is None or any(_within(end, self.address) for end in endpoints(entry))


def _inner(value: Any, *path: str) -> dict[str, Any]:
    """Follow a path of objects; what is not one ends in an empty one. Lines may come from anybody's file."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ("" if value is None else str(value))


def server_name(entry: Entry) -> str:
    return _text(_inner(entry.ocsf, "dst_endpoint").get("hostname")).lower()


def _process(entry: Entry) -> dict[str, Any]:
    return _inner(entry.ocsf, "actor", "process") or _inner(entry.ocsf, "process")


def executable(entry: Entry) -> str:
    return _text(_inner(_process(entry), "file").get("path"))


def endpoints(entry: Entry) -> list[str]:
    return [_text(_inner(entry.ocsf, end).get("ip")) for end in ("src_endpoint", "dst_endpoint")]


def reasons(entry: Entry) -> list[tuple[str, str]]:
    given = _inner(entry.ocsf, "unmapped").get("reasons")
    found = given if isinstance(given, list) else []
    return [(_text(_inner(reason).get("rule")), _text(_inner(reason).get("message"))) for reason in found]


def _within(address: str, network: Network) -> bool:
    try:
        return ipaddress.ip_address(address) in network
    except ValueError:
        return False


def _read(segment: Segment, offset: int = 0) -> Iterator[tuple[bytes, Entry, int]]:
    """Yield (line, entry, offset after it) of the whole lines from `offset` on. Raise FormatError."""
    for line, whole in read_lines(segment.lines, offset=offset):
        if not whole:
            return
        try:
            entry = decode(line)
        except FormatError as error:
            raise FormatError(
                f"{segment.lines.name} at byte {offset}: {error.message}",
                hint="`sallyport audit verify` lists what is wrong.",
            ) from error
        offset += len(line) + 1
        yield line, entry, offset


def read(layout: Layout, chosen: Filter, *, limit: int | None = None) -> Iterator[tuple[bytes, Entry]]:
    """Yield the chosen entries, oldest first, with `limit` only the last so many. Raise FormatError,
    DiskError."""
    found = _chosen(layout, chosen)
    return found if limit is None else iter(deque(found, maxlen=limit))


def _chosen(layout: Layout, chosen: Filter) -> Iterator[tuple[bytes, Entry]]:
    segments = layout.segments()
    for segment, following in zip(segments, [*segments[1:], None], strict=True):
        if following is not None and following.first <= chosen.first:
            continue
        if chosen.last is not None and segment.first > chosen.last:
            return
        for line, entry, _ in _read(segment):
            if chosen.matches(entry):
                yield line, entry


def follow(
    layout: Layout, chosen: Filter, *, limit: int | None = None, pause: Callable[[float], None] = time.sleep
) -> Iterator[tuple[bytes, Entry]]:
    """Yield the chosen entries that are there (with `limit` the last so many), then each that is appended,
    for ever."""
    at: dict[int, int] = {}
    if limit is not None:
        recent: deque[tuple[bytes, Entry]] = deque(maxlen=limit)
        recent.extend(_appended(layout, chosen, at))
        yield from recent
    while True:
        yield from _appended(layout, chosen, at)
        pause(_FOLLOW_PAUSE)


def _appended(layout: Layout, chosen: Filter, at: dict[int, int]) -> Iterator[tuple[bytes, Entry]]:
    """Yield what came after `at` (segment: offset), and move `at` on."""
    for segment in layout.segments():
        if at and segment.first < max(at):
            continue
        for line, entry, offset in _read(segment, at.get(segment.first, 0)):
            at[segment.first] = offset
            if chosen.matches(entry):
                yield line, entry


def line_for_programs(line: bytes) -> str:
    """Return the stored line with dangerous characters as JSON escapes: the same values, safe on a
    terminal."""
    return escape_json(line.decode())


def line_for_people(entry: Entry) -> str:
    """Return one line that says what an entry says; everything that others chose is escaped."""
    parts = [when(entry.time_ns), str(entry.seq), escape(entry.type)]
    if entry.ocsf:
        parts += _network_parts(entry)
    else:
        parts += [f"{escape(key)}={quote(_text(value))}" for key, value in (entry.detail or {}).items()]
    return "  ".join(part for part in parts if part)


def _network_parts(entry: Entry) -> list[str]:
    ours = _inner(entry.ocsf, "unmapped")
    process = _process(entry)
    traffic = _inner(entry.ocsf, "traffic")
    parts = [_word(ours.get("event")), _word(ours.get("verdict"))]
    if ours.get("would"):
        parts.append(f"(would {_word(ours['would'])})")
    parts.append(_flow(entry))
    if server_name(entry):
        parts.append(quote(server_name(entry)))
    elif ours.get("name_state"):
        parts.append(f"name {_word(ours['name_state'])}")
    if process:
        parts.append(f"{quote(executable(entry) or _text(process.get('name')))} pid {_word(process.get('pid'))}")
        parts.append(f"uid {_word(_inner(process, 'user').get('uid', 'unknown'))}")
    parts += [f"{quote(rule)}: {quote(message)}" for rule, message in reasons(entry)]
    if traffic:
        parts.append(f"in {_word(traffic.get('bytes_in'))} out {_word(traffic.get('bytes_out'))} bytes")
    parts += [flag for flag in ("ech", "cached", "ignored", "failed") if ours.get(flag)]
    if ours.get("held_us"):
        parts.append(f"held {_word(ours['held_us'])} us")
    return parts


def _word(value: Any) -> str:
    return quote(_text(value)) if value is not None else ""


def _flow(entry: Entry) -> str:
    source, target = (_end(_inner(entry.ocsf, end)) for end in ("src_endpoint", "dst_endpoint"))
    if not target:
        return ""
    protocol = _word(_inner(entry.ocsf, "connection_info").get("protocol_name"))
    return f"{protocol} {source or '?'} -> {target}"


def _end(end: dict[str, Any]) -> str:
    address, port = escape(_text(end.get("ip"))), _word(end.get("port"))
    if not address:
        return ""
    shown = f"[{address}]" if ":" in address else address
    return f"{shown}:{port}" if port else shown
