"""How many events a second come from the kernel into the signed log."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from engine.abi.numbers import Counter
from engine.lab.errors import LabError
from engine.lab.gate import Since
from tests.bench.figures import Row, at_least, median
from tests.bench.program import Program, last_cpu
from tests.bench.site import Site

METHOD = (
    "the engine is stopped (SIGSTOP) while a program of the guarded control group opens and closes 8,000 TCP "
    "connections on loopback, each two events in the ring that become entries (open, close); then it goes on "
    "(SIGCONT), and the clock runs until a signed head that is on the disk covers all 16,000 entries. ours: entries a "
    "second, median of five bursts; baseline: the audit log alone, fed with as many entries of the same kind by the "
    "same interpreter on the same disk, until its head covers them; spread: smallest and largest. 'lost': ring records "
    "and log entries lost in all bursts, of the number in the column baseline."
)
BURSTS = 5
_CONNECTIONS = 8000
_PER_CONNECTION = 2
_SECONDS = 30.0


def measure(site: Site, binary: Path, bursts: int = BURSTS) -> list[Row]:
    engine = int(site.gate.first_line.rpartition("pid ")[2])
    byte = site.work / "byte"
    byte.write_bytes(b"x")
    words = [str(binary), str(last_cpu()), str(site.client.path), "open", str(byte), "out"]
    storm = Program(site.bare, [*words, f"127.0.0.1:5501:{site.groups.plain}"])
    lost = Since(site.gate)
    entries = bursts * _CONNECTIONS * _PER_CONNECTION
    try:
        storm.ask("0 50")
        ours, alone = [], []
        before = _status_lost(site)
        for _ in range(bursts):
            ours.append(_burst(site, engine, storm))
            alone.append(_alone(site))
        dropped = lost.grown(Counter.LOST_EVENT) + _status_lost(site) - before
    finally:
        storm.close()
    rate, baseline = median(ours), median(alone)
    return [
        Row("events into the signed log", "entries/s", rate, baseline, rate / baseline, at_least(50_000.0), len(ours),
            (min(ours), max(ours))),
        Row("events into the signed log, lost", "entries", float(dropped), float(entries), dropped / entries, None,
            bursts),
    ]  # fmt: skip


def _status_lost(site: Site) -> int:
    return int(site.gate.status()["audit"]["lost"])


def _burst(site: Site, engine: int, storm: Program) -> float:
    log = site.plan.state / "audit" / "log"
    _settle(log)
    begin = durable(log)
    expected = _CONNECTIONS * _PER_CONNECTION
    os.kill(engine, signal.SIGSTOP)
    try:
        storm.ask(f"0 {_CONNECTIONS}")
    finally:
        began = time.monotonic()
        os.kill(engine, signal.SIGCONT)
    while durable(log) < begin + expected:
        if time.monotonic() - began > _SECONDS:
            raise LabError(f"The log has {durable(log) - begin} of {expected} entries after {_SECONDS:g} s")
        time.sleep(0.002)
    return expected / (time.monotonic() - began)


def _settle(log: Path) -> None:
    """Wait until what was before is in the log: its size rests for longer than a batch may wait."""
    size, since = durable(log), time.monotonic()
    while time.monotonic() - since < 0.2:
        time.sleep(0.01)
        if durable(log) != size:
            size, since = durable(log), time.monotonic()


def durable(log: Path) -> int:
    """The size that the newest signed head covers: the second line of its note (audit/FORMAT.md)."""
    for heads in sorted(log.glob("*.heads"), reverse=True):
        with heads.open("rb") as file:
            file.seek(max(0, heads.stat().st_size - 1024))
            notes = file.read().split(b"\n\xe2\x80\x94 ")
        if len(notes) > 1:
            return int(notes[-2].rstrip(b"\n").rsplit(b"\n", 2)[-2])
    return 0


def _alone(site: Site) -> float:
    folder = site.work / "alone"
    words = [sys.executable, "-m", "tests.bench.log_alone", str(folder), str(_CONNECTIONS * _PER_CONNECTION)]
    done = site.tools.run(words, seconds=60.0)
    if done.code != 0:
        raise LabError(f"The audit log alone: {done.last_words}")
    return float(done.out)
