"""The decision runtime on simulated maps: real gatekeeper, judge, force and orders; fake machine around them.

Everything that the runtime does to the machine stands in one list, `gate.calls`, so that a test can say what came
before what.
"""

from __future__ import annotations

import asyncio
import ipaddress
import selectors
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from engine.abi.numbers import Mode, Present
from engine.abi.records import Config, Identity, Process, Tuple
from engine.alerts.alert import Alert, Kind
from engine.config import Hold as HoldBounds
from engine.errors import EvaluatorError
from engine.model import net
from engine.model.decision import Decision, Reason, Stage, Verdict
from engine.model.facts import Cgroup, Facts, Host, Name, User
from engine.model.posture import Posture
from engine.policy.bundle import Bundle
from engine.policy.evaluator import Answer, Question, shared
from engine.policy.judge import Judge
from engine.policy.rule import Rule
from engine.policy.sources import SourceRules
from engine.ports import MapFullError
from engine.runtime.flows import FlowTable
from engine.runtime.force import Force, Numbering
from engine.runtime.gatekeeper import VNET_BYTES, Gatekeeper
from engine.runtime.identify import Identifier
from engine.runtime.identity import ExeRecord, Identities
from engine.runtime.orders import Orders
from engine.runtime.owners import Owners
from engine.runtime.sources import Sources
from engine.runtime.telling import Telling
from tests.support import captures
from tests.support.egress import NOBODY, Egress, Judged, Outcome, Socket, record
from tests.support.simulator import SimulatedGate
from tests.support.source_maps import SimulatedSources

T = TypeVar("T")
VNET = bytes(VNET_BYTES)
SERVER = captures.SERVER
NO_SOURCES = SourceRules()
NAME_RULE = Rule("names", "", frozenset({"name"}), "", effects=frozenset({Verdict.DENY}))


class Machine(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when there is nothing else to do, and then at once."""

    def __init__(self) -> None:
        self._skipped = 0.0
        super().__init__(_Impatient(self))

    def time(self) -> float:
        return super().time() + self._skipped

    def skip(self, seconds: float) -> None:
        self._skipped += seconds


class _Impatient(selectors.DefaultSelector):
    def __init__(self, loop: Machine) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout > 0:
            self._loop.skip(timeout)
            timeout = 0
        return super().select(timeout)


def run(awaitable: Coroutine[Any, Any, T]) -> T:
    """Run to the end in a loop of its own, without ever waiting."""
    loop = Machine()
    try:
        return loop.run_until_complete(awaitable)
    finally:
        loop.close()


class Spoken:
    """An evaluator that answers from a function. `gate` holds answers back until it is set."""

    name = "spoken"

    def __init__(self, say: Callable[[Question], Answer]) -> None:
        self.say = say
        self.asked: list[Question] = []
        self.roused: list[list[str]] = []
        self.hold: Awaitable[object] | None = None

    async def load(self, bundle: Bundle, rules: Sequence[Rule]) -> None:
        """Nothing to load."""

    def rouse(self, rules: Sequence[str]) -> None:
        self.roused.append(list(rules))

    async def evaluate(self, questions: Sequence[Question]) -> Sequence[Answer]:
        self.asked += questions
        if self.hold is not None:
            await self.hold
        return [shared(self.say(question)) for question in questions]

    async def close(self) -> None:
        """Nothing to close."""


class Broken(Spoken):
    def __init__(self) -> None:
        super().__init__(lambda _: Answer())

    async def evaluate(self, questions: Sequence[Question]) -> Sequence[Answer]:
        raise EvaluatorError("gone")


@dataclass
class FakePolicy:
    """What of a policy Force and Switch look at."""

    sources: SourceRules = NO_SOURCES
    inbound: Verdict | None = None
    closed: bool = False

    async def close(self) -> None:
        self.closed = True


class People(Identities):
    """Executables by process id, instead of /proc. `paths` may be changed as processes execute."""

    def __init__(self, paths: dict[int, str]) -> None:
        super().__init__()
        self.paths = paths

    def resolve(
        self, pid: int, tid: int, *, expected: int, exec_stamp: Callable[[int], int | None]
    ) -> ExeRecord | None:
        path = self.paths.get(pid)
        if path is None or exec_stamp(pid) != expected:
            return None
        for known in self.records():
            if known.path == path:
                return known
        made = ExeRecord(self.last_id + 1, path, 1, hash(path) & 0xFFFF, 1, 1)
        self.restore([made])
        return made


class _Cgroups:
    def lookup(self, cgroup_id: int, pid: int = 0) -> Cgroup:
        return Cgroup(f"/cgroup{cgroup_id}", f"unit{cgroup_id}.service") if cgroup_id else Cgroup()


class _Users:
    def lookup(self, uid: int) -> User:
        return User(uid, f"user{uid}")


@dataclass
class Diary:
    """A journal that keeps what it is told."""

    decisions: list[tuple[Facts, Decision, Stage, bool]] = field(default_factory=list)
    verdicts: list[tuple[Any, Name, tuple[Reason, ...]]] = field(default_factory=list)
    notes: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    sockets: list[Any] = field(default_factory=list)
    processes: list[tuple[Any, int]] = field(default_factory=list)
    failing: bool = False

    def note(self, kind: str, /, **detail: Any) -> None:
        self.notes.append((kind, detail))

    def decision(
        self, facts: Facts, decision: Decision, stage: Stage, *, observed: bool, held_ns: int, cookie: int
    ) -> None:
        self.decisions.append((facts, decision, stage, observed))

    def verdict(self, event: Any, name: Name, reasons: tuple[Reason, ...]) -> None:
        self.verdicts.append((event, name, reasons))

    def socket(self, event: Any) -> None:
        self.sockets.append(event)

    def process(self, event: Any, exe: int) -> None:
        self.processes.append((event, exe))


class Rig:
    """One engine. `say` answers every question of the policy; `listing` is what sock_diag would show."""

    def __init__(
        self,
        folder: Path,
        say: Callable[[Question], Answer] = lambda _: Answer(),
        *,
        rules: Sequence[Rule] = (NAME_RULE,),
        default: Verdict = Verdict.ALLOW,
        evaluator: Spoken | None = None,
        bounds: HoldBounds | None = None,
        posture: Posture | None = None,
        mode: Mode = Mode.ENFORCE,
        sizes: dict[str, int] | None = None,
        flows: int = 1000,
    ) -> None:
        self.gate = SimulatedGate(sizes)
        self.calls = self.gate.calls
        self.egress = Egress(self.gate)
        self.evaluator = evaluator or Spoken(say)
        self.rules, self.default = rules, default
        self.diary = Diary()
        self.alerts: list[Alert] = []
        self.full: list[MapFullError] = []
        self.listing: list[Any] = []
        self.released: list[bytes] = []
        self.delivered: list[bytes] = []
        self.cuts: list[tuple[Tuple, int]] = []
        self.paths = {1000 + number: f"/usr/bin/program{number}" for number in range(10)}
        self.people = People(self.paths)
        self.numbering = Numbering()
        self.posture = posture or Posture.default()
        self.mode = mode
        self.identifier = Identifier(
            self.gate, self.people, cast("Any", _Cgroups()), cast("Any", _Users()), Host("test"), {7: "eth0"}
        )
        self.orders = Orders(
            self.gate, folder / "orders.json", self.numbering, folder, self.set_present, self.people.records
        )
        self.gatekeeper = Gatekeeper(
            gate=self.gate, releaser=self, cutter=self, identifier=self.identifier,
            owners=Owners(lambda _: iter(self.listing), folder), journal=cast("Any", self.diary),
            alerts=cast("Any", self), flows=FlowTable(flows), bounds=bounds or HoldBounds(), posture=self.posture,
            orders=self.orders, force=self.force(1),
        )  # fmt: skip
        self.source_maps = SimulatedSources(self.calls, (sizes or {}).get("source_prefixes", 1 << 20))
        self.sources = Sources(
            self.source_maps,
            cast("Any", self.diary),
            self.alerts.append,
            lambda index: {7: "eth0"}[index],
            clock=self.gate.clock,
        )
        self.telling = Telling(self.gatekeeper, self.identifier, cast("Any", self.diary), self.orders.reason)
        self.set_present(Present(0))
        self.gatekeeper.force.begin()
        self.gate.set_generation(1)
        self._cookies = 0
        self.calls.clear()

    def force(self, number: int, evaluator: Spoken | None = None, **policy: Any) -> Force:
        judge = Judge(evaluator or self.evaluator, self.rules, self.default)
        return Force(number, cast("Any", FakePolicy(**policy)), judge, self.gate, self.numbering, self.full.append)

    def set_present(self, present: Present) -> None:
        self.gate.set_config(Config(self.mode, 9, int(present), 0, 4096, 2 * 10**9))

    # ---- the machine's side of it

    def release(self, interface: str, frame: bytes) -> bool:
        assert interface == "eth0"
        self.calls.append(("release", frame))
        self.released.append(frame)
        return True

    def deliver(self, ifindex: int, frame: bytes) -> bool:
        self.calls.append(("deliver", frame))
        self.delivered.append(frame)
        return True

    def destroy_peer(self, flow: Tuple) -> bool:
        self.calls.append(("destroy_peer", flow))
        return True

    def destroy(self, flow: Tuple, cookie: int, owner: int = 0) -> bool:
        self.calls.append(("cut", (flow, cookie)))
        self.cuts.append((flow, cookie))
        return True

    def submit(self, alert: Alert) -> None:
        self.alerts.append(alert)

    def client(self, *, tgid: int = 1001, sport: int = 40_000, stored: bool = True, **who: int) -> Client:
        self._cookies += 1
        identity = Identity(who.get("cgroup", 5), 77, tgid, tgid, who.get("uid", 1000), who.get("exe", 0))
        if tgid and stored and self.gate.process(tgid) is None:
            self.gate.put_process(tgid, Process(77, 0))
        return Client(self, Socket(self._cookies, identity if stored else NOBODY, stored), sport)

    async def settle(self) -> None:
        """Until nothing is being judged; timers do not fire."""
        await self.gatekeeper.settle()

    def tell(self) -> None:
        """Bring what the ring carries to the engine."""
        told, self.egress.told = self.egress.told, []
        for event in told:
            self.telling.record(record(event))

    def names(self, action: str) -> list[object]:
        return [argument for name, argument in self.calls if name == action]

    def kinds(self) -> list[Kind]:
        return [alert.kind for alert in self.alerts]


class Client:
    """A socket's traffic: what the gate holds goes to the engine."""

    def __init__(self, rig: Rig, socket: Socket, sport: int) -> None:
        self.rig = rig
        self.socket = socket
        self.sport = sport
        self.dst, self.dport = SERVER, 443
        self.isn = 1000

    @property
    def flow(self) -> Tuple:
        source, dest = (net.to_key(ipaddress.ip_address(one)) for one in (captures.CLIENT, self.dst))
        return Tuple(source, dest, self.sport, self.dport, 6)

    def tcp(self, payload: bytes = b"", *, at: int = 0, flags: int = captures.ACK, ident: int = 0) -> bytes:
        """Return a frame of the stream; `at`: offset of its payload's first byte."""
        seq = (self.isn + (0 if flags & captures.SYN else 1 + at)) & 0xFFFFFFFF
        segment = captures.tcp(self.sport, self.dport, payload, seq=seq, flags=flags)
        return captures.ethernet(captures.ipv4(6, segment, dst=self.dst, ident=ident))

    def syn(self, payload: bytes = b"") -> bytes:
        return self.tcp(payload, flags=captures.SYN)

    def udp(self, payload: bytes) -> bytes:
        return captures.ethernet(captures.ipv4(17, captures.udp(self.sport, self.dport, payload), dst=self.dst))

    def send(self, frame: bytes) -> Judged:
        """Let a frame leave; the gate decides, or the engine gets it."""
        judged = self.rig.egress.packet(self.socket, frame)
        if judged.outcome is Outcome.HOLD:
            self.rig.gatekeeper.frame(VNET + frame)
        return judged

    def reconnect(self, isn: int) -> None:
        """connect() on the same socket again: the hook resets its storage."""
        self.isn = isn
        socket = self.socket
        socket.verdict = socket.generation = socket.expires = socket.verdict_id = socket.flags = 0
        socket.connections += 1

    @property
    def sent(self) -> list[bytes]:
        """What the engine let go, without the virtio-net header."""
        return [frame[VNET_BYTES:] for frame in self.rig.released]


def deny_names(*denied: str) -> Callable[[Question], Answer]:
    """Return a policy of one rule: these names are denied, everything else is not spoken about."""

    def say(question: Question) -> Answer:
        name = question.input["name"]
        value = name["value"] if isinstance(name, dict) else name.value
        return Answer((f"{value} is denied",)) if value in denied else Answer()

    return say
