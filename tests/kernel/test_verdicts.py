"""Standing verdicts by destination, their precedence, generations, expiry, and strategies."""

from __future__ import annotations

import time

import pytest

from engine.abi.numbers import (
    Counter,
    DestinationClass,
    EventType,
    KernelVerdict,
    Origin,
    Present,
    Shape,
    StrategyKind,
)
from engine.abi.records import ConnectKey, DestinationKey, StrategyKey, VerdictEntry
from tests.kernel.lab import (
    ALLOW,
    DENY,
    INSIDE,
    OUTSIDE,
    OUTSIDE6,
    TCP,
    UDP,
    UNDECIDED,
    Watch,
    cgroup_id,
    key,
)
from tests.support.netns import Agent, Wire

IGNORE = VerdictEntry(KernelVerdict.IGNORE, 5)
OBSERVE = VerdictEntry(KernelVerdict.OBSERVE, 6)
ENFORCE = VerdictEntry(KernelVerdict.ENFORCE, 7)
REJECT = VerdictEntry(KernelVerdict.REJECT, 8)
EVERYWHERE = [OUTSIDE, OUTSIDE6, f"::ffff:{OUTSIDE}"]


def plain(address: str) -> str:
    return address.rpartition("ffff:")[2]


def now() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def listen(server: Agent, port: int) -> None:
    server.do(f"l = listening({OUTSIDE!r}, {port}); l6 = listening({OUTSIDE6!r}, {port})")


@pytest.mark.parametrize("entry", [DENY, REJECT])
@pytest.mark.parametrize("address", EVERYWHERE)
def test_a_denied_destination_is_refused_at_connect(
    watch: Watch, client: Agent, address: str, entry: VerdictEntry
) -> None:
    watch.dest(plain(address), 4500, entry)
    with pytest.raises(PermissionError):
        client.do(f"connected({address!r}, 4500)")
    event = watch.verdict_event(EventType.REFUSED)
    assert (event.verdict, event.verdict_id, event.origin) == (entry.verdict, entry.id, Origin.DEST)
    assert (event.tuple.dst, event.tuple.dport) == (key(plain(address)), 4500)
    assert event.identity.tgid == client.pid
    assert event.identity.cgroup == cgroup_id(watch.lab.cgroup)
    assert event.generation == watch.generation
    assert event.cookie
    assert watch.counted() == {Counter.REFUSED_CONNECT: 1}
    assert watch.nothing_held()


@pytest.mark.parametrize("address", EVERYWHERE)
def test_an_allowed_destination_passes_without_the_engine(
    watch: Watch, client: Agent, server: Agent, address: str
) -> None:
    listen(server, 4501)
    watch.configure(heartbeat_max=1)
    watch.dest(plain(address), 4501, ALLOW)
    client.do(f"s = connected({address!r}, 4501); s.sendall(b'x')")
    assert server.do(f"exactly(accepted({'l6' if address == OUTSIDE6 else 'l'}), 1)") == b"x"
    assert watch.counted() == {Counter.HIT_DEST: 1}
    event = watch.verdict_event()
    assert (event.verdict, event.verdict_id, event.origin) == (ALLOW.verdict, ALLOW.id, Origin.DEST)


def test_an_undecided_destination_passes_its_syn_and_holds_its_payload(
    watch: Watch, client: Agent, server: Agent
) -> None:
    listen(server, 4502)
    watch.dest(OUTSIDE, 4502, UNDECIDED)
    client.do(f"s = connected({OUTSIDE!r}, 4502)")
    assert watch.nothing_held()
    client.do("s.sendall(b'x')")
    assert watch.held().packet.payload == b"x"


@pytest.mark.parametrize(("port", "transport"), [(4504, TCP), (4503, UDP)])
def test_a_verdict_reaches_no_other_port_and_transport(watch: Watch, client: Agent, port: int, transport: int) -> None:
    watch.dest(OUTSIDE, port, ALLOW, transport)
    client.start(f"connected({OUTSIDE!r}, 4503)")
    assert watch.held().flow.dport == 4503


def test_datagrams_of_a_denied_destination_are_refused(watch: Watch, client: Agent) -> None:
    watch.dest(OUTSIDE, 5400, DENY, UDP)
    watch.dest(OUTSIDE6, 5400, DENY, UDP)
    for call in (
        f"udp().sendto(b'x', ({OUTSIDE!r}, 5400))",
        f"udp().connect(({OUTSIDE!r}, 5400))",
        f"udp('::').sendto(b'x', ({OUTSIDE6!r}, 5400))",
        f"udp('::').sendto(b'x', ('::ffff:{OUTSIDE}', 5400))",
    ):
        with pytest.raises(PermissionError):
            client.do(call)
    assert watch.counted() == {Counter.REFUSED_CONNECT: 4}


def test_datagrams_of_an_allowed_destination_pass(watch: Watch, client: Agent, server: Agent) -> None:
    server.do(f"s = bound({OUTSIDE!r}, 5401)")
    watch.dest(OUTSIDE, 5401, ALLOW, UDP)
    client.do(f"s = udp(); [s.sendto(b'x', ({OUTSIDE!r}, 5401)) for _ in range(3)]")
    assert server.do("[s.recv(9) for _ in range(3)]") == [b"x"] * 3
    assert watch.counted() == {Counter.HIT_DEST: 1, Counter.HIT_FLOW: 2}, "told once, then the flow's own"
    assert watch.verdict_event(transport=UDP).verdict_id == ALLOW.id


@pytest.mark.parametrize(("shape", "fact"), [(Shape.EXE, "exe"), (Shape.CGROUP, "cgroup"), (Shape.USER, "uid")])
def test_a_verdict_by_who_covers_that_one_alone(watch: Watch, client: Agent, shape: Shape, fact: str) -> None:
    client.do("os.setreuid(65534, 0)")
    own = {"exe": 7, "cgroup": cgroup_id(watch.lab.cgroup), "uid": 65534}[fact]
    watch.introduce(client, 7)
    watch.flip(connect=(shape,))
    watch.gate.put_connect(ConnectKey(watch.generation, shape, **{fact: own + 1}), DENY)  # type: ignore[arg-type]
    client.start(f"connected({OUTSIDE!r}, 4505)")
    assert watch.held().note.identity.exe == 7
    again = watch.lab.agent()
    again.do("os.setreuid(65534, 0)")
    watch.introduce(again, 7)
    watch.gate.put_connect(ConnectKey(watch.generation, shape, **{fact: own}), DENY)  # type: ignore[arg-type]
    with pytest.raises(PermissionError):
        again.do(f"connected({OUTSIDE!r}, 4505)")


def test_facts_of_a_shape_are_joined(watch: Watch, client: Agent) -> None:
    other = watch.lab.agent()
    watch.introduce(client, 7)
    watch.introduce(other, 8)
    shape = Shape.DEST | Shape.EXE | Shape.CGROUP | Shape.USER
    watch.flip(connect=(Shape.USER, shape))
    watch.gate.put_connect(
        ConnectKey(watch.generation, shape, TCP, 4506, key(OUTSIDE), cgroup_id(watch.lab.cgroup), 7, 0), DENY
    )
    with pytest.raises(PermissionError):
        client.do(f"connected({OUTSIDE!r}, 4506)")
    other.start(f"connected({OUTSIDE!r}, 4506)")
    assert watch.held().note.identity.exe == 8


def test_a_verdict_ends_with_its_time(watch: Watch, client: Agent) -> None:
    watch.dest(OUTSIDE, 4507, DENY._replace(expires=now() - 1))
    client.start(f"connected({OUTSIDE!r}, 4507)")
    watch.held()
    watch.dest(OUTSIDE, 4507, DENY._replace(expires=now() + 60 * 10**9))
    with pytest.raises(PermissionError):
        watch.lab.agent().do(f"connected({OUTSIDE!r}, 4507)")


def test_the_verdict_of_a_flow_under_way_ends_with_its_time(watch: Watch, client: Agent, server: Agent) -> None:
    listen(server, 4508)
    soon = now() + 10**9
    watch.dest(OUTSIDE, 4508, ALLOW._replace(expires=soon))
    client.do(f"s = connected({OUTSIDE!r}, 4508); s.sendall(b'x')")
    client.do("import time\nwhile time.clock_gettime_ns(time.CLOCK_MONOTONIC) <= " + str(soon) + ": os.sched_yield()")
    client.do("s.sendall(b'late')")
    assert watch.held().packet.payload == b"late"


def test_verdicts_of_the_generation_before_count_no_more(watch: Watch, client: Agent, server: Agent) -> None:
    listen(server, 4509)
    watch.dest(OUTSIDE, 4509, ALLOW._replace(id=91))
    client.do(f"s = connected({OUTSIDE!r}, 4509); s.sendall(b'x')")
    before = watch.generation
    watch.flip()
    client.do("s.sendall(b'under way')")
    late = watch.held()
    assert late.packet.payload == b"under way"
    assert late.note.verdict_id == 91
    assert late.note.generation == watch.generation == before + 1
    client.start(f"connected({OUTSIDE!r}, 4509)")
    assert watch.held().packet.flags == 2


def test_a_download_does_not_live_on_acknowledgements_after_a_new_generation(
    watch: Watch, client: Agent, server: Agent
) -> None:
    listen(server, 4510)
    watch.dest(OUTSIDE, 4510, ALLOW)
    client.do(f"s = connected({OUTSIDE!r}, 4510); s.sendall(b'x')")
    server.do("c = accepted(l)")
    watch.flip()
    watch.dest(OUTSIDE, 4510, UNDECIDED)
    server.do("c.sendall(b'download')")
    assert client.do("exactly(s, 8)") == b"download"
    late = watch.held()
    assert late.packet.payload == b""
    assert Counter.HELD_LATE in watch.counted()


def test_never_deny_beats_everything(watch: Watch, client: Agent, server: Agent) -> None:
    listen(server, 4511)
    watch.gate.put_destination(DestinationKey(DestinationClass.NEVER_DENY, TCP, 4511, key(OUTSIDE)), ALLOW)
    watch.gate.put_destination(DestinationKey(DestinationClass.SET, TCP, 4511, key(OUTSIDE)), DENY)
    watch.dest(OUTSIDE, 4511, DENY)
    watch.configure(present=Present.NEVER_DENY | Present.SET_DEST, heartbeat_max=1)
    client.do(f"s = connected({OUTSIDE!r}, 4511); s.sendall(b'x')")
    assert server.do("exactly(accepted(l), 1)") == b"x"
    assert set(watch.counted()) == {Counter.PASSED_NEVER_DENY}


@pytest.mark.parametrize(
    ("transport", "port", "address", "bits", "covers"),
    [
        (TCP, 4512, OUTSIDE, 128, True),
        (TCP, 0, OUTSIDE, 128, True),
        (0, 0, OUTSIDE, 128, True),
        (0, 0, "10.77.0.0", 96 + 24, True),
        (0, 0, "0.0.0.0", 96, True),  # noqa: S104
        (UDP, 0, OUTSIDE, 128, False),
        (TCP, 4513, OUTSIDE, 128, False),
        (0, 0, "10.78.0.0", 96 + 24, False),
        (0, 0, OUTSIDE6, 128, False),
    ],
)
def test_a_persons_word_about_a_destination(
    watch: Watch, client: Agent, transport: int, port: int, address: str, bits: int, covers: bool
) -> None:
    watch.gate.put_destination(DestinationKey(DestinationClass.SET, transport, port, key(address), bits), DENY)
    watch.dest(OUTSIDE, 4512, UNDECIDED)
    watch.configure(present=Present.SET_DEST)
    if covers:
        with pytest.raises(PermissionError):
            client.do(f"connected({OUTSIDE!r}, 4512)")
        assert watch.verdict_event(EventType.REFUSED).origin == Origin.SET
    else:
        with pytest.raises(ConnectionRefusedError):
            client.do(f"connected({OUTSIDE!r}, 4512)")


def test_the_longer_prefix_of_a_persons_word_wins(watch: Watch, client: Agent, server: Agent) -> None:
    listen(server, 4514)
    watch.gate.put_destination(DestinationKey(DestinationClass.SET, 0, 0, key("10.77.0.0"), 96 + 24), DENY)
    watch.gate.put_destination(DestinationKey(DestinationClass.SET, 0, 0, key(OUTSIDE), 128), ALLOW)
    watch.dest(OUTSIDE, 4514, DENY)
    watch.configure(present=Present.SET_DEST)
    client.do(f"s = connected({OUTSIDE!r}, 4514)")
    assert watch.counted() == {Counter.HIT_SET: 1}
    with pytest.raises(PermissionError):
        client.do("connected('10.77.0.9', 4514)")


@pytest.mark.parametrize("by", ["exe", "cgroup", "uid", "dest", "port"])
def test_an_ignored_flow_passes_unseen_and_marked(watch: Watch, client: Agent, server: Agent, by: str) -> None:
    listen(server, 4515)
    watch.introduce(client, 7)
    watch.dest(OUTSIDE, 4515, DENY)
    _strategy(watch, by, IGNORE, 4515)
    client.do(f"s = connected({OUTSIDE!r}, 4515); s.sendall(b'x')")
    assert server.do("exactly(accepted(l), 1)") == b"x"
    assert watch.counted() == {Counter.PASSED_IGNORED: 1}
    event = watch.verdict_event()
    assert (event.verdict, event.origin) == (KernelVerdict.IGNORE, Origin.STRATEGY)


@pytest.mark.parametrize("by", ["exe", "cgroup", "uid", "dest", "port"])
def test_an_observed_flow_passes_and_is_judged_from_copies(watch: Watch, client: Agent, server: Agent, by: str) -> None:
    listen(server, 4516)
    watch.introduce(client, 7)
    _strategy(watch, by, OBSERVE, 4516)
    client.do(f"s = connected({OUTSIDE!r}, 4516); s.sendall(b'x')")
    assert server.do("c = accepted(l); exactly(c, 1)") == b"x"
    copy = watch.held()
    watch.decide(copy, DENY)
    client.do("s.sendall(b'y')")
    assert server.do("exactly(c, 1)") == b"y"
    assert watch.counted()[Counter.WOULD_DROP] >= 1
    assert Counter.DROPPED_FLOW not in watch.counted()


def test_a_strategy_to_enforce_makes_an_exception_from_a_wider_one(watch: Watch, client: Agent) -> None:
    """By executable comes before by user: the first that says anything."""
    watch.introduce(client, 7)
    watch.dest(OUTSIDE, 4517, DENY)
    watch.gate.put_strategy(StrategyKey(StrategyKind.USER, 0), IGNORE)
    watch.gate.put_strategy(StrategyKey(StrategyKind.EXE, 7), ENFORCE)
    watch.configure(present=Present.STRATEGY_ID)
    with pytest.raises(PermissionError):
        client.do(f"connected({OUTSIDE!r}, 4517)")


def test_a_strategy_ends_with_its_time(watch: Watch, client: Agent) -> None:
    watch.dest(OUTSIDE, 4518, DENY)
    watch.gate.put_strategy(StrategyKey(StrategyKind.USER, 0), IGNORE._replace(expires=now() - 1))
    watch.configure(present=Present.STRATEGY_ID)
    with pytest.raises(PermissionError):
        client.do(f"connected({OUTSIDE!r}, 4518)")


def test_a_datagram_socket_is_observed_no_longer_than_its_strategy(
    watch: Watch, client: Agent, server: Agent, near: Wire, wire: Wire
) -> None:
    """A resolver keeps one socket for ever: what was observed for ten minutes must be enforced after them."""
    server.do(f"s = bound({OUTSIDE!r}, 5402)")
    watch.gate.put_strategy(StrategyKey(StrategyKind.USER, 0), OBSERVE)
    watch.configure(present=Present.STRATEGY_ID)
    client.do(f"s = udp(); s.sendto(b'observed', ({OUTSIDE!r}, 5402))")
    assert server.do("s.recv(99)") == b"observed"
    watch.held()
    watch.gate.remove_strategy(StrategyKey(StrategyKind.USER, 0))
    client.do(f"s.sendto(b'enforced', ({OUTSIDE!r}, 5403))")
    assert watch.held().packet.payload == b"enforced"
    assert not any(b"enforced" in frame for frame in wire.until_mark(near.mark()))


def test_every_datagram_of_an_observed_destination_passes(watch: Watch, client: Agent, server: Agent) -> None:
    """The deny that the first datagram met must not stop the second one."""
    server.do(f"s = bound({OUTSIDE!r}, 5404)")
    watch.dest(OUTSIDE, 5404, DENY, UDP)
    watch.gate.put_destination(DestinationKey(DestinationClass.STRATEGY, UDP, 5404, key(OUTSIDE)), OBSERVE)
    watch.configure(present=Present.STRATEGY_DEST)
    client.do("s = udp()")
    for word in (b"one", b"two", b"three"):
        client.do(f"s.sendto({word!r}, ({OUTSIDE!r}, 5404))")
        assert server.do("s.recv(99)") == word
    assert watch.counted()[Counter.WOULD_DROP] == 3


def test_an_inbound_connection_passes_both_ways(watch: Watch, client: Agent, server: Agent) -> None:
    """The guarded host is the server: nothing of the answer is judged as if it had called."""
    client.do(f"l = listening({INSIDE!r}, 4519)")
    server.do(f"s = connected({INSIDE!r}, 4519); s.sendall(b'question')")
    assert client.do("c = accepted(l); exactly(c, 8)") == b"question"
    client.do("c.sendall(b'answer' * 1000)")
    assert server.do("exactly(s, 6000)") == b"answer" * 1000
    client.do("c.shutdown(socket.SHUT_WR)")
    assert server.do("s.recv(1)") == b""
    assert watch.nothing_held()
    assert set(watch.counted()) <= {Counter.PASSED_INBOUND}


def _strategy(watch: Watch, by: str, entry: VerdictEntry, port: int) -> None:
    kinds = {
        "exe": (StrategyKind.EXE, 7), "cgroup": (StrategyKind.CGROUP, cgroup_id(watch.lab.cgroup)),
        "uid": (StrategyKind.USER, 0),
    }  # fmt: skip
    if by in kinds:
        watch.gate.put_strategy(StrategyKey(*kinds[by]), entry)
        watch.configure(present=Present.STRATEGY_ID)
        return
    address, bits = (key(OUTSIDE), 128) if by == "dest" else (bytes(16), 0)
    # `port` without a prefix is 0 bits of address behind a port: one entry for each family's all-zero prefix.
    place = DestinationKey(DestinationClass.STRATEGY, 0, 0, address, bits)
    if by == "port":
        place = DestinationKey(DestinationClass.STRATEGY, TCP, port, address, bits)
    watch.gate.put_destination(place, entry)
    watch.configure(present=Present.STRATEGY_DEST)
