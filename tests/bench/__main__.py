"""`python -m tests.bench [--quick]`: take every figure, print the table, write docs/bench.json and docs/benchmarks.md.

`--quick` takes every row with few rounds, to see that the benchmark works: it writes nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from engine.errors import SallyportError
from engine.lab.interruption import Interruption, interruptible
from engine.lab.place import ROOT
from tests.bench import connections, engine_cost, events, filling, iperf, programs, reload, throughput
from tests.bench.figures import Report, Row, write, write_table
from tests.bench.site import Site, open_site

OUTPUT = ROOT / "docs" / "bench.json"
DOCUMENT = ROOT / "docs" / "benchmarks.md"
ENTRIES = 10_000
WEIGHED = 100_000
"""Addresses of which the memory is taken: of 10,000 it is lost in what the rest of the machine does meanwhile."""
MANY = 500_000


def main(arguments: list[str]) -> int:
    quick = arguments == ["--quick"]
    if arguments and not quick:
        print("usage: python -m tests.bench [--quick]", file=sys.stderr)
        return 2
    began = time.monotonic()
    report = Report()
    try:
        with interruptible(), open_site() as site:
            for what, method, take in _rows(site, quick=quick):
                print(f"[{time.monotonic() - began:5.0f} s] {what}", file=sys.stderr, flush=True)
                report.add(method, take())
            print(f"[{time.monotonic() - began:5.0f} s] clearing up", file=sys.stderr, flush=True)
    except SallyportError as error:
        print(error.diagnostics(), file=sys.stderr)
        return error.exit_code
    except Interruption as interruption:
        print("bench: interrupted; everything is taken away", file=sys.stderr)
        return 128 + interruption.number
    print(report.table())
    if quick:
        return 0
    write(OUTPUT, report.document(time.monotonic() - began))
    write_table(DOCUMENT, report.markdown())
    missed = [row.name for row in report.rows if row.met is False]
    written = " and ".join(str(path.relative_to(ROOT)) for path in (OUTPUT, DOCUMENT))
    print(f"\n{written} are written. Goals missed: {', '.join(missed) or 'none'}.")
    return 0


def _rows(site: Site, *, quick: bool) -> Iterator[tuple[str, str, Callable[[], list[Row]]]]:
    """Yield (what it is about, method, what takes the rows), in an order in which none disturbs the next."""
    binary = site.compile("lane.c")

    def rounds(full: int, short: int) -> int:
        return short if quick else full

    def start() -> list[Row]:
        return engine_cost.start(site, rounds(engine_cost.STARTS, 2), rounds(engine_cost.FIRST_STARTS, 1))

    yield "start to enforcing", engine_cost.START, start
    yield "verifier", programs.VERIFIER, lambda: programs.verified(site)
    filled = _Filled(site)
    filled.names(ENTRIES)
    filled.addresses(ENTRIES)
    filling.look_there(site)
    yield "TLS connections", connections.METHOD, lambda: connections.measure(site, rounds(connections.ROUNDS, 60))
    yield "memory", engine_cost.MEMORY, lambda: engine_cost.memory(site)
    yield "events", events.METHOD, lambda: events.measure(site, binary, rounds(events.BURSTS, 1))
    port = 5301
    for names in (ENTRIES, rounds(MANY, 2 * ENTRIES)):
        filled.names(names)
        loaded = f"{names:,} names"
        each, many = rounds(throughput.CONNECTION_ROUNDS, 4), rounds(throughput.ROUNDS, 4)
        bulk = partial(throughput.bulk, site, binary, loaded, port, many)
        yield f"bulk, {loaded}", throughput.METHOD, bulk
        short = partial(throughput.short, site, binary, loaded, port + 50, each)
        yield f"short connections, {loaded}", throughput.METHOD + throughput.CONNECTIONS, short
        port += 100
    yield "memory of the maps", filling.METHOD, lambda: filled.rows(rounds(WEIGHED, 2 * ENTRIES))
    yield "iperf3", iperf.METHOD, lambda: iperf.measure(site, rounds(iperf.TURNS, 1))
    # Last, for an engine of its own: a policy of a thousand rules leaves its heap larger than a user's would be.
    site.gate.stop()
    site.gate.start()
    rules, edits = rounds(reload.RULES, 60), rounds(reload.EDITS, 3)
    yield f"reload of {rules:,} rules", reload.METHOD, lambda: reload.measure(site, rules, edits)
    yield "XDP", programs.XDP_METHOD, lambda: programs.sources(site, rounds(programs.PREFIXES, 20_000))


class _Filled:
    """How far the maps are filled, and what that took."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._maps: Path = site.gate.pins.maps
        self._names = self._name_bytes = self._addresses = 0

    def names(self, count: int) -> None:
        self._name_bytes += filling.names(self._site, self._names, count - self._names)
        self._names = count

    def addresses(self, count: int) -> int:
        took = filling.addresses(self._site, self._addresses, count - self._addresses)
        self._addresses = count
        return took

    def rows(self, addresses: int) -> list[Row]:
        more = addresses - self._addresses
        took = self.addresses(addresses)
        return [
            filling.row("name", self._maps / "name_verdicts", self._name_bytes, self._names),
            filling.row("address", self._maps / "destinations", took, more),
        ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
