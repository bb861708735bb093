"""Whatever decides a flow, the kernel by a standing entry or the engine while it waits, says what the policy says.

Random small rule tables over every fact that a key can hold and some that none can; random flows, many of them alike,
through the gatekeeper and the model of the gate. The expected verdict comes from the policy asked afresh about that
very flow. So an entry that reaches further than its facts shows up as a flow with another one's verdict.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.abi.numbers import KernelVerdict
from engine.abi.records import Held
from engine.config import Mode
from engine.model.decision import Stage, Verdict
from engine.model.facts import Event, NameState
from engine.model.posture import Condition, Posture, Stance
from engine.policy.evaluator import Answer, Question
from engine.policy.judge import Judge
from engine.policy.rule import Rule
from engine.protocols import packet as packets
from engine.protocols.quic import InitialAssembler
from engine.protocols.records import HelloAssembler
from engine.protocols.tls import HelloReading, stated
from engine.runtime.entries import KERNEL_VERDICTS
from engine.runtime.hearing import now
from engine.runtime.reload import Switch
from tests.support import hello as build
from tests.support import initials
from tests.support.egress import Outcome, kernel_name
from tests.support.rig import Client, Rig, Spoken, run

EFFECTS = (Verdict.DENY, Verdict.REJECT, Verdict.ALLOW)
FACTS = ("dest", "exe", "cgroup", "user", "name", "process", "hello", "event", "source", "host", "direction")
KEPT = ("dest", "exe", "cgroup", "user", "name", "host")
"""What a kernel key holds; one rule at least reads the name."""
IN_PROGRESS = tuple(fact for fact in FACTS if fact not in ("event", "hello"))
"""Without what a flow in progress shows differently: it is late, and of a hello that the kernel read only the name is
known."""
UNSEEN = stated(NameState.UNSEEN, "it went by")
OPEN = Posture.default().with_changes(dict.fromkeys(Condition, Stance.OPEN))
LONG = ".".join(["n" * 50] * 4)
HELLOS = {
    "a": build.client_hello("a.example", alpn=("h2",)),
    "b": build.client_hello("b.example"),
    "A": build.client_hello("A.EXAMPLE", alpn=("h2",)),
    "a, dot": build.client_hello("a.example."),
    "a, ECH": build.client_hello("a.example", ech=True),
    "long": build.client_hello(LONG),
    "no name": build.client_hello(None),
    "in records": build.client_hello("a.example", records=2),
    "not TLS": b"GET / HTTP/1.1\r\n\r\n",
}
QUIC = {
    "a": [initials.initial(initials.crypto(0, build.handshake("a.example", alpn=("h3",))))],
    "b": initials.flight(build.handshake("b.example", alpn=("h3",), size=1700), (900,)),
    "not QUIC": [b"\x01\x02query"],
}
assert len(LONG) > 199


@dataclass(frozen=True)
class Table:
    """A rule whose answers are drawn, once and for all, from the values of the facts that it may read."""

    rule: Rule
    seed: int
    odds: float
    ttl: float | None

    def answer(self, question: Question) -> Answer:
        target: bool | None = None
        if self.rule.target_scope is not None:
            target = self._chance(question, self.rule.target_scope, "target") < 0.6
            if not target or question.only_target:
                return Answer(target=target)
        said = {
            effect: ("said",)
            for effect in EFFECTS
            if effect in self.rule.effects and self._chance(question, self.rule.scope, effect.value) < self.odds
        }
        return Answer(
            said.get(Verdict.DENY, ()), said.get(Verdict.REJECT, ()), said.get(Verdict.ALLOW, ()), target, self.ttl
        )

    def _chance(self, question: Question, scope: frozenset[str], what: str) -> float:
        facts = [(fact, question.input[fact]) for fact in sorted(scope)]
        return random.Random(f"{self.seed} {what} {facts}").random()


def draw_tables(chance: random.Random, facts: tuple[str, ...]) -> list[Table]:
    found = []
    if chance.random() < 0.7:
        # Only then are verdicts kept for others at all.
        facts = KEPT
    for number in range(chance.randint(1, 4)):
        scope = frozenset(chance.sample(facts, chance.randint(1, 3)))
        if facts is KEPT and not number:
            scope |= {"name"}
        target = frozenset(chance.sample(sorted(scope), chance.randint(1, len(scope))))
        effects = frozenset(chance.sample(EFFECTS, chance.choice([1, 1, 1, 2, 3])))
        rule = Rule(
            f"r{number}", "", scope, "", target_scope=target if chance.random() < 0.5 else None, effects=effects
        )
        found.append(Table(rule, chance.getrandbits(48), chance.choice([0.1, 0.3, 0.6]), chance.choice([None, 30.0])))
    return found


@dataclass(frozen=True)
class Progress:
    """A connection that passed; `reading` None: allowed at connect, so nothing was read of it."""

    client: Client
    sent: int
    reading: HelloReading | None


class World:
    """One engine, its policy, and what becomes of the flows through it."""

    def __init__(self, folder: Path, chance: random.Random, facts: tuple[str, ...] = FACTS) -> None:
        self.chance = chance
        self.default = chance.choice(EFFECTS)
        self.tables = draw_tables(chance, facts)
        rules = [table.rule for table in self.tables]
        self.rig = Rig(folder, rules=rules, default=self.default, evaluator=self.evaluator(), posture=OPEN)
        self.by_entry = 0

    def evaluator(self) -> Spoken:
        by_name = {table.rule.name: table for table in self.tables}
        return Spoken(lambda question: by_name[question.rule].answer(question))

    def client(self, *, stored: bool = True) -> Client:
        chance = self.chance
        # 1009 has no executable that anybody could find: it ended, or hides.
        self.rig.paths.pop(1009, None)
        client = self.rig.client(
            tgid=chance.choice([1001, 1002, 1009]) if stored else 0, sport=chance.choice([40_000, 40_001]),
            stored=stored, cgroup=chance.choice([0, 5, 6]), uid=chance.choice([0, 1000]),
        )  # fmt: skip
        client.dst = chance.choice(["198.51.100.20", "198.51.100.21"])
        client.dport = chance.choice([443, 443, 8443])
        return client

    async def policy(self, client: Client, event: Event, reading: HelloReading | None = None) -> Verdict:
        """Ask the policy about this very flow, with no memory and no entries."""
        socket = client.socket
        held = Held(socket.identity, socket.cookie, 0, self.rig.egress.ifindex, 1, 0, 0, 0, 0, 0)
        transport = packets.UDP if event is Event.DATAGRAM else packets.TCP
        facts = await self.rig.identifier.facts(
            event, client.flow._replace(transport=transport), held, self.rig.identifier.executable(held.identity),
            now(), name=reading.name if reading else None, hello=reading.hello() if reading and reading.whole else None,
        )  # fmt: skip
        judge = Judge(self.evaluator(), self.rig.rules, self.default)
        stage = Stage.CONNECT if event is Event.CONNECT else Stage.PAYLOAD
        return (await judge.decide(facts, stage, now=now())).verdict

    async def tcp(self, kind: str) -> Progress | None:
        """Play one connection. Return it if it passed: how far it came, and what was read of it."""
        client, payload = self.client(), HELLOS[kind]
        verdict = await self.policy(client, Event.CONNECT)
        await self.packet(client, client.syn(), verdict)
        if verdict in (Verdict.DENY, Verdict.REJECT):
            return None
        reading = HelloAssembler().feed(payload) if verdict is Verdict.UNDECIDED else None
        pieces = [payload] if self.chance.random() < 0.7 else [payload[:9], payload[9:]]
        if reading is not None:
            verdict = await self.policy(client, Event.PAYLOAD, reading)
        for piece in pieces[:-1]:
            client.send(client.tcp(piece))
        final = client.tcp(pieces[-1], at=len(payload) - len(pieces[-1]))
        await self.packet(client, final, verdict, kernel_name(payload) if len(pieces) == 1 else b"")
        await self.packet(client, client.tcp(b"more", at=len(payload)), verdict)
        return Progress(client, len(payload) + 4, reading) if verdict.passes else None

    async def switch(self) -> None:
        """Another policy comes into force."""
        gatekeeper = self.rig.gatekeeper
        self.tables = draw_tables(self.chance, IN_PROGRESS)
        self.default = self.rig.default = self.chance.choice(EFFECTS)
        self.rig.rules = [table.rule for table in self.tables]
        force = self.rig.force(gatekeeper.force.number + 1, self.evaluator())
        await Switch(self.rig.gate, gatekeeper, self.rig.identifier, self.rig.sources, Mode.ENFORCE).to(force)

    async def goes_on(self, one: Progress) -> None:
        """A flow that passed under the old policy sends again: the new one decides, by what the flow began with."""
        verdict = await self.policy(one.client, Event.CONNECT)
        if verdict is Verdict.UNDECIDED:
            verdict = await self.policy(one.client, Event.PAYLOAD if one.reading else Event.LATE, one.reading or UNSEEN)
        # A hello that the new policy would let pass, in the middle of a stream that it may not.
        await self.packet(one.client, one.client.tcp(HELLOS["a"], at=one.sent), verdict)

    async def udp(self, kind: str) -> None:
        client = self.client(stored=self.chance.random() < 0.8)
        datagrams, assembler = QUIC[kind], InitialAssembler()
        reading = [assembler.feed(datagram) for datagram in datagrams][-1]
        verdict = await self.policy(client, Event.DATAGRAM, reading)
        for datagram in datagrams[:-1]:
            client.send(client.udp(datagram))
        for datagram in (datagrams[-1], b"\x40" + bytes(50), datagrams[-1]):
            await self.packet(client, client.udp(datagram), verdict)

    async def packet(self, client: Client, frame: bytes, verdict: Verdict, name: bytes = b"") -> None:
        """Send a packet that the policy has this word for."""
        rig, kernel = self.rig, KERNEL_VERDICTS[verdict]
        judged = client.send(frame)
        await rig.settle()
        rig.tell()
        if judged.entry is not None:
            self.by_entry += 1
            assert judged.entry.verdict == kernel, (judged, verdict)
        # Everything that this packet could have met says the same, in whatever order the gate looks.
        who = client.socket.identity if client.socket.stored else None
        flow = client.flow if frame[23] == packets.TCP else client.flow._replace(transport=packets.UDP)
        for entry in rig.egress.candidates(who, flow, name):
            final = verdict is not Verdict.UNDECIDED
            assert entry.verdict == kernel or (final and entry.verdict == KernelVerdict.UNDECIDED), (entry, verdict)
        left = judged.outcome is Outcome.PASS or frame in client.sent
        assert left is verdict.passes, (judged, verdict)
        rig.released.clear()


def check(seed: int, flows: int = 24) -> World:
    chance = random.Random(seed)
    clock = [10**15]
    with (
        mock.patch("time.clock_gettime_ns", side_effect=lambda _: clock[0]),
        tempfile.TemporaryDirectory() as folder,
    ):
        world = World(Path(folder), chance)

        async def scene() -> None:
            kinds = ["a", *chance.sample(list(HELLOS), 3)]
            for _ in range(flows):
                if chance.random() < 0.65:
                    await world.tcp(chance.choice(kinds))
                else:
                    await world.udp(chance.choice(list(QUIC)))
                clock[0] += chance.choice([0, 0, 0, 31 * 10**9])
                if chance.random() < 0.2:
                    world.rig.gatekeeper.force.sweep()

        run(scene())
        return world


@settings(max_examples=120, deadline=None)
@given(st.integers(min_value=0, max_value=1 << 48))
def test_no_flow_gets_another_ones_verdict(seed: int) -> None:
    check(seed)


def test_the_flows_of_this_test_do_meet_entries() -> None:
    """A test that never hits an entry would prove nothing."""
    worlds = [check(seed) for seed in range(15)]
    assert sum(world.by_entry for world in worlds) > 150


def check_switch(seed: int) -> None:
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), chance, IN_PROGRESS)

        async def scene() -> None:
            under_way = [await world.tcp(chance.choice(list(HELLOS))) for _ in range(12)]
            await world.switch()
            for one in under_way:
                if one is not None:
                    await world.goes_on(one)
            # The flows that begin now know nothing of the old policy.
            for _ in range(4):
                await world.tcp(chance.choice(list(HELLOS)))
            await asyncio.sleep(10)
            gate = world.rig.gate
            assert {key.generation for key, _ in gate.connect_entries()} <= {2}
            classes = {number for _, number in gate.class_entries()}
            assert {key.name_class for key, _ in gate.name_entries()} <= classes

        run(scene())


@settings(max_examples=100, deadline=None)
@given(st.integers(min_value=0, max_value=1 << 48))
def test_a_flow_in_progress_gets_the_new_policys_verdict(seed: int) -> None:
    check_switch(seed)
