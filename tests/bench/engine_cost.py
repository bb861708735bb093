"""What the engine itself takes: time to start, memory."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from engine.kernel import cache
from tests.bench.figures import Row, at_most, median
from tests.bench.site import Site

START = (
    "from before fork to the line that says that every program is attached, policy checked, tested and loaded. "
    "first: with no compiled kernel programs in the state directory; later: with them. baseline: the same "
    "interpreter that does nothing. spread: smallest and largest."
)
MEMORY = (
    "resident set (RSS) of the engine's process, and of it with its evaluator child (pages that both share are then "
    "counted twice), after the TLS rows, that is after some thousand decisions; MB = 10^6 bytes. baseline: a bare "
    "interpreter of the same version, once for each process. 'PSS': the same with shared pages counted by share."
)
STARTS = 7
FIRST_STARTS = 3


def start(site: Site, starts: int = STARTS, first: int = FIRST_STARTS) -> list[Row]:
    """Start and stop engines; the last one stays."""
    took: dict[str, list[float]] = {"first": [], "later": []}
    bare = []
    for number in range(first + starts):
        if number:
            site.gate.stop()
        which = "first" if number < first else "later"
        if which == "first":
            (site.plan.state / cache.NAME).unlink(missing_ok=True)
        began = time.monotonic()
        site.gate.start()
        took[which].append(time.monotonic() - began)
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        bare.append(time.monotonic() - began)
    baseline = median(bare)
    return [
        Row(f"start to enforcing, {which}", "s", median(each), baseline, median(each) / baseline, at_most(2.0),
            len(each), (min(each), max(each)))
        for which, each in took.items()
    ]  # fmt: skip


def memory(site: Site) -> list[Row]:
    engine = int(site.gate.first_line.rpartition("pid ")[2])
    children = _descendants(engine)
    idle = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        time.sleep(0.3)
        bare = {kind: _size(idle.pid, kind) for kind in ("Rss", "Pss")}
    finally:
        idle.communicate(b"\n")
    rows = []
    for kind in ("Rss", "Pss"):
        alone = _size(engine, kind)
        both = alone + sum(_size(child, kind) for child in children)
        with_goals = kind == "Rss"
        for name, ours, processes, goal in (
            ("engine memory", alone, 1, 60.0),
            ("engine memory with evaluator", both, 1 + len(children), 100.0),
        ):
            baseline = processes * bare[kind]
            rows.append(
                Row(
                    f"{name}, {kind.upper()}", "MB", ours / 1e6, baseline / 1e6, ours / baseline,
                    at_most(goal) if with_goals else None,
                )
            )  # fmt: skip
    return rows


def _descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *_descendants(int(child))]
    return found


def _size(pid: int, kind: str) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"smaps_rollup has no {kind}")
