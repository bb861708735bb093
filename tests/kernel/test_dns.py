"""DNS as the gate tells of it: every message on the ring before its reader has it, whole or marked as cut."""

from __future__ import annotations

import struct

import pytest

from engine.abi.numbers import EventType, Present
from engine.abi.records import DnsEvent
from engine.protocols.dns import Kind, Message, Question, encode
from engine.runtime.resolutions import Resolutions
from tests.kernel.lab import ALLOW, DEVICE, INSIDE, INSIDE6, OUTSIDE, OUTSIDE6, TCP, UDP, Watch, key
from tests.support.lookups import SYN, alias, labels, points
from tests.support.netns import Agent

QUESTION = encode(Message(7, False, (Question(labels("www.example"), Kind.A),), edns=True))
RECORDS = (alias("www.example", "edge.example", 300), points("edge.example", "198.51.100.20", 60))
ANSWER = encode(Message(7, True, (Question(labels("www.example"), Kind.A),), RECORDS, edns=True))
BOTH = [(INSIDE, OUTSIDE), (INSIDE6, OUTSIDE6)]


def told(watch: Watch) -> list[DnsEvent]:
    """Return what is on the ring now, without waiting for more."""
    found: list[DnsEvent] = []

    def take(data: bytes) -> None:
        if int.from_bytes(data[8:12], "little") == EventType.DNS:
            found.append(DnsEvent.unpack(data))

    watch.ring.drain(take, 1 << 20)
    return found


def names(events: list[DnsEvent], resolver: str) -> tuple[str, ...]:
    resolutions = Resolutions(100, lambda: {key(resolver)})
    for event in events:
        resolutions.observe(event)
    return resolutions.known(key("198.51.100.20"))[0]


def framed(message: bytes) -> bytes:
    return struct.pack("!H", len(message)) + message


@pytest.fixture(autouse=True)
def observed(watch: Watch) -> None:
    watch.configure(present=Present.DNS)
    for address in (OUTSIDE, OUTSIDE6):
        watch.dest(address, 53, ALLOW, UDP)
        watch.dest(address, 53, ALLOW, TCP)


@pytest.mark.parametrize(("mine", "theirs"), BOTH)
def test_a_lookup_is_told_before_the_program_has_its_answer(
    watch: Watch, client: Agent, server: Agent, mine: str, theirs: str
) -> None:
    server.do(f"s = bound({theirs!r}, 53)")
    client.do(f"c = udp({theirs!r}); c.connect(({theirs!r}, 53)); c.send({QUESTION!r})")
    server.do(f"s.sendto({ANSWER!r}, s.recvfrom(4096)[1])")
    assert client.do("c.recv(4096)") == ANSWER
    question, answer = told(watch)
    assert (question.ingress, question.payload, question.truncated) == (False, QUESTION, False)
    assert (answer.ingress, answer.payload, answer.truncated) == (True, ANSWER, False)
    assert (question.tuple.src, question.tuple.dst, question.tuple.dport) == (key(mine), key(theirs), 53)
    assert (answer.tuple.src, answer.tuple.sport, answer.tuple.dport) == (key(theirs), 53, question.tuple.sport)
    assert question.time <= answer.time
    loaded = watch.lab.loaded
    assert loaded is not None
    assert question.ifindex == answer.ifindex == loaded.interfaces[DEVICE]
    assert names([question, answer], theirs) == ("edge.example", "www.example")


@pytest.mark.parametrize(("mine", "theirs"), BOTH)
def test_a_lookup_over_tcp_is_told_from_its_first_segments(
    watch: Watch, client: Agent, server: Agent, mine: str, theirs: str
) -> None:
    server.do(f"l = listening({theirs!r}, 53)")
    client.do(f"c = connected({theirs!r}, 53); c.sendall({framed(QUESTION)!r})")
    server.do(f"a = accepted(l); exactly(a, {len(framed(QUESTION))})")
    for part in (framed(ANSWER)[:1], framed(ANSWER)[1:40], framed(ANSWER)[40:]):
        server.do(f"a.sendall({part!r})")
        assert client.do(f"exactly(c, {len(part)})") == part
    events = told(watch)
    opened, accepted = events[:2]
    assert (opened.ingress, opened.tcp_flags & SYN, opened.payload) == (False, SYN, b"")
    assert (accepted.ingress, accepted.tcp_flags & SYN, accepted.payload) == (True, SYN, b"")
    # `seq` of a SYN is that of the byte behind it.
    assert next(event.seq for event in events[2:] if not event.ingress) == opened.seq
    assert next(event.seq for event in events[2:] if event.ingress) == accepted.seq
    assert names(events, theirs) == ("edge.example", "www.example")


def test_a_message_longer_than_what_is_handed_on_is_marked(watch: Watch, client: Agent, server: Agent) -> None:
    server.do(f"l = listening({OUTSIDE!r}, 53)")
    client.do(f"c = connected({OUTSIDE!r}, 53)")
    server.do("a = accepted(l)")
    told(watch)
    client.do("c.sendall(bytes(9000))")
    server.do("exactly(a, 9000)")
    leaving = [event for event in told(watch) if not event.ingress]
    assert all(event.truncated == (len(event.payload) == 512) for event in leaving), leaving
    assert any(event.truncated for event in leaving)
    server.do("a.sendall(bytes(9000))")
    client.do("exactly(c, 9000)")
    coming = [event for event in told(watch) if event.ingress]
    assert all(event.truncated == (len(event.payload) == 4096) for event in coming), coming
    assert any(event.truncated for event in coming)


def test_an_answer_in_fragments_names_nothing(watch: Watch, client: Agent, server: Agent) -> None:
    server.do(f"s = bound({OUTSIDE!r}, 53)")
    client.do(f"c = udp(); c.connect(({OUTSIDE!r}, 53)); c.send({QUESTION!r})")
    server.do(f"s.sendto({ANSWER!r} + bytes(3000), s.recvfrom(4096)[1])")
    assert len(client.do("c.recv(4096)")) == len(ANSWER) + 3000
    # What the first fragment has is at most a part of a message, and a part is none.
    assert names(told(watch), OUTSIDE) == ()


def test_without_a_policy_that_reads_names_nothing_is_told(watch: Watch, client: Agent, server: Agent) -> None:
    watch.configure()
    server.do(f"s = bound({OUTSIDE!r}, 53)")
    client.do(f"c = udp(); c.connect(({OUTSIDE!r}, 53)); c.send({QUESTION!r})")
    server.do(f"s.sendto({ANSWER!r}, s.recvfrom(4096)[1])")
    assert client.do("c.recv(4096)") == ANSWER
    assert told(watch) == []


def test_what_this_host_answers_is_no_answer_to_it(watch: Watch, client: Agent, server: Agent) -> None:
    client.do(f"s = bound({INSIDE!r}, 53)")
    server.do(f"c = udp(); c.connect(({INSIDE!r}, 53)); c.send({QUESTION!r})")
    client.do("who = s.recvfrom(4096)[1]")
    watch.dest(OUTSIDE, server.do("c.getsockname()[1]"), ALLOW, UDP)
    client.do(f"s.sendto({ANSWER!r}, who)")
    assert server.do("c.recv(4096)") == ANSWER
    assert names(told(watch), OUTSIDE) == ()
