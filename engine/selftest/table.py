"""The bypass table: for a terminal, for programs, for docs/bypass.md."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from engine.selftest.attempt import Outcome, Tried

_NAME, _OUTCOME, _LEAST = 36, 8, 100
_GAPS = 4
_MARKS = {Outcome.BLOCKED: "blocked", Outcome.SEEN: "**seen**", Outcome.OPEN: "**OPEN**", Outcome.NOT_HERE: "not here"}
_COLUMNS = ("attempt", "needs", "what it tries to get out", "result", "why")
_INTRODUCTION = """\
# Ways around the gate

What `sallyport selftest bypass` saw on **Linux {kernel}** ({machine}), version {version}. Do not edit: write it anew
with `sallyport selftest bypass --markdown > docs/bypass.md`.

Each attempt is made without a gate first, where it must get through, then twice against the gate: with nothing known,
and with verdicts standing. The judge is a capture on the far side of the wire, never the client's word. What needs no
privilege is made without any, but for the attempts that make files. What other kernels do: docs/kernels.md.

- **blocked**: nothing of it got through.
- **seen**: it got through, and the signed log has it with what tells it apart.
- **open**: it got through, and the log does not tell.
- **not here**: it does not get through without a gate either, so nothing is proved.

"""


def counts(done: Sequence[Tried]) -> dict[str, int]:
    """How many attempts came to each outcome."""
    return {outcome.value: sum(each.outcome is outcome for each in done) for outcome in Outcome}


def summary(done: Sequence[Tried]) -> str:
    return ", ".join(f"{number} {outcome}" for outcome, number in counts(done).items())


def line(tried: Tried, width: int) -> str:
    """One attempt that was just made."""
    told = f"{tried.attempt.name:{width}} {tried.outcome.value}"
    return told if tried.outcome is Outcome.BLOCKED else f"{told}\n  {tried.observed}"


def text(done: Sequence[Tried], columns: int) -> str:
    """Name, outcome, what it tries and why it came to that. `columns` is the width of the terminal."""
    room = max(columns, _LEAST) - _NAME - _OUTCOME - _GAPS
    rows = []
    for each in done:
        words = textwrap.wrap(f"{each.attempt.tries}. {each.reason}", room)
        rows.append(f"{each.attempt.name:{_NAME}}  {each.outcome.value:{_OUTCOME}}  {words[0]}")
        rows += [f"{'':{_NAME}}  {'':{_OUTCOME}}  {more}" for more in words[1:]]
    return "\n".join(rows)


def document(done: Sequence[Tried], kernel: str, machine: str, version: str) -> dict[str, Any]:
    """JSON-ready."""
    return {
        "kernel": kernel,
        "machine": machine,
        "version": version,
        "counts": counts(done),
        "attempts": [
            {
                "name": each.attempt.name,
                "tries": each.attempt.tries,
                "where": each.attempt.where.value,
                "needs": each.attempt.needs,
                "outcome": each.outcome.value,
                "reason": each.reason,
                "observed": each.observed,
            }
            for each in done
        ],
    }


def markdown(done: Sequence[Tried], kernel: str, machine: str, version: str) -> str:
    """A whole document, what is open first."""
    parts = [_INTRODUCTION.format(kernel=kernel, machine=machine, version=version), f"{summary(done)}.\n"]
    for outcome, title in (
        (Outcome.OPEN, "Open"),
        (Outcome.SEEN, "Seen"),
        (Outcome.NOT_HERE, "Not here"),
        (Outcome.BLOCKED, "Blocked"),
    ):
        chosen = [each for each in done if each.outcome is outcome]
        if chosen:
            parts.append(f"\n## {title}\n\n{_row(*_COLUMNS)}{'|---' * len(_COLUMNS)}|\n")
            parts += [
                _row(each.attempt.name, each.attempt.needs, each.attempt.tries, _MARKS[each.outcome], each.reason)
                for each in chosen
            ]
    return "".join(parts)


def _row(*cells: str) -> str:
    return "".join(map(row_start, cells)) + "|\n"


def row_start(cell: str) -> str:
    """Return a cell of the document's table, up to the bar that ends it."""
    return "| " + cell.replace("|", "\\|") + " "
