"""A figure with its baseline, its goal and its spread, and the report that they make."""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_RESAMPLES = 400


@dataclass(frozen=True)
class Goal:
    """`of` names the member of the row that is held against the bound."""

    of: str
    sign: str
    bound: float

    def __str__(self) -> str:
        return f"{self.of} {self.sign} {self.bound:g}"

    def met(self, ours: float | None, ratio: float | None) -> bool:
        value = ours if self.of == "ours" else ratio
        if value is None:
            return False
        return value <= self.bound if self.sign == "<=" else value >= self.bound


def at_most(bound: float) -> Goal:
    return Goal("ours", "<=", bound)


def at_least(bound: float, of: str = "ours") -> Goal:
    return Goal(of, ">=", bound)


@dataclass(frozen=True)
class Row:
    """`spread`: two values between which the figure moved in this run; what they are is the method's to say. `ours` is
    None where nothing could be measured, and `note` says why."""

    name: str
    unit: str
    ours: float | None
    baseline: float | None = None
    ratio: float | None = None
    goal: Goal | None = None
    n: int = 1
    spread: tuple[float, float] | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        return None if self.goal is None else self.goal.met(self.ours, self.ratio)

    def document(self) -> dict[str, Any]:
        spread = None if self.spread is None else [_short(value) for value in self.spread]
        return {
            "name": self.name, "unit": self.unit, "ours": _short(self.ours), "baseline": _short(self.baseline),
            "ratio": _short(self.ratio), "goal": None if self.goal is None else str(self.goal), "met": self.met,
            "n": self.n, "spread": spread, **({"note": self.note} if self.note else {}),
        }  # fmt: skip


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def quantile(values: Sequence[float], q: float) -> float:
    """Return the q-quantile by linear interpolation."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    return quantile(values, 0.25), quantile(values, 0.75)


def resampled(
    ours: Sequence[float], bare: Sequence[float], figure: Callable[[Sequence[float], Sequence[float]], float]
) -> tuple[float, float]:
    """Return what 90 % of a bootstrap's resamples of the rounds give for a figure."""
    rng = random.Random(1)
    values = []
    for _ in range(_RESAMPLES):
        chosen = rng.choices(range(len(ours)), k=len(ours))
        values.append(figure([ours[i] for i in chosen], [bare[i] for i in chosen]))
    return quantile(values, 0.05), quantile(values, 0.95)


@dataclass
class Report:
    """What one run found. `methods`: how the rows of a group were taken, in words."""

    rows: list[Row] = field(default_factory=list)
    methods: dict[str, str] = field(default_factory=dict)

    def add(self, method: str, rows: Sequence[Row]) -> None:
        for row in rows:
            self.rows.append(row)
            self.methods[row.name] = method

    def document(self, seconds: float) -> dict[str, Any]:
        header = {
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "seconds": round(seconds),
            "machine": asdict(Machine.here()), "methods": self.methods,
        }  # fmt: skip
        return {"header": header, "rows": [row.document() for row in self.rows]}

    def table(self) -> str:
        """The rows for people, in the order in which they were taken."""
        heads = ("figure", "ours", "baseline", "ratio", "goal", "met", "n", "spread")
        words = [heads, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[at]) for line in words) for at in range(len(heads))]
        lines = []
        for number, line in enumerate(words):
            left = [line[0].ljust(widths[0])]
            lines.append(
                "  ".join(left + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)])
            )
            if number == 0:
                lines.append("  ".join("-" * width for width in widths))
        return "\n".join(lines)

    def markdown(self) -> str:
        """The rows as the table of docs/benchmarks.md."""
        cells = [("figure", "ours", "baseline", "ratio", "goal", "met", "n", "spread"), ("---", *["--:"] * 7)]
        cells += [tuple(cell.replace("|", "\\|") for cell in _cells(row)) for row in self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _cells(row: Row) -> tuple[str, ...]:
    met = {True: "yes", False: "MISS", None: ""}[row.met]
    spread = "" if row.spread is None else f"{_said(row.spread[0])} .. {_said(row.spread[1])}"
    goal = "" if row.goal is None else str(row.goal)
    baseline = "" if row.baseline is None else _said(row.baseline)
    ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
    ours = row.note if row.ours is None else _said(row.ours)
    return (f"{row.name} [{row.unit}]", ours, baseline, ratio, goal, met, str(row.n), spread)


def _said(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


@dataclass(frozen=True)
class Machine:
    cpu: str
    cores: int
    memory_mib: int
    kernel: str
    system: str
    python: str
    bcc: str
    openssl: str
    load: float
    """Load average of the last minute, before the run. Above 0.3 a CPU the figures are a busy machine's."""

    @classmethod
    def here(cls) -> Machine:
        import ssl

        cpu = next(
            (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")), platform.machine(),
        )  # fmt: skip
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
        return cls(
            cpu, os.cpu_count() or 1, memory, platform.release(), _system(), platform.python_version(), _bcc(),
            ssl.OPENSSL_VERSION, LOAD,
        )  # fmt: skip


LOAD = os.getloadavg()[0]


def _system() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.split("=", 1)[1].strip('"')
    return platform.platform()


def _bcc() -> str:
    # Asked of another process: importing bcc costs 75 MiB, and this one is to stay small beside what it measures.
    words = [sys.executable, "-c", "import bcc; print(bcc.__version__)"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def write(path: Path, document: dict[str, Any]) -> None:
    """Write the report, owned by whoever owns the folder: this runs as root in a user's checkout."""
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    owner = path.parent.stat()
    os.chown(path, owner.st_uid, owner.st_gid)


MARKS = ("<!-- the figures of bench.json: written by `make bench` -->", "<!-- until here -->")


def write_table(path: Path, table: str) -> None:
    """Put a table between the marks of a document, in the place of the one before. ValueError without the marks."""
    text = path.read_text()
    head, begin, rest = text.partition(MARKS[0])
    _, end, tail = rest.partition(MARKS[1])
    if not begin or not end:
        raise ValueError(f"{path} has no place for the table")
    path.write_text(f"{head}{begin}\n\n{table}\n\n{end}{tail}")
    owner = path.parent.stat()
    os.chown(path, owner.st_uid, owner.st_gid)


median = statistics.median
