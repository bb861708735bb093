"""The bypass suite: every attempt without a gate, then against it, with the capture on the far side as the judge.

Without the gate first, because an attempt that never gets through would pass for one that is blocked. Against it
twice: with nothing known, when packets are held and the engine answers; and once more, when verdicts stand in the
kernel and it answers alone.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from engine.abi.numbers import Counter
from engine.lab.gate import Since
from engine.lab.interruption import interruptible
from engine.lab.log import Entry
from engine.lab.topology import CLIENT, DENIED, DEVICE, SERVER_DEVICE
from engine.lab.waiting import until
from engine.selftest.attempt import Attempt, Outcome, SelftestError, Tried, Where
from engine.selftest.policy import GHOST, QUIET
from engine.selftest.rig import FIRST_PORT, HELD, NOTHING, STOPPED, Rig, Through, open_rig

_ARRIVAL_SECONDS = 1.0
_LOG_SECONDS = 4.0


@dataclass
class _Try:
    """An attempt with what is its alone, and what it came to."""

    attempt: Attempt
    port: int
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    bare: str = ""
    """The client's word without a gate."""
    bare_through: Through = NOTHING

    @property
    def inward(self) -> bool:
        return self.attempt.where is Where.OPPOSITE

    def passed(self, through: Through) -> bool:
        return through.token or (self.attempt.whole and through.bytes > 0)


def run_bypass(
    attempts: Sequence[Attempt], *, begun: Callable[[str], None], told: Callable[[Tried], None]
) -> list[Tried]:
    """Make all attempts and return what came of each, in their order.

    `begun` hears the run's name before anything is made, `told` each result as soon as there is one. Interruption at
    SIGINT, SIGTERM or SIGHUP, once everything is taken away.
    """
    tries = [_Try(attempt, FIRST_PORT + 1 + at) for at, attempt in enumerate(attempts)]
    with interruptible(), open_rig(1 + len(tries), begun) as rig:
        rig.widen([each.port for each in tries if each.inward])
        for each in tries:
            each.bare = _make(rig, each)
            each.bare_through = until(partial(_arrival, rig, each), _ARRIVAL_SECONDS) or NOTHING
        for each in tries:
            # What got through without a gate must not be taken for what gets through with one.
            each.token = secrets.token_hex(8)
        for each in tries:
            if each.attempt.early:
                _ask(rig, each, "prepare")
        rig.forget()
        rig.gate.start()
        rig.settle()
        done = []
        for each in tries:
            done.append(_against(rig, each))
            told(done[-1])
        late = [_late(rig, each, tried) for each, tried in zip(tries, done, strict=True)]
        for before, after in zip(done, late, strict=True):
            if before is not after:
                told(after)
        return late


def _through(rig: Rig, each: _Try) -> Through:
    """The judge's word: of what goes out, the capture on the far side; of what comes in, who hears it here."""
    return rig.heard(each.port, each.token) if each.inward else rig.through(each.port, each.token)


def _arrival(rig: Rig, each: _Try) -> Through | None:
    through = _through(rig, each)
    return through if each.passed(through) else None


def _ask(rig: Rig, each: _Try, order: str) -> str:
    files = {"work": rig.plan.work, "listed": rig.listed, "unwanted": rig.unwanted}
    how = {"port": each.port, "token": each.token, **{key: str(path) for key, path in files.items()}}
    client = rig.clients[each.attempt.where]
    return str(client.ask(order, seconds=120.0, name=each.attempt.name, **how).get("word", ""))


def _make(rig: Rig, each: _Try, *, prepared: bool = False) -> str:
    """Make the attempt and return the client's word."""
    if each.attempt.peer:
        rig.witness.ask(
            "peer", device=SERVER_DEVICE, address=QUIET if each.attempt.deaf else GHOST, port=each.port, client=CLIENT,
            client_port=each.attempt.peer, client_mac=rig.mac(rig.net.client, DEVICE), deaf=each.attempt.deaf,
        )  # fmt: skip
    if each.attempt.called:
        rig.witness.ask(each.attempt.called, source=DENIED, address=CLIENT, port=each.port)
    try:
        if prepared:
            return str(rig.clients[each.attempt.where].ask("go", seconds=60.0, name=each.attempt.name)["word"])
        return _ask(rig, each, "attempt")
    finally:
        rig.witness.ask("alone")


def _against(rig: Rig, each: _Try) -> Tried:
    if not each.passed(each.bare_through):
        return Tried(each.attempt, Outcome.NOT_HERE, f"without a gate: {each.bare or 'nothing arrives'}")
    if not rig.gate.lives:
        raise SelftestError(f"The engine ended; its last words:\n{rig.gate.last_words()}")
    since = Since(rig.gate)
    turns = 1 if each.attempt.early else 2
    words = []
    for turn in range(turns):
        words.append(_make(rig, each, prepared=each.attempt.early and turn == 0) or "no error")
        rig.settle()
    moved = {counter: since.grown(counter) for counter in Counter}
    moved[Counter.HELD_DATAGRAM] -= turns  # those of settle()
    through = _through(rig, each)
    told = ", ".join(f"{counter.name.lower()} +{by}" for counter, by in moved.items() if by > 0)
    observed = f"client: {', then '.join(words)}; {told or 'no counter moved'}; {through.bytes} bytes arrived"
    if not each.passed(through):
        # Nothing arrived, and the gate had no part in it: then it is not the gate's doing.
        ours = any(moved[counter] > 0 for counter in (*STOPPED, *HELD))
        return Tried(each.attempt, Outcome.BLOCKED if ours else Outcome.NOT_HERE, observed)
    observed += ", the token among them" if through.token else ""
    tells = each.attempt.tells
    if tells is not None and until(lambda: any(map(tells, _entries(rig, each))), _LOG_SECONDS):
        return Tried(each.attempt, Outcome.SEEN, f"{observed}; the log has it")
    return Tried(each.attempt, Outcome.OPEN, f"{observed}; {len(_entries(rig, each))} entries in the log do not tell")


def _entries(rig: Rig, each: _Try) -> list[Entry]:
    """What the log has about the attempt's port, at whichever end it is."""
    return [entry for entry in rig.gate.entries() if each.port in (entry.port, entry.source_port)]


def _late(rig: Rig, each: _Try, tried: Tried) -> Tried:
    """Look once more at the end of all: did something come through after it was judged?"""
    if tried.outcome is not Outcome.BLOCKED or not each.passed(through := _through(rig, each)):
        return tried
    return replace(tried, outcome=Outcome.OPEN, observed=f"{tried.observed}; later {through.bytes} bytes arrived")
