"""Bulk and short connections through the gate, by one thread (lane.c)."""

from __future__ import annotations

import random
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.lab.errors import LabError
from tests.bench.figures import Goal, Row, at_least, median, quartiles
from tests.bench.program import Program, last_cpu
from tests.bench.site import BARE, GUARDED, Site

METHOD = (
    "one thread, kept on one CPU, holds both ends of a connection (lane.c): what a packet costs on its way is then in "
    "its CPU time, soft interrupts included. CPU nanoseconds for an operation, the smaller of two tries in each of 300 "
    "rounds (connections: 200), all modes shuffled within every round. ours: median through the gate; baseline: median "
    "on the bare wire from outside of the control group; ratio: median over the rounds of bare by ours, which is "
    "throughput through the gate by bare throughput; spread: its quartiles. The rows 'bare against itself' take a "
    "second bare connection for ours: they say what a ratio is worth here."
)
CONNECTIONS = (
    " A connection: connect, a ClientHello of a known name one way, 1 byte back, close. 'set allow': 1 byte each way "
    "to an address that `verdict set` allows, where no payload is read."
)
ROUNDS = 300
CONNECTION_ROUNDS = 200


@dataclass(frozen=True)
class Lane:
    """One mode: where the server's end listens, and the client's control group."""

    mode: str
    address: str
    port: int
    cgroup: Path


def run_lanes(
    site: Site, binary: Path, pattern: Sequence[str], lanes: Sequence[Lane], count: int, rounds: int
) -> dict[str, list[float]]:
    """Return for each mode the CPU nanoseconds of one operation in each round."""
    words = [str(binary), str(last_cpu()), str(site.server.path), *pattern]
    words += [f"{lane.address}:{lane.port}:{lane.cgroup}" for lane in lanes]
    program = Program(site.bare, words)
    try:
        order = list(range(len(lanes)))
        rng = random.Random(11)
        best: dict[str, list[float]] = {lane.mode: [] for lane in lanes}
        for number in order:
            for _ in range(4):
                program.ask(f"{number} {count}")
        for _ in range(rounds):
            found: dict[int, float] = {}
            for _ in range(2):
                rng.shuffle(order)
                for number in order:
                    took = int(program.ask(f"{number} {count}")) / count
                    found[number] = min(took, found.get(number, took))
            for number, took in found.items():
                best[lanes[number].mode].append(took)
    finally:
        program.close()
    return best


def rows_of(name: str, unit: str, best: dict[str, list[float]], goal: Goal | None) -> list[Row]:
    """One row for each mode but "bare"; the goal is that of mode "gate"."""
    rows = []
    for mode, ours in best.items():
        if mode == "bare":
            continue
        ratios = [bare / mine for bare, mine in zip(best["bare"], ours, strict=True)]
        what = "bare against itself" if mode == "again" else ""
        rows.append(
            Row(
                f"{name}, {what}" if what else name, unit, median(ours), median(best["bare"]), median(ratios),
                None if what else goal, len(ratios), quartiles(ratios),
            )
        )  # fmt: skip
    return rows


def _lanes(site: Site, port: int, guarded: str = GUARDED) -> list[Lane]:
    return [
        Lane("gate", guarded, port, site.groups.plain),
        Lane("again", BARE, port + 1, site.bare_group),
        Lane("bare", BARE, port, site.bare_group),
    ]


def bulk(site: Site, binary: Path, loaded: str, port: int, rounds: int = ROUNDS) -> list[Row]:
    """`loaded`: what stands in the maps, for the rows' names; `port` and the following are used."""
    rows = []
    for offset, (name, size, way, count, goal) in enumerate(
        (
            ("bulk out, 64 KB writes", 65536, "out", 100, at_least(0.97, "ratio")),
            ("bulk in, 64 KB writes", 65536, "in", 100, None),
            ("single small segments, 1448 B writes", 1448, "out", 300, at_least(0.96, "ratio")),
        )
    ):
        lanes = _lanes(site, port + 10 * offset)
        best = run_lanes(site, binary, ["write", str(size), way], lanes, count, rounds)
        rows += rows_of(f"{name}, {loaded}", "ns CPU per write", best, goal)
    return rows


def short(site: Site, binary: Path, loaded: str, port: int, rounds: int = CONNECTION_ROUNDS) -> list[Row]:
    """As `bulk`, for connections."""
    goal = at_least(0.97, "ratio")
    hello = site.work / "hello"
    hello.write_bytes(client_hello("known.bench.example"))
    best = run_lanes(site, binary, ["open", str(hello), "out"], _lanes(site, port), 40, rounds)
    rows = rows_of(f"short connections, known name, {loaded}", "ns CPU per connection", best, goal)
    allowed = "198.18.0.9"
    done = site.gate.sallyport("verdict", "set", "--dest", f"{allowed}/32", "allow", "--reason", "benchmark")
    if done.code != 0:
        raise LabError(f"sallyport verdict set: {done.last_words}")
    byte = site.work / "byte"
    byte.write_bytes(b"x")
    best = run_lanes(site, binary, ["open", str(byte), "out"], _lanes(site, port + 10, allowed), 40, rounds)
    rows += rows_of(f"short connections, set allow, {loaded}", "ns CPU per connection", best, goal)
    site.gate.sallyport("verdict", "clear", "--dest", f"{allowed}/32")
    return rows


def client_hello(name: str) -> bytes:
    """The first flight of Python's own TLS client for a name."""
    sent = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    wrapped = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=name)
    try:
        wrapped.do_handshake()
    except ssl.SSLWantReadError:
        return sent.read()
    raise LabError("A handshake ended without a peer")
