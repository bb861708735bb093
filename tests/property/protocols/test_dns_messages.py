"""DNS: what is printed reads back the same; any bytes give a message or a stated fault, and bounded names."""

from __future__ import annotations

import random
import struct
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.model.name import normalise
from engine.protocols.dns import (
    Address,
    Alias,
    Kind,
    Malformed,
    Message,
    MessageStream,
    Question,
    Service,
    encode,
    parse,
)
from engine.protocols.dns_chain import MAX_ADDRESSES, MAX_CHAIN, host_name, named_addresses

LABELS = st.one_of(st.sampled_from([b"a", b"b", b"example", b"WWW", b"a.b", b"\0"]), st.binary(min_size=1, max_size=63))
NAMES = st.lists(LABELS, max_size=6).map(tuple).filter(lambda name: sum(len(one) + 1 for one in name) < 255)
FEW = st.sampled_from([(bytes((letter,)), b"example") for letter in b"abcdeA"])
TTLS = st.integers(0, (1 << 31) - 1)
ADDRESSES = st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16))


def hints(addresses: list[bytes]) -> tuple[bytes, ...]:
    """In the order of their keys, as they stand on the wire."""
    return tuple(sorted(addresses, key=len))


def records(names: st.SearchStrategy[tuple[bytes, ...]]) -> st.SearchStrategy[Address | Alias | Service]:
    services = st.builds(
        Service, names, TTLS, st.sampled_from([Kind.SVCB, Kind.HTTPS]), st.integers(0, 65535), names,
        st.lists(ADDRESSES, max_size=5).map(hints),
    )  # fmt: skip
    return st.one_of(st.builds(Address, names, TTLS, ADDRESSES), st.builds(Alias, names, TTLS, names), services)


def messages(names: st.SearchStrategy[tuple[bytes, ...]]) -> st.SearchStrategy[Message]:
    questions = st.builds(Question, names, st.one_of(st.sampled_from(list(Kind)), st.integers(0, 65535)), st.just(1))
    plain = st.builds(
        Message, st.integers(0, 65535), st.booleans(), st.lists(questions, min_size=1, max_size=2).map(tuple),
        st.lists(records(names), max_size=12).map(tuple), st.integers(0, 15), st.integers(0, 15), st.booleans(),
    )  # fmt: skip
    return st.one_of(plain, plain.map(lambda one: one._replace(edns=True, rcode=one.rcode << 8 | one.rcode)))


@given(messages(NAMES))
@settings(max_examples=150, deadline=None)
def test_what_is_printed_reads_back_the_same(message: Message) -> None:
    assert parse(encode(message)) == message


@given(
    messages(NAMES), st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 255)), max_size=6), st.integers(0, 4000)
)
@settings(max_examples=150, deadline=None)
def test_a_damaged_message_is_one_or_a_stated_fault(
    message: Message, damage: list[tuple[int, int]], length: int
) -> None:
    data = bytearray(encode(message))
    for place, flip in damage:
        data[place % len(data)] ^= flip
    check(bytes(data[:length]))


@given(st.binary(max_size=300), st.integers(0, 3), st.integers(0, 6))
@settings(max_examples=400, deadline=None)
def test_any_bytes_are_a_message_or_a_stated_fault(data: bytes, asked: int, answered: int) -> None:
    check(data)
    check(struct.pack("!6H", 1, 0x8180, asked, answered, 0, 0) + data)


def check(data: bytes) -> None:
    found = parse(data)
    if isinstance(found, Malformed):
        assert found.reason
        return
    for name in [question.name for question in found.questions] + [answer.owner for answer in found.answers]:
        assert sum(len(label) + 1 for label in name) < 255
        assert all(0 < len(label) < 64 for label in name)
        value = host_name(name)
        assert not value or normalise(value.encode()) == (value, "")
    # Canonical: what was read is what its printed form reads as.
    assert parse(encode(found)) == found


@given(messages(FEW), st.sampled_from(list(Kind)))
@settings(max_examples=200, deadline=None)
def test_only_what_hangs_together_with_the_question_is_said(message: Message, kind: Kind) -> None:
    question = message.questions[0]._replace(kind=kind)
    said = named_addresses(message._replace(questions=(question,)))
    links: dict[str, set[tuple[str, int]]] = {}
    for record in message.answers:
        if isinstance(record, Alias):
            links.setdefault(host_name(record.owner), set()).add((host_name(record.target), record.ttl))
    assert len(said) <= MAX_ADDRESSES
    for address, names in said:
        assert kind in (Kind.SVCB, Kind.HTTPS) or len(address) == {Kind.A: 4, Kind.AAAA: 16}[kind]
        assert len(names) <= MAX_CHAIN
        chain = [name for name, _ in reversed(names)]
        assert chain[0] == host_name(question.name)
        for one, following in pairwise(chain):
            assert following in {target for target, _ in links[one]}
        owners = [
            record.ttl for record in message.answers if not isinstance(record, Alias)
            and host_name(record.owner) == chain[-1]
            and address in (record.addresses if isinstance(record, Service) else (record.address,))
        ]  # fmt: skip
        assert names[0][1] in owners
        assert [seconds for _, seconds in names] == sorted((seconds for _, seconds in names), reverse=True)


@given(st.lists(messages(FEW).map(encode), min_size=1, max_size=4), st.integers(0, (1 << 32) - 1), st.randoms())
@settings(max_examples=80, deadline=None)
def test_a_stream_gives_its_messages_in_order_whatever_happens_to_its_segments(
    sent: list[bytes], start: int, chance: random.Random
) -> None:
    data = b"".join(struct.pack("!H", len(message)) + message for message in sent)
    edges = sorted({0, len(data), *(chance.randrange(len(data)) for _ in range(6))})
    parts = list(pairwise(edges))
    parts += chance.sample(parts, chance.randint(0, len(parts)))
    chance.shuffle(parts)
    stream = MessageStream(start)
    got: list[bytes] = []
    for begin, end in parts:
        found = stream.push((start + begin) & 0xFFFFFFFF, data[begin:end])
        assert not isinstance(found, Malformed)
        got += found
    assert got == sent
