"""What a person sees of a run: a line for each scenario as it is played, then the table."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from engine.lab.scenario import Result

_NAME, _EXPECTED, _LEAST = 34, 30, 100
_GAPS = 2 * 3 + 6


def line(result: Result, width: int) -> str:
    """One scenario that was just played; on a second line what was seen, when that was not as expected."""
    told = f"{result.name:{width}} {verdict(result):6} {result.milliseconds:6} ms"
    return told if result.passed else f"{told}\n  {result.observed}"


def verdict(result: Result) -> str:
    return "ok" if result.passed else "FAILED"


def table(results: Sequence[Result], columns: int) -> str:
    """Every scenario: expected, observed. `columns` is the width of the terminal."""
    seen = max(columns, _LEAST) - _NAME - _EXPECTED - _GAPS
    rows = [_row(("scenario", "expected", "observed", ""), seen)]
    rows.append("-" * (_NAME + _EXPECTED + seen + _GAPS))
    rows += [_row((each.name, each.expected, each.observed, verdict(each)), seen) for each in results]
    return "\n".join(rows)


def _row(cells: tuple[str, str, str, str], seen: int) -> str:
    name, expected, observed = (
        _wrapped(cell, width) for cell, width in zip(cells, (_NAME, _EXPECTED, seen), strict=False)
    )
    height = max(len(name), len(expected), len(observed))
    return "\n".join(
        f"{_at(name, index):{_NAME}}  {_at(expected, index):{_EXPECTED}}  {_at(observed, index):{seen}}  "
        f"{cells[3] if index == 0 else ''}".rstrip()
        for index in range(height)
    )


def _wrapped(text: str, width: int) -> list[str]:
    lines: list[str] = []
    for part in text.splitlines():
        lines += textwrap.wrap(part, width) or [""]
    return lines or [""]


def _at(lines: Sequence[str], index: int) -> str:
    return lines[index] if index < len(lines) else ""


def verified(document: Mapping[str, Any]) -> str:
    """The audit log's verification, from the report of `sallyport audit verify --json`."""
    words = "good" if document.get("ok") else "NOT GOOD"
    if "entries" not in document:
        return f"audit verify: {words}: {document.get('error', 'no answer')}"
    vouched = (document.get("vouched") or {}).get("size", 0)
    read = f"{document['entries']} entries, {document['heads']} signed heads, vouched for {vouched}"
    return "\n".join([f"audit verify: {words}; {read}", *(f"  {each}" for each in document.get("findings", []))])


def closing(results: Iterable[Result], seconds: float) -> str:
    """The last line: how many, how long."""
    results = list(results)
    passed = sum(each.passed for each in results)
    return f"{passed} of {len(results)} scenarios passed in {seconds:.1f} s"
