"""What a verification found, as values and as text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import msgspec

from audit.terminal import escape

MOST_FINDINGS = 1000
"""Kept in a report; the rest is counted. A file of garbage must not fill the memory."""

STEPS = {
    1: "key",
    2: "segments",
    3: "lines",
    4: "sequence",
    5: "time",
    6: "heads",
    7: "signatures",
    8: "roots",
    9: "tail",
    10: "external heads",
}
"""The numbers are those of FORMAT.md section 8."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. `code` is for programs; `place` is a file, or empty; `seq` where it is
    known."""

    step: int
    code: str
    message: str
    place: str = ""
    seq: int | None = None


@dataclass(frozen=True)
class Vouched:
    """The log is what it was when this was signed: `size` entries, the last one written at `time_ns` (0:
    unknown)."""

    size: int
    time_ns: int
    root: str


@dataclass
class Report:
    """The result of a verification. `count` is the number of findings, of which `findings` holds the
    first."""

    key: str
    key_from: str
    findings: list[Finding] = field(default_factory=list)
    count: int = 0
    segments: int = 0
    entries: int = 0
    heads: int = 0
    tail: int = 0
    lost: int = 0
    writing: bool = False
    vouched: Vouched | None = None
    external: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.count == 0

    def find(self, step: int, code: str, message: str, *, place: str = "", seq: int | None = None) -> None:
        self.count += 1
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(Finding(step, code, message, place, seq))

    def remark(self, text: str) -> None:
        if len(self.notes) < MOST_FINDINGS:
            self.notes.append(text)

    def document(self) -> dict[str, Any]:
        """Return the report as JSON-ready values."""
        said: dict[str, Any] = msgspec.to_builtins(self)
        return {"ok": self.ok} | said

    def text(self) -> Iterator[str]:
        """Yield the report's lines for a terminal."""
        yield f"key       {escape(self.key)} (from {escape(self.key_from)})"
        yield f"read      {self.entries} entries, {self.heads} heads, {self.segments} segments"
        for finding in self.findings:
            place = f" [{escape(finding.place)}]" if finding.place else ""
            yield f"FINDING   {STEPS[finding.step]}: {escape(finding.message)}{place}"
        if self.count > len(self.findings):
            yield f"FINDING   and {self.count - len(self.findings)} more"
        for remark in self.notes:
            yield f"note      {escape(remark)}"
        if self.lost:
            yield f"note      {self.lost} entries were lost before they could be written, as gap entries say"
        if self.vouched is None:
            yield "vouched   nothing"
        else:
            yield f"vouched   {self.vouched.size} entries, up to {when(self.vouched.time_ns)}"
        for sentence in self.unknown:
            yield f"unknown   {escape(sentence)}"
        yield "result    " + ("good" if self.ok else f"{self.count} findings")


def when(time_ns: int) -> str:
    """Return a wall clock time as RFC 3339 in UTC with microseconds; "unknown" outside of the years 1970 to
    9999."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    if not 0 < seconds < 253_402_300_800:
        return "unknown"
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest // 1000:06d}Z"
