"""`python -m tests.bench`: take every figure, print the table, write docs/bench.json."""

from __future__ import annotations

import sys
import time

from engine.errors import SallyportError
from engine.lab.interruption import Interruption, interruptible
from engine.lab.place import ROOT
from tests.bench import connections, engine_cost, events, throughput
from tests.bench.figures import Report, write
from tests.bench.site import open_site

OUTPUT = ROOT / "docs" / "bench.json"


def main() -> int:
    began = time.monotonic()
    report = Report()

    def say(what: str) -> None:
        print(f"[{time.monotonic() - began:5.0f} s] {what}", file=sys.stderr, flush=True)

    try:
        with interruptible(), open_site() as site:
            binary = site.compile("lane.c")
            say("start to enforcing")
            report.add(engine_cost.START, engine_cost.start(site))
            say("TLS connections")
            report.add(connections.METHOD, connections.measure(site))
            report.add(engine_cost.MEMORY, engine_cost.memory(site))
            say("bulk")
            report.add(throughput.METHOD, throughput.bulk(site, binary))
            say("short connections")
            report.add(throughput.METHOD + throughput.CONNECTIONS, throughput.short(site, binary))
            say("iperf3")
            report.add(throughput.IPERF, throughput.iperf(site))
            say("events")
            report.add(events.METHOD, events.measure(site, binary))
            say("clearing up")
    except SallyportError as error:
        print(error.diagnostics(), file=sys.stderr)
        return error.exit_code
    except Interruption as interruption:
        print("bench: interrupted; everything is taken away", file=sys.stderr)
        return 128 + interruption.number
    write(OUTPUT, report.document(time.monotonic() - began))
    print(report.table())
    missed = [row.name for row in report.rows if row.met is False]
    print(f"\n{OUTPUT.relative_to(ROOT)} is written. Goals missed: {', '.join(missed) or 'none'}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
