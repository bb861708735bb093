"""A known name is decided in the kernel, from the start of the stream only; everything else goes to the engine."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest

from engine.abi.numbers import Counter, EventType, FlowFlag, Mode, Origin, PostureBit, Present, Shape, StageNumber
from engine.abi.records import DestinationKey, NameKey
from engine.protocols.packet import SYN
from tests.kernel.lab import ALLOW, DENY, INSIDE, OUTSIDE, OUTSIDE6, TCP, UNDECIDED, Watch, exact, key
from tests.support import hello
from tests.support.netns import Agent, Wire

GOOD = hello.client_hello("good.example", alpn=["h2"])
BAD = hello.client_hello("bad.example", alpn=["h2"])
LONGEST = ("a.long.label." * 15 + "exam", "a.long.label." * 15 + "examp")


@pytest.fixture
def port(watch: Watch, server: Agent) -> int:
    """A server whose connections are undecided until their first payload."""
    number = 4400
    server.do(f"l = listening({OUTSIDE!r}, {number}); l6 = listening({OUTSIDE6!r}, {number})")
    watch.dest(OUTSIDE, number, UNDECIDED)
    watch.dest(OUTSIDE6, number, UNDECIDED)
    return number


def send(client: Agent, port: int, *pieces: bytes, address: str = OUTSIDE) -> None:
    client.do(f"s = connected({address!r}, {port})")
    for piece in pieces:
        client.do(f"s.sendall({piece!r})")


def received(server: Agent, size: int, listener: str = "l") -> bytes:
    data = server.do(f"c = accepted({listener}); exactly(c, {size})")
    assert isinstance(data, bytes)
    return data


@pytest.mark.parametrize(("address", "listener"), [(OUTSIDE, "l"), (OUTSIDE6, "l6")])
def test_an_allowed_name_passes_without_the_engine(
    watch: Watch, client: Agent, server: Agent, port: int, address: str, listener: str
) -> None:
    watch.name("good.example", ALLOW._replace(id=77))
    watch.configure(heartbeat_max=1)
    send(client, port, GOOD, address=address)
    assert received(server, len(GOOD), listener) == GOOD
    assert watch.counted() == {Counter.HIT_NAME: 1}
    event = watch.verdict_event(EventType.VERDICT_NAME)
    assert (event.name, event.verdict_id, event.origin, event.stage) == (
        b"good.example", 77, Origin.NAME, StageNumber.PAYLOAD,
    )  # fmt: skip
    assert event.identity.tgid == client.pid
    assert (event.tuple.dst, event.tuple.dport) == (key(address), port)


def test_a_denied_name_never_leaves(watch: Watch, client: Agent, port: int, near: Wire, wire: Wire) -> None:
    watch.name("bad.example", DENY)
    send(client, port, BAD, b"more of it")
    frames = wire.until_mark(near.mark())
    assert not any(b"bad.example" in frame or b"more of it" in frame for frame in frames)
    counted = watch.counted()
    assert counted[Counter.DROPPED_NAME] == 1
    assert watch.verdict_event(EventType.VERDICT_NAME).name == b"bad.example"
    assert watch.nothing_held()


def test_an_unknown_name_is_held(watch: Watch, client: Agent, port: int) -> None:
    watch.name("good.example", ALLOW)
    send(client, port, BAD)
    frame = watch.held()
    assert frame.packet.payload == BAD
    assert frame.note.stage == StageNumber.PAYLOAD
    assert set(watch.counted()) == {Counter.HELD_PAYLOAD}


@pytest.mark.parametrize("pieces", [2, 3, 4])
def test_a_hello_in_pieces_is_held_in_every_piece(watch: Watch, client: Agent, port: int, pieces: int) -> None:
    watch.name("good.example", ALLOW)
    cuts = [len(GOOD) * index // pieces for index in range(pieces + 1)]
    parts = [GOOD[a:b] for a, b in pairwise(cuts)]
    send(client, port, *parts)
    held: list[bytes] = []
    while len(held) < pieces:
        payload = watch.held().packet.payload
        if payload not in held:  # TCP sends again what nobody acknowledges
            held.append(payload)
    assert held == parts
    assert set(watch.counted()) == {Counter.HELD_PAYLOAD}


def test_a_second_segment_that_looks_like_a_hello_queues_behind_the_first(
    watch: Watch, client: Agent, port: int, near: Wire, wire: Wire
) -> None:
    """The bypass: the start of a forbidden hello, then a whole allowed one, as if that were the stream's start."""
    watch.name("good.example", ALLOW)
    send(client, port, BAD[:20], GOOD)
    assert watch.held().packet.payload == BAD[:20]
    second = watch.held()
    while second.packet.payload == BAD[:20]:
        second = watch.held()
    assert second.packet.payload == GOOD
    assert second.note.flags & FlowFlag.HOLDING
    assert not any(b"good.example" in frame for frame in wire.until_mark(near.mark()))


def test_a_hello_in_the_middle_of_a_stream_is_not_believed(
    watch: Watch, client: Agent, server: Agent, port: int
) -> None:
    watch.name("good.example", ALLOW)
    send(client, port, GOOD)
    received(server, len(GOOD))
    watch.flip()
    watch.dest(OUTSIDE, port, UNDECIDED)
    watch.name("good.example", ALLOW)
    client.do(f"s.sendall({GOOD!r})")
    late = watch.held()
    assert late.packet.payload == GOOD
    assert late.note.flags & FlowFlag.PAYLOAD_PASSED
    assert late.note.verdict_id == ALLOW.id, "the engine must learn which verdict this flow had"
    assert Counter.HELD_LATE in watch.counted()


def test_what_an_open_posture_let_pass_was_the_start_of_the_stream(
    watch: Watch, client: Agent, server: Agent, port: int
) -> None:
    """The engine was away and the posture open; back again, it must not take the middle for the start."""
    watch.name("good.example", ALLOW)
    watch.configure(heartbeat_max=1, open=PostureBit.ENGINE_ABSENT)
    send(client, port, BAD)
    received(server, len(BAD))
    watch.configure()
    client.do(f"s.sendall({GOOD!r})")
    frame = watch.held()
    assert frame.packet.payload == GOOD
    assert frame.note.flags & FlowFlag.PAYLOAD_PASSED


def test_a_socket_that_connects_anew_is_judged_anew(watch: Watch, client: Agent, server: Agent, port: int) -> None:
    """connect() with AF_UNSPEC keeps socket, cookie and port: the verdict of the connection before must not serve."""
    client.do(f"s = tcp(); s.bind(({INSIDE!r}, 40123)); s.connect(({OUTSIDE!r}, {port})); s.sendall({GOOD!r})")
    first = watch.held()
    watch.decide(first, ALLOW)
    watch.release(first)
    received(server, len(GOOD))
    server.do("c.close()")
    client.do(
        "import ctypes; ctypes.CDLL(None).connect(s.fileno(), bytes(16), 16)\n"
        f"s.connect(({OUTSIDE!r}, {port})); s.sendall({BAD!r})"
    )
    second = watch.held()
    assert second.packet.payload == BAD
    assert (second.flow, second.note.cookie) == (first.flow, first.note.cookie)
    assert second.note.part != first.note.part


def test_without_storage_the_engine_sees_the_first_packet(watch: Watch, port: int) -> None:
    """Nobody else could say where the stream begins, and its hello would be taken for the middle of one."""
    stranger = watch.lab.agent(known=False)
    stranger.start(f"connected({OUTSIDE!r}, {port})")
    first = watch.held()
    assert first.packet.flags & SYN
    assert first.note.flags & FlowFlag.NO_STORAGE
    watch.release(first)
    stranger.result()


def test_behind_a_dropped_start_no_hello_is_believed(
    watch: Watch, client: Agent, server: Agent, port: int, near: Wire, wire: Wire
) -> None:
    """The queue was full for the first segment and is not for the second."""
    watch.name("good.example", ALLOW)
    client.do(f"s = connected({OUTSIDE!r}, {port}); s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)")
    watch.configure(hold_limit=0)
    client.do(f"s.sendall({BAD[:20]!r})")
    while Counter.DROPPED_HOLD_FULL not in watch.counted():
        continue
    watch.configure()
    client.do(f"s.sendall({GOOD!r})")
    second = watch.held()
    assert second.packet.payload == GOOD or second.packet.payload.startswith(BAD[:20])
    assert second.note.flags & FlowFlag.STARTED
    assert not any(b"good.example" in frame for frame in wire.until_mark(near.mark()))


def test_what_passed_while_observed_was_the_start_of_the_stream(
    watch: Watch, client: Agent, server: Agent, port: int
) -> None:
    """Observed first, enforced later: the engine must not take the middle for the start."""
    watch.configure(mode=Mode.OBSERVE)
    send(client, port, BAD)
    received(server, len(BAD))
    while watch.held().packet.payload != BAD:
        continue
    watch.configure(mode=Mode.ENFORCE)
    watch.name("good.example", ALLOW)
    client.do(f"s.sendall({GOOD!r})")
    frame = watch.held()
    assert frame.packet.payload == GOOD
    assert frame.note.flags & FlowFlag.PAYLOAD_PASSED


def test_what_never_deny_let_pass_was_the_start_of_the_stream(
    watch: Watch, client: Agent, server: Agent, port: int
) -> None:
    watch.name("good.example", ALLOW)
    standing = DestinationKey(1, TCP, port, key(OUTSIDE))
    watch.gate.put_destination(standing, ALLOW)
    watch.configure(present=Present.NEVER_DENY)
    send(client, port, BAD)
    received(server, len(BAD))
    watch.configure()
    client.do(f"s.sendall({GOOD!r})")
    assert watch.held().note.flags & FlowFlag.PAYLOAD_PASSED


def test_a_name_allowed_to_one_program_is_not_allowed_to_another(
    watch: Watch, client: Agent, server: Agent, port: int
) -> None:
    other = watch.lab.agent()
    watch.flip(names=(Shape.EXE,))
    watch.dest(OUTSIDE, port, UNDECIDED)
    watch.introduce(client, 7)
    watch.introduce(other, 8)
    watch.name("good.example", ALLOW, shape=Shape.EXE, exe=7)
    send(client, port, GOOD)
    assert received(server, len(GOOD)) == GOOD
    send(other, port, GOOD)
    frame = watch.held()
    assert frame.note.identity.exe == 8
    assert frame.note.identity.tgid == other.pid


def test_a_program_nobody_has_looked_up_matches_no_class_by_program(watch: Watch, client: Agent, port: int) -> None:
    watch.flip(names=(Shape.EXE,))
    watch.dest(OUTSIDE, port, UNDECIDED)
    watch.name("good.example", ALLOW, shape=Shape.EXE, exe=0)
    send(client, port, GOOD)
    assert watch.held().note.identity.exe == 0


@pytest.mark.parametrize(
    ("shape", "fact"),
    [(Shape.CGROUP, "cgroup"), (Shape.USER, "uid")],
)
def test_a_class_by_a_fact_holds_for_that_fact_alone(
    watch: Watch, client: Agent, server: Agent, port: int, shape: Shape, fact: str
) -> None:
    own = {"cgroup": watch.lab.cgroup.stat().st_ino, "uid": 65534}[fact]
    client.do("os.setreuid(65534, 0)")
    watch.flip(names=(shape,))
    watch.dest(OUTSIDE, port, UNDECIDED)
    watch.name("good.example", ALLOW, number=20, shape=shape, **{fact: own + 1})
    send(client, port, GOOD)
    watch.held()
    watch.name("good.example", ALLOW, number=21, shape=shape, **{fact: own})
    send(client, port, GOOD)
    assert watch.counted()[Counter.HIT_NAME] == 1


def test_a_class_by_destination(watch: Watch, client: Agent, server: Agent, port: int) -> None:
    watch.flip(names=(Shape.DEST,))
    watch.dest(OUTSIDE, port, UNDECIDED)
    watch.dest(OUTSIDE6, port, UNDECIDED)
    facts = {"transport": TCP, "port": port, "address": key(OUTSIDE)}
    watch.name("good.example", ALLOW, shape=Shape.DEST, **facts)  # type: ignore[arg-type]
    send(client, port, GOOD)
    assert received(server, len(GOOD)) == GOOD
    send(client, port, GOOD, address=OUTSIDE6)
    assert watch.held().packet.payload == GOOD


@pytest.mark.parametrize("spelled", ["GOOD.EXAMPLE", "gOOd.eXAMple"])
def test_capitals_are_the_same_name(watch: Watch, client: Agent, server: Agent, port: int, spelled: str) -> None:
    watch.name("good.example", ALLOW)
    payload = hello.client_hello(spelled)
    send(client, port, payload)
    assert received(server, len(payload)) == payload
    assert watch.verdict_event(EventType.VERDICT_NAME).name == b"good.example"


def test_the_longest_name_of_the_kernel_and_one_byte_more(
    watch: Watch, client: Agent, server: Agent, port: int
) -> None:
    longest, longer = LONGEST
    assert len(longest) == 199
    watch.name(longest, ALLOW)
    payload = hello.client_hello(longest)
    send(client, port, payload)
    assert received(server, len(payload)) == payload
    send(client, port, hello.client_hello(longer))
    assert b"examp" in watch.held().packet.payload


@pytest.mark.parametrize("length", range(1, 36))
def test_names_of_every_length_meet_their_own_entry_only(watch: Watch, client: Agent, port: int, length: int) -> None:
    """The key is made eight bytes at a time: every remainder, and what lies behind its end from the name before."""
    name = ("xyz." * 9)[:length].rstrip(".") or "x"
    watch.name(name, DENY)
    watch.name(name[:-1] + "q", ALLOW)
    send(client, port, hello.client_hello("long-" * 6 + "name.before"))
    watch.held()
    send(client, port, hello.client_hello(name))
    assert watch.verdict_event(EventType.VERDICT_NAME).name == name.encode()
    send(client, port, hello.client_hello("w" + name))
    watch.held()
    assert watch.counted()[Counter.DROPPED_NAME] == 1


@pytest.mark.parametrize(
    ("what", "payload"),
    [
        ("encrypted hello", hello.client_hello("good.example", ech=True)),
        ("trailing dot", hello.client_hello("good.example.")),
        ("a NUL that would end the key", hello.client_hello(b"evil\0good.example")),
        ("a byte that no name has", hello.client_hello(b"evil\xff.good.example")),
        ("an empty label", hello.client_hello("evil..good.example")),
        ("two names", hello.in_records(hello.message([(0, hello.server_names("good.example", "bad.example"))]))),
        ("no name", hello.client_hello(None)),
        ("two records", hello.client_hello("good.example", records=2)),
        ("more than the window", hello.client_hello("good.example", size=4500)),
        ("no TLS", b"GET / HTTP/1.1\r\nHost: good.example\r\n\r\n"),
    ],
)
def test_whatever_is_not_one_plain_name_is_held(
    watch: Watch, client: Agent, port: int, what: str, payload: bytes
) -> None:
    watch.name("good.example", ALLOW)
    watch.gate.put_name(NameKey(16, b"elpmaxe.doog."), ALLOW)
    send(client, port, payload)
    assert watch.held().packet.payload.startswith(payload[:100]), what
    assert Counter.HIT_NAME not in watch.counted()


def test_a_post_quantum_hello_is_decided_in_the_kernel(watch: Watch, client: Agent, server: Agent, port: int) -> None:
    watch.name("good.example", ALLOW)
    payload = hello.client_hello("good.example", size=1862)
    send(client, port, payload)
    assert received(server, len(payload)) == payload
    assert watch.counted() == {Counter.HIT_NAME: 1}


def test_a_wildcard_covers_what_is_below_it_and_an_exact_name_is_stronger(
    watch: Watch, client: Agent, server: Agent, port: int
) -> None:
    watch.name(b"elpmaxe.doog.", ALLOW)
    watch.name("bad.good.example", DENY)
    payload = hello.client_hello("deep.below.good.example")
    send(client, port, payload)
    assert received(server, len(payload)) == payload
    send(client, port, hello.client_hello("bad.good.example"))
    assert watch.counted() == {Counter.HIT_NAME: 2, Counter.DROPPED_NAME: 1}
    for outside in ("good.example", "evilgood.example"):
        send(client, port, hello.client_hello(outside))
        watch.held()


def test_a_persons_word_about_a_name_is_stronger_than_the_policys(
    watch: Watch, client: Agent, port: int, near: Wire, wire: Wire
) -> None:
    watch.name("good.example", ALLOW)
    watch.gate.put_name(NameKey(1, exact("good.example")), DENY)
    watch.configure(present=Present.SET_NAME)
    send(client, port, GOOD)
    assert not any(b"good.example" in frame for frame in wire.until_mark(near.mark()))
    event = watch.verdict_event(EventType.VERDICT_NAME)
    assert event.origin == Origin.SET
    assert watch.counted()[Counter.DROPPED_SET] == 1


def test_a_name_verdict_ends_with_its_time(watch: Watch, client: Agent, port: int) -> None:
    watch.name("good.example", ALLOW._replace(expires=time.clock_gettime_ns(time.CLOCK_MONOTONIC) - 1))
    send(client, port, GOOD)
    assert watch.held().packet.payload == GOOD


def test_a_name_verdict_of_the_generation_before_says_nothing(watch: Watch, client: Agent, port: int) -> None:
    watch.name("good.example", ALLOW)
    watch.flip()
    watch.dest(OUTSIDE, port, UNDECIDED)
    send(client, port, GOOD)
    assert watch.held().packet.payload == GOOD


def test_without_a_plan_the_engine_is_asked(watch: Watch, client: Agent) -> None:
    watch.dest(OUTSIDE, 4401, ALLOW)
    watch.gate.set_generation(watch.generation + 1)
    client.start(f"s = connected({OUTSIDE!r}, 4401)")
    assert watch.held().note.generation == watch.generation + 1
