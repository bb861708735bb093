"""Kill a writer with SIGKILL again and again; say whether anything that it had acknowledged is gone.

By hand: PYTHONPATH=. python tests/unit/audit/killing.py DIR TIMES [SEED]
"""

from __future__ import annotations

import os
import random
import signal
import struct
import sys
from pathlib import Path
from typing import NoReturn

import msgspec

from audit.checkpoint import Head
from audit.entry import decode, note
from audit.layout import Layout, read_lines
from audit.log import AuditLog, Limits
from audit.verify import verify

# Small batches and segments: most of the time goes into writing and rotating, which is where a kill should hit.
LIMITS = Limits(batch_seconds=0.0, segment_bytes=4_000)


def write(state_dir: Path, run: int, pipe: int) -> NoReturn:
    """Append without end; tell each acknowledged size through the pipe."""
    log = AuditLog.open(state_dir, limits=LIMITS)

    def tell(head: Head) -> None:
        os.write(pipe, struct.pack("<Q", head.size))

    log.on_durable(tell)
    os.write(pipe, struct.pack("<Q", log.state.durable))
    number = 0
    while True:
        seq = log.append(note("command", run=run, number=number))
        number += 1
        if seq is not None and number % 5 == 0:
            log.wait(seq)


def kill_one(state_dir: Path, run: int, chance: random.Random) -> int:
    """Run a writer, kill it after some acknowledgements, return the largest size that it acknowledged."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            write(state_dir, run, writing)
        finally:
            os._exit(1)
    os.close(writing)
    acknowledged = 0
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        wanted = chance.randrange(0, 25)
        while wanted and (data := pipe.read(8)):
            acknowledged = struct.unpack("<Q", data)[0]
            wanted -= 1
        spin = chance.randrange(0, 20_000)  # some way into the next batch
        while spin:
            spin -= 1
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while data := pipe.read(8):
            acknowledged = struct.unpack("<Q", data)[0]
    return acknowledged


def check_runs(state_dir: Path) -> str:
    """Return what is wrong with the kept entries: each run's numbers go up by one from 0."""
    following: dict[int, int] = {}
    for segment in Layout(state_dir).segments():
        for line, _ in read_lines(segment.lines):
            entry = decode(line)
            if entry.type == "command" and entry.detail:
                run, number = entry.detail["run"], entry.detail["number"]
                if number != following.get(run, 0):
                    return f"run {run}: {number} follows {following.get(run, 0) - 1}"
                following[run] = number + 1
    return "" if following else "no entries at all"


def main() -> int:
    state_dir, times = Path(sys.argv[1]), int(sys.argv[2])
    chance = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 1)
    lost = adopted = cut = 0
    kept = 0
    for run in range(times):
        acknowledged = kill_one(state_dir, run, chance)
        log = AuditLog.open(state_dir, thread=False, limits=LIMITS)
        recovery = log._store.recovery
        kept = log._store.size
        lost += kept < acknowledged
        adopted += recovery.get("adopted", 0) > 0
        cut += recovery.get("cut_bytes", 0) > 0
        log.close()
    report = verify(state_dir)
    said = {
        "kills": times,
        "runs_that_lost_an_acknowledged_entry": lost,
        "entries": report.entries,
        "segments": report.segments,
        "recoveries_with_adopted_lines": adopted,
        "recoveries_with_torn_lines": cut,
        "order": check_runs(state_dir),
        "verified": report.ok,
        "findings": [finding.message for finding in report.findings[:5]],
    }
    print(msgspec.json.encode(said).decode())
    return 0 if report.ok and not lost and not said["order"] else 1


if __name__ == "__main__":
    sys.exit(main())
