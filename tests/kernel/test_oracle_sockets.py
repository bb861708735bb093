"""Who opened a connection, as the gate asks the kernel's socket table: the one thing that the sequences of
test_oracle_shared.py choose and do not look up.

Real connections over the loopback device of a namespace, and segments in the middle of them that nothing is remembered
of, by BPF_PROG_TEST_RUN through gate_ingress as it is shipped: those of a connection that was opened from here pass as
answers; those for a listener or an accepted socket are asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from engine.abi.numbers import Counter, Present
from engine.abi.records import Plan
from engine.protocols.packet import ACK, SYN, TCP
from tests.kernel.lab import NOISE, Watch
from tests.support import captures
from tests.support.netns import Agent
from tests.support.testrun import PASS, REDIRECT, TestRun, counted

PLACES = {4: "127.0.0.1", 6: "::1"}
ASKED = REDIRECT, {Counter.HELD_INBOUND}
ANSWER = PASS, {Counter.PASSED_REPLY}
Judge = Callable[..., tuple[int, set[Counter]]]


@pytest.fixture
def judge(watch: Watch) -> Iterator[Judge]:
    """Judge a segment from the loopback address to itself: the action, and what was counted."""
    program = TestRun(watch.lab.pins.programs / "gate_ingress")
    watch.generation += 1
    watch.gate.set_plan(Plan(watch.generation, (), (), inbound=True))
    watch.gate.set_generation(watch.generation)
    watch.configure(present=Present.INBOUND)

    def judged(version: int, sport: int, dport: int, flags: int = ACK) -> tuple[int, set[Counter]]:
        inside, place = captures.tcp(sport, dport, b"data", seq=1000, flags=flags), PLACES[version]
        packet = (captures.ipv4 if version == 4 else captures.ipv6)(TCP, inside, src=place, dst=place)
        before = watch.gate.counters()
        action = watch.lab.inside.call(lambda: program(captures.ethernet(packet)).action)
        return action, set(counted(before, watch.gate.counters())) - NOISE

    yield judged
    program.close()


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("dual", [False, True])
def test_a_segment_for_a_listener_or_an_accepted_socket_is_asked_about(
    judge: Judge, client: Agent, version: int, *, dual: bool
) -> None:
    """`dual`: a listener of IPv6 that takes IPv4 too, whose accepted sockets have mapped addresses."""
    port = 8000 + version + 10 * dual
    place = "::" if dual else PLACES[version]
    client.do(f"l = listening({place!r}, {port}); c = connected({PLACES[version]!r}, {port}); a = accepted(l)")
    other = client.do("c.getsockname()[1]")
    assert judge(version, other, port) == ASKED, "to the accepted socket"
    assert judge(version, port, other) == ANSWER, "to the socket that connected"
    assert judge(version, other + 1, port) == ASKED, "to the listener"
    assert judge(version, other, port + 1) == ANSWER, "to nobody"
    assert judge(version, other, port, SYN | ACK) == ASKED
    client.do("l.close()")
    assert judge(version, other, port) == ASKED, "to the accepted socket, whose listener has gone"
    assert judge(version, other + 1, port) == ANSWER, "to nobody, once the listener has gone"


@pytest.mark.parametrize("version", [4, 6])
def test_a_listener_that_the_gate_knows_nothing_of_is_a_listener(watch: Watch, judge: Judge, version: int) -> None:
    stranger, port = watch.lab.agent(known=False), 8100 + version
    stranger.do(f"l = listening({PLACES[version]!r}, {port})")
    assert judge(version, 40_000, port) == ASKED
    assert judge(version, 40_000, port, SYN) == ASKED
    assert judge(version, 40_000, port + 10) == ANSWER
