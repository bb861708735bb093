"""Rules that read the names of an address, and answers that come in between: every flow gets what the policy says about
it at that very moment, whatever was decided before."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.abi.records import Held
from engine.model.decision import Stage, Verdict
from engine.model.facts import Event
from engine.policy.evaluator import Answer, Question
from engine.policy.judge import Judge
from engine.policy.rule import Rule
from engine.protocols.records import HelloAssembler
from engine.protocols.tls import HelloReading
from engine.runtime.entries import KERNEL_VERDICTS
from engine.runtime.hearing import now
from engine.runtime.resolutions import Resolutions
from tests.support import hello as build
from tests.support.egress import Outcome
from tests.support.lookups import RESOLVER, SECOND, Lookup, alias, key, points
from tests.support.rig import Client, Rig, Spoken, run

EFFECTS = (Verdict.DENY, Verdict.REJECT, Verdict.ALLOW)
OTHERS = ("dest", "exe", "name", "user")
PLACES = ("198.51.100.20", "198.51.100.21")
NAMES = ("a.example", "b.example", "c.example")
HELLOS = {name: build.client_hello(name) for name in NAMES}


class World:
    """One engine with random rules, of which one at least reads the names, and what happens to it."""

    def __init__(self, folder: Path, chance: random.Random, clock: list[int]) -> None:
        self.chance, self.clock = chance, clock
        self.default = chance.choice(EFFECTS)
        self.seed = chance.getrandbits(48)
        self.rules = [self.rule(number) for number in range(chance.randint(1, 3))]
        self.rig = Rig(folder, self.say, rules=self.rules, default=self.default)
        self.resolutions = Resolutions(100, lambda: {key(RESOLVER)}, lambda: clock[0])
        self.rig.identifier.resolutions = self.resolutions
        self.lookups = self.by_entry = 0

    def rule(self, number: int) -> Rule:
        chance = self.chance
        scope = {"dest_names"} if not number else set()
        scope |= set(chance.sample(OTHERS, chance.randint(0 if scope else 1, 2)))
        target = frozenset(chance.sample(sorted(scope), 1)) if chance.random() < 0.4 else None
        effects = frozenset(chance.sample(EFFECTS, chance.choice([1, 1, 2])))
        return Rule(f"r{number}", "", frozenset(scope), "", target_scope=target, effects=effects)

    def say(self, question: Question) -> Answer:
        rule = next(rule for rule in self.rules if rule.name == question.rule)
        target = None
        if rule.target_scope is not None:
            target = self.drawn(question, rule.target_scope, "target") < 0.6
            if not target or question.only_target:
                return Answer(target=target)
        said = {effect for effect in rule.effects if self.drawn(question, rule.scope, effect.value) < 0.4}
        words = [("said",) if effect in said else () for effect in EFFECTS]
        return Answer(words[0], words[1], words[2], target)

    def drawn(self, question: Question, scope: frozenset[str], what: str) -> float:
        facts = [(question.rule, fact, question.input[fact]) for fact in sorted(scope)]
        return random.Random(f"{self.seed} {what} {facts}").random()

    def answer(self) -> None:
        """Somebody looks a name up."""
        chance = self.chance
        self.lookups += 1
        name, other = chance.sample(NAMES, 2)
        place, ttl = chance.choice(PLACES), chance.choice([5, 60])
        chain = [alias(name, other), points(other, place, ttl)]
        records = chain if chance.random() < 0.3 else [points(name, place, ttl)]
        for event in Lookup(sport=1024 + self.lookups).looked_up(name, *records, time=self.clock[0]):
            self.resolutions.observe(event)

    async def policy(self, client: Client, event: Event, reading: HelloReading | None = None) -> Verdict:
        """Ask the policy about this very flow, with no memory and no entries."""
        held = Held._make([client.socket.identity, *[0] * (len(Held._fields) - 1)])
        facts = await self.rig.identifier.facts(
            event, client.flow, held, self.rig.identifier.executable(held.identity), now(),
            name=reading.name if reading else None,
        )  # fmt: skip
        judge = Judge(Spoken(self.say), self.rules, self.default)
        stage = Stage.CONNECT if event is Event.CONNECT else Stage.PAYLOAD
        return (await judge.decide(facts, stage, now=now())).verdict

    async def connection(self) -> None:
        client = self.rig.client(tgid=self.chance.choice([1001, 1002]), sport=40_000 + self.lookups)
        client.dst = self.chance.choice(PLACES)
        verdict = await self.policy(client, Event.CONNECT)
        await self.packet(client, client.syn(), verdict)
        if verdict is not Verdict.UNDECIDED:
            return
        if self.chance.random() < 0.3:
            self.answer()
        hello = HELLOS[self.chance.choice(NAMES)]
        verdict = await self.policy(client, Event.PAYLOAD, HelloAssembler().feed(hello))
        await self.packet(client, client.tcp(hello), verdict)

    async def packet(self, client: Client, frame: bytes, verdict: Verdict) -> None:
        judged = client.send(frame)
        await self.rig.settle()
        self.rig.tell()
        if judged.entry is not None:
            self.by_entry += 1
            assert judged.entry.verdict == KERNEL_VERDICTS[verdict], (judged, verdict)
        left = judged.outcome is Outcome.PASS or frame in client.sent
        assert left is verdict.passes, (judged, verdict)
        self.rig.released.clear()


def check(seed: int) -> World:
    chance, clock = random.Random(seed), [10**15]
    with mock.patch("time.clock_gettime_ns", side_effect=lambda _: clock[0]), tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), chance, clock)

        async def scene() -> None:
            for _ in range(20):
                if chance.random() < 0.5:
                    world.answer()
                await world.connection()
                clock[0] += chance.choice([0, 0, 6, 61]) * SECOND

        run(scene())
        return world


@settings(max_examples=60, deadline=None)
@given(st.integers(min_value=0, max_value=1 << 48))
def test_a_flow_is_judged_by_the_names_of_its_moment(seed: int) -> None:
    check(seed)


def test_what_does_not_rest_on_names_is_still_kept() -> None:
    """A test in which no entry ever stands would not notice one that reaches too far."""
    assert sum(check(seed).by_entry for seed in range(20)) > 20
