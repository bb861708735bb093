"""The proofs: that this gate, on this kernel, denies, passes, holds, and goes on when the engine is gone.

Each is seen from three sides: what the client was told, what the kernel counted, what arrived at the server.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.abi.numbers import Counter
from engine.errors import SallyportError
from engine.lab.gate import Since
from engine.lab.interruption import interruptible
from engine.lab.scenario import Result, Sight
from engine.lab.topology import DENIED, DENIED6, SERVER, SERVER6
from engine.lab.waiting import until
from engine.selftest.attempt import Where
from engine.selftest.policy import ALLOWED_NAME, DENIED_SUFFIX
from engine.selftest.rig import FIRST_PORT, HELD, Rig, Through, open_rig

_PORTS = 12
_ABSENT_SECONDS = 20.0
"""Until the heartbeat is stale and TCP has sent again."""
_REFUSED = {"EPERM at connect", "ECONNABORTED at connect", "ECONNABORTED at hello"}


@dataclass(frozen=True)
class Proof:
    """`show` looks at the rig and notes what it sees."""

    name: str
    expected: str
    show: Callable[[Session, Sight], None]


class Session:
    """A rig, and one port after the other: what arrives at a port belongs to one question alone."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.client = rig.clients[Where.GUARDED]
        self.known = (f"{secrets.token_hex(8)}.{ALLOWED_NAME}", f"{secrets.token_hex(8)}.{DENIED_SUFFIX}")
        """A name that was allowed and one that was denied, once each has been."""
        self._ports: dict[str, int] = {}

    def port(self, what: str) -> int:
        """The port of one question: the same one whenever it is asked again."""
        return self._ports.setdefault(what, FIRST_PORT + len(self._ports))

    def call(self, address: str, port: int, name: str = "") -> str:
        """Connect, and send a hello with this name; return the error, or nothing."""
        word = str(self.client.ask("open", key="call", address=address, port=port)["word"])
        return word or str(self.client.ask("say", key="call", name=name, wait=bool(name))["word"])

    def through(self, port: int, name: str = "-") -> Through:
        return self.rig.through(port, name)

    def arrived(self, port: int, name: str) -> bool:
        return until(lambda: self.through(port, name).token)


def _bare(s: Session, saw: Sight) -> None:
    """Without it, a client that never works would look like a gate that denies well."""
    for label, address in (
        ("IPv4", SERVER), ("IPv6", SERVER6), ("the address to be denied", DENIED), ("and over IPv6", DENIED6),
    ):  # fmt: skip
        port = s.port(f"bare {label}")
        word = s.call(address, port, s.known[1])
        saw(not word and s.arrived(port, s.known[1]), f"{label}: {word or 'arrives'}")


def _started(s: Session, saw: Sight) -> None:
    line = s.rig.gate.start()
    saw(line.startswith("sallyport: enforce on "), line)
    status = s.rig.gate.status()
    saw(status["state"] == "healthy", f"status: {status['state']}")
    s.rig.witness.ask("forget")


def _denied(s: Session, saw: Sight) -> None:
    for label, address in (("IPv4", DENIED), ("IPv6", DENIED6)):
        port = s.port(f"denied {address}")
        since = Since(s.rig.gate)
        words = [s.call(address, port, s.known[1]) for _ in range(2)]
        s.rig.settle()
        saw(words[0] in _REFUSED, f"{label}: client: {words[0] or 'no error'}")
        saw(words[1] == "EPERM at connect", f"then {words[1] or 'no error'}")
        refused = since.grown(Counter.REFUSED_CONNECT)
        saw(refused == 1, f"kernel: refused_connect +{refused}")
        saw(s.through(port).bytes == 0, f"{s.through(port).bytes} bytes arrived")


def _allowed(s: Session, saw: Sight) -> None:
    port = s.port("allowed name")
    word = s.call(SERVER, port, s.known[0])
    saw(not word and s.arrived(port, s.known[0]), f"client: {word or 'answered'}")
    since = Since(s.rig.gate)
    word = s.call(SERVER, port, s.known[0])
    hits, held = since.grown(Counter.HIT_NAME), since.grown(*HELD)
    saw(not word and hits == 1 and held == 0, f"again: kernel: hit_name +{hits}, held +{held}")


def _denied_name(s: Session, saw: Sight) -> None:
    port = s.port("denied name")
    since = Since(s.rig.gate)
    words = [s.call(SERVER, port, s.known[1])]
    # The client hears of the end of its connection a moment before the name's verdict stands.
    s.rig.settle()
    words.append(s.call(SERVER, port, s.known[1]))
    s.rig.settle()
    saw(set(words) <= _REFUSED, f"client: {', then '.join(word or 'no error' for word in words)}")
    dropped = since.grown(Counter.DROPPED_NAME)
    saw(dropped >= 1, f"kernel: dropped_name +{dropped}")
    saw(s.through(port).bytes == 0, f"{s.through(port).bytes} bytes arrived")


def _held(s: Session, saw: Sight) -> None:
    port, name = s.port("held"), f"{secrets.token_hex(8)}.{ALLOWED_NAME}"
    word = s.client.ask("open", key="held", address=SERVER, port=port)["word"]
    saw(not word, f"connected: {word or 'yes'}")
    since = Since(s.rig.gate)
    with s.rig.frozen():
        s.client.tell("say", key="held", name=name)
        stopped = since.grows(*HELD, Counter.DROPPED_ENGINE_ABSENT)
        before = s.through(port)
        saw(stopped >= 1 and before.bytes == 0, f"no verdict yet: held +{stopped}, {before.bytes} bytes arrived")
    saw(s.arrived(port, name), f"then {s.through(port).bytes} bytes arrived")
    word = s.client.hear("say")["word"]
    saw(not word, f"client: {word or 'answered'}")


def _killed(s: Session, saw: Sight) -> None:
    s.rig.gate.kill()
    # A verdict stands for address and port: those of the proofs before.
    word = s.call(DENIED, s.port(f"denied {DENIED}"), s.known[1])
    saw(word == "EPERM at connect", f"the denied address: {word or 'no error'}")
    since = Since(s.rig.gate)
    word = s.call(SERVER, s.port("denied name"), s.known[1])
    dropped = since.grown(Counter.DROPPED_NAME)
    before = s.through(s.port("denied name")).bytes
    saw(dropped >= 1 and before == 0, f"the denied name: dropped_name +{dropped}, {before} bytes arrived")
    word = s.call(SERVER, s.port("allowed name"), s.known[0])
    saw(not word, f"the allowed name: {word or 'answered'}")
    since, port = Since(s.rig.gate), s.port("unseen")
    s.client.tell("open", key="unseen", address=SERVER, port=port)
    dropped = since.grows(Counter.DROPPED_ENGINE_ABSENT, seconds=_ABSENT_SECONDS)
    s.client.hear("open", 30.0)
    saw(dropped >= 1 and s.through(port).bytes == 0, f"the unseen: dropped_engine_absent +{dropped}")


PROOFS = (
    Proof("without a gate everything arrives", "all of it does", _bare),
    Proof("the engine starts", "one line once all is attached; healthy", _started),
    Proof("a denied connection is denied", "error at the client, counted, 0 bytes at the server", _denied),
    Proof("an allowed connection passes", "answered; known, with no engine in between", _allowed),
    Proof("a denied name is denied", "error at the client, counted, 0 bytes at the server", _denied_name),
    Proof("an unseen name is held", "0 bytes at the server before the verdict", _held),
    Proof("it holds with the engine killed", "what is decided stands, the unseen is dropped", _killed),
)


def run_proofs(*, begun: Callable[[str], None], told: Callable[[Result], None]) -> Sequence[Result]:
    """Show every proof and return what was seen. Interruption at SIGINT, SIGTERM or SIGHUP, once all is taken away."""
    results = []
    with interruptible(), open_rig(_PORTS, begun) as rig:
        session = Session(rig)
        for proof in PROOFS:
            results.append(_shown(proof, session))
            told(results[-1])
    return results


def _shown(proof: Proof, session: Session) -> Result:
    began = time.monotonic()
    saw = Sight()
    try:
        proof.show(session, saw)
    except SallyportError as error:
        saw(False, error.message)
    except Exception as error:  # noqa: BLE001 - a surprise in one proof must not hide the others
        saw(False, f"{type(error).__name__}: {error}")
    return Result(proof.name, proof.expected, saw.words, saw.passed, round(1000 * (time.monotonic() - began)))
