"""What the gate adds to a TLS connection."""

from __future__ import annotations

import random
import secrets
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from engine.abi.numbers import Counter
from engine.lab.errors import LabError
from engine.lab.gate import Since
from tests.bench.figures import Row, at_most, quantile, resampled
from tests.bench.program import Program
from tests.bench.site import BARE, DENIED_SUFFIX, GUARDED, Site

METHOD = (
    "connect + TLS 1.3 handshake + 1 byte from the server, timed by the client; Python's ssl on both ends, each mode "
    "a client process of its own, all modes shuffled within every round, one connection at a time. Policy: the "
    "starter library, default allow. unseen: a name never used before, at an address that has been used; the policy "
    "is asked while the hello is held. new address: neither the name nor the address was used before, so the first "
    "packet is held too. known: the same name each time, decided by the kernel. ours: quantile through the gate less "
    "that of the bare wire from outside of the control group; baseline: the bare quantile; ratio: the one by the "
    "other; spread: 90 % of 400 resamples of the rounds. The control is a second bare client. 'payload at the "
    "server': bytes of TCP payload that a capture (AF_PACKET) at the server's end of the guarded wire sees of "
    "connections whose unseen name the policy denies, half a second of retransmissions included; baseline: of as "
    "many that it allows, in the same way."
)
ROUNDS = 1500
_WARM = 30
_DENIED = 200
_RETRANSMITTED = 0.5
"""Seconds in which a hello that was dropped in silence would have come again."""
_PORT = 4433
_KNOWN = "known-0123456789ab.bench.example"
_ENDS = str(Path(__file__).with_name("tls_ends.py"))


def fresh_name() -> str:
    return f"fresh-{secrets.token_hex(6)}.bench.example"


class Addresses:
    """Addresses of the guarded wire, each once."""

    def __init__(self) -> None:
        self._next = 0

    def fresh(self) -> str:
        self._next += 1
        return f"198.18.{1 + self._next // 250}.{1 + self._next % 250}"


def measure(site: Site, rounds: int = ROUNDS) -> list[Row]:
    addresses = Addresses()
    with ExitStack() as parts:
        words = [sys.executable, "-I", "-S", _ENDS]
        server = Program(
            site.served, [*words, "serve", str(_PORT), str(site.work / "server.pem"), str(site.work / "server.key")]
        )
        parts.callback(server.close)
        server.hear()
        places = {"bare": site.bare, "again": site.bare} | dict.fromkeys(("known", "unseen", "new"), site.guarded)
        clients = {mode: Program(place, [*words, "connect"]) for mode, place in places.items()}
        for client in clients.values():
            parts.callback(client.close)

        def once(mode: str) -> int:
            address = {"bare": BARE, "again": BARE, "new": addresses.fresh()}.get(mode, GUARDED)
            name = _KNOWN if mode == "known" else fresh_name()
            answer = clients[mode].ask(f"{address} {_PORT} {name}")
            if not answer.isdigit():
                raise LabError(f"A TLS connection ({mode}) failed: {answer}")
            return int(answer)

        for _ in range(_WARM):
            for mode in clients:
                once(mode)
        rng = random.Random(7)
        times: dict[str, list[int]] = {mode: [] for mode in clients}
        order = list(clients)
        moved = Since(site.gate)
        for _ in range(rounds):
            rng.shuffle(order)
            for mode in order:
                times[mode].append(once(mode))
        _prove(moved, rounds)
        leaked = _leaked(site, clients["unseen"])
    rows = _rows("TLS, unseen name", times["unseen"], times["bare"], (1000.0, 5000.0))
    rows += _rows("TLS, unseen name at a new address", times["new"], times["bare"], (1000.0, 5000.0))
    rows += _rows("TLS, known name", times["known"], times["bare"], (50.0, None))
    return [*rows, *_rows("TLS, bare against itself", times["again"], times["bare"], (None, None)), leaked]


def _leaked(site: Site, client: Program) -> Row:
    """Try names that the policy denies and that nobody asked for before; a capture at the server's device counts."""
    words = [sys.executable, "-I", "-S", str(Path(__file__).with_name("sniff.py")), "gate1", str(_PORT)]
    sniff = Program(site.served, words)
    try:
        sniff.hear()
        for _ in range(_DENIED):
            name = f"{secrets.token_hex(6)}.{DENIED_SUFFIX}"
            answer = client.ask(f"{GUARDED} {_PORT} {name}")
            if answer.isdigit():
                raise LabError(f"{name} is denied and was reached")
        time.sleep(_RETRANSMITTED)
        leaked, segments = map(int, sniff.ask("now").split())
        if segments < _DENIED:
            raise LabError(f"The capture saw {segments} segments of {_DENIED} connections: it sees nothing")
        for _ in range(_DENIED):
            client.ask(f"{GUARDED} {_PORT} {fresh_name()}")
        allowed, _ = map(int, sniff.ask("now").split())
        if allowed < 100 * _DENIED:
            raise LabError(f"The capture saw {allowed} bytes of {_DENIED} allowed connections: it misses some")
    finally:
        sniff.close()
    return Row(
        "TLS, unseen names that are denied: payload at the server", "B", float(leaked), float(allowed), None,
        at_most(0.0), _DENIED,
    )  # fmt: skip


def _prove(moved: Since, rounds: int) -> None:
    """The modes did what they say: counters of the kernel tell who was held and who was not."""
    held, hit = moved.grown(Counter.HELD_PAYLOAD), moved.grown(Counter.HIT_NAME)
    # A hello that is sent again while it is held counts twice; a known name that was held would make it three.
    if not 2 * rounds <= held <= 2.3 * rounds or hit < 0.95 * rounds:
        raise LabError(f"{rounds} rounds held {held} hellos and found {hit} names, not {2 * rounds} and {rounds}")


def _rows(name: str, ours: Sequence[int], bare: Sequence[int], goals: tuple[float | None, float | None]) -> list[Row]:
    rows = []
    for q, word, goal in ((0.5, "p50", goals[0]), (0.99, "p99", goals[1])):

        def added(a: Sequence[float], b: Sequence[float], q: float = q) -> float:
            return quantile(a, q) - quantile(b, q)

        low, high = resampled(ours, bare, added)
        rows.append(
            Row(
                f"{name}: added {word}", "us", added(ours, bare) / 1000, quantile(bare, q) / 1000,
                quantile(ours, q) / quantile(bare, q), at_most(goal) if goal else None, len(ours),
                (low / 1000, high / 1000),
            )
        )  # fmt: skip
    return rows
