"""iperf3 through the gate, and through what else might stand there: nftables, Suricata."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from engine.lab.errors import LabError
from engine.lab.place import Place
from engine.lab.waiting import until
from tests.bench.figures import Row, median
from tests.bench.site import BARE, GUARDED, Site

PORT = 5201
TURNS = 6
_SECONDS = 2
_LISTED = 10_000
METHOD = (
    f"iperf3, one stream, {_SECONDS} s, {TURNS} turns of all modes in random order; information only: against itself "
    "(the row 'bare against itself') it is off by several percent on two CPUs. nftables: on the bare wire and for "
    f"its turn alone, an output chain that accepts what is established and drops a set of {_LISTED:,} addresses; it "
    "knows no names. Suricata: on the bare wire for its turn alone, inline by NFQUEUE, with no rule. ours and "
    "baseline: median Gbit/s; ratio: median over the turns; spread: smallest and largest ratio of a turn."
)
_Around = Callable[[], AbstractContextManager[object]]
_TABLE = """\
table inet bench {{
	set denied {{
		type ipv4_addr
		elements = {{ {elements} }}
	}}
	chain out {{
		type filter hook output priority 0; policy accept;
		ct state established,related accept
		ip daddr @denied drop
	}}
}}
"""


def measure(site: Site, turns: int = TURNS) -> list[Row]:
    modes: dict[str, tuple[Place, str, _Around]] = {
        "bare": (site.bare, BARE, nullcontext),
        "bare against itself": (site.bare, BARE, nullcontext),
        "Sallyport": (site.guarded, GUARDED, nullcontext),
    }
    others: list[tuple[str, tuple[str, ...], _Around]] = [
        ("nftables", ("nft",), partial(_nftables, site)),
        ("Suricata inline", ("suricata", "iptables-legacy"), partial(_suricata, site)),
    ]
    missing = []
    for name, needed, around in others:
        if all(shutil.which(program) for program in needed):
            modes[name] = (site.bare, BARE, around)
        else:
            missing.append(name)
    rates: dict[str, list[float]] = {mode: [] for mode in modes}
    rng = random.Random(13)
    order = list(modes)
    server = site.served.start(["iperf3", "--server", "--port", str(PORT)])
    try:
        for _ in range(turns):
            rng.shuffle(order)
            for mode in order:
                place, address, standing = modes[mode]
                with standing():
                    rates[mode].append(_once(place, address))
    finally:
        server.kill()
        server.communicate()
    rows = [_row(mode, rates[mode], rates["bare"]) for mode in modes if mode != "bare"]
    return rows + [Row(f"iperf3, {name}", "Gbit/s", None, n=0, note="not installed") for name in missing]


def _row(mode: str, ours: list[float], bare: list[float]) -> Row:
    ratios = [mine / plain for mine, plain in zip(ours, bare, strict=True)]
    return Row(
        f"iperf3, {mode}", "Gbit/s", median(ours), median(bare), median(ratios), None, len(ratios),
        (min(ratios), max(ratios)),
    )  # fmt: skip


@contextmanager
def _nftables(site: Site) -> Iterator[None]:
    rules = site.work / "bench.nft"
    elements = ", ".join(f"100.{64 + n // 62500}.{n // 250 % 250}.{1 + n % 250}" for n in range(_LISTED))
    rules.write_text(_TABLE.format(elements=elements))
    _do(site.bare, ["nft", "-f", str(rules)])
    try:
        yield
    finally:
        _do(site.bare, ["nft", "delete", "table", "inet", "bench"])


@contextmanager
def _suricata(site: Site) -> Iterator[None]:
    logs = site.work / "suricata"
    logs.mkdir(exist_ok=True)
    nothing = site.work / "no.rules"
    nothing.write_text("")
    engine = site.bare.start(["suricata", "-q", "0", "-S", str(nothing), "-l", str(logs), "--runmode", "workers"])
    match = ["OUTPUT", "-o", "bare0", "-p", "tcp", "--dport", str(PORT), "-j", "NFQUEUE", "--queue-num", "0"]
    try:
        if not until(lambda: "ngine started" in _read(logs / "suricata.log"), 30.0):
            raise LabError("Suricata does not start")
        _do(site.bare, ["iptables-legacy", "-I", *match])
        try:
            yield
        finally:
            _do(site.bare, ["iptables-legacy", "-D", *match])
    finally:
        engine.terminate()
        engine.communicate()


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _do(place: Place, words: list[str]) -> None:
    done = place.run(words, seconds=20.0)
    if done.code != 0:
        raise LabError(f"{words[0]}: {done.last_words}")


def _once(place: Place, address: str) -> float:
    words = ["iperf3", "--client", address, "--port", str(PORT), "--time", str(_SECONDS), "--json"]

    def sent() -> dict[str, Any]:
        # With --json it reports a refused connection and ends with 0: the server may not listen yet.
        done = place.run(words, seconds=20.0)
        return dict(json.loads(done.out or "{}").get("end", {}).get("sum_sent", {}))

    found = until(sent)
    if not found:
        raise LabError("iperf3 does not get through", hint="`make setup` installs it.")
    return float(found["bits_per_second"]) / 1e9
