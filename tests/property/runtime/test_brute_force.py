"""Every flow of a small world against every entry that stands: none says anything but what the policy says.

test_verdict_reach.py plays flows and looks at what becomes of them. Here nothing is played any more: after some flows
have left their entries behind, all flows there could be are gone through, whether any was ever seen or not.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.model.decision import Verdict
from engine.model.facts import Event
from engine.protocols import packet as packets
from engine.protocols.quic import InitialAssembler
from engine.protocols.records import HelloAssembler
from engine.runtime.entries import KERNEL_VERDICTS
from tests.property.runtime.test_verdict_reach import HELLOS, QUIC, World
from tests.support.egress import kernel_name
from tests.support.rig import Client, run

READINGS = {kind: HelloAssembler().feed(payload) for kind, payload in HELLOS.items() if kernel_name(payload)}
"""The hellos that the kernel itself finds a name in."""
DATAGRAMS = {
    kind: [assembler.feed(one) for one in QUIC[kind]][-1] for kind in QUIC if (assembler := InitialAssembler())
}


def every_client(world: World) -> Iterator[Client]:
    known = product((1001, 1002, 1009), (0, 5, 6), (0, 1000), (True,))
    for (tgid, cgroup, uid, stored), dst, dport in product(
        [*known, (0, 0, 0, False)], ("198.51.100.20", "198.51.100.21"), (443, 8443)
    ):
        client = world.rig.client(tgid=tgid, stored=stored, cgroup=cgroup, uid=uid)
        client.dst, client.dport = dst, dport
        yield client


async def disagreements(world: World) -> tuple[int, list[str]]:
    """Return how many pairs of a flow and an entry there were, and those that disagree."""
    pairs, wrong, undecided = 0, [], KERNEL_VERDICTS[Verdict.UNDECIDED]
    for client in every_client(world):
        who = client.socket.identity if client.socket.stored else None
        if who is not None:
            known = world.rig.gate.process(who.tgid)
            who = who._replace(exe=known.exe if known and known.exec_stamp == who.exec_stamp else who.exe)
        tcp = client.flow._replace(transport=packets.TCP)
        at_connect = await world.policy(client, Event.CONNECT)
        found = [(at_connect, entry, "connect") for entry in world.rig.egress.candidates(who, tcp)]
        if at_connect is Verdict.UNDECIDED:
            for kind, reading in READINGS.items():
                verdict = await world.policy(client, Event.PAYLOAD, reading)
                named = world.rig.egress.candidates(who, tcp, kernel_name(HELLOS[kind]))
                found += [(verdict, entry, kind) for entry in named if entry.verdict != undecided]
        for kind, reading in DATAGRAMS.items():
            verdict = await world.policy(client, Event.DATAGRAM, reading)
            standing = world.rig.egress.candidates(who, tcp._replace(transport=packets.UDP))
            found += [(verdict, entry, f"datagram {kind}") for entry in standing if entry.verdict != undecided]
        pairs += len(found)
        wrong += [f"{client}: {what}: {entry} and {verdict}" for verdict, entry, what in found
                  if entry.verdict != KERNEL_VERDICTS[verdict]]  # fmt: skip
    return pairs, wrong


def check(seed: int) -> int:
    chance = random.Random(seed)
    with mock.patch("time.clock_gettime_ns", return_value=10**15), tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), chance)

        async def scene() -> tuple[int, list[str]]:
            for _ in range(12):
                if chance.random() < 0.65:
                    await world.tcp(chance.choice(list(HELLOS)))
                else:
                    await world.udp(chance.choice(list(QUIC)))
            return await disagreements(world)

        pairs, wrong = run(scene())
        assert not wrong, f"seed {seed}: {len(wrong)} of {pairs}, such as {wrong[0]}"
        return pairs


@settings(max_examples=30, deadline=None)
@given(st.integers(min_value=0, max_value=1 << 48))
def test_no_entry_reaches_a_flow_that_the_policy_judges_otherwise(seed: int) -> None:
    check(seed)


def test_the_entries_of_this_test_do_reach_flows() -> None:
    assert sum(check(seed) for seed in range(12)) > 1_000
