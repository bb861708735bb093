"""The lab's own DNS, held to the engine's reader: what the lab says on the wire must be what a resolver says."""

from __future__ import annotations

import ipaddress
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.lab.lookup import TTL, answer, question
from engine.protocols.dns import Address, Kind, Message, Question, encode, parse

labels = st.lists(st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=63), min_size=1, max_size=3)


@given(labels, st.integers(0, 65535))
def test_a_question_is_one(parts: list[str], number: int) -> None:
    asked = Question(tuple(part.encode() for part in parts), Kind.A)
    assert parse(question(".".join(parts), number)) == Message(number, False, (asked,))


@given(labels, st.integers(0, 65535), st.ip_addresses(v=4))
def test_an_answer_gives_the_name_its_address(parts: list[str], number: int, address: ipaddress.IPv4Address) -> None:
    name, owner = ".".join(parts), tuple(part.encode() for part in parts)
    said = answer(question(name, number), {name: str(address)})
    assert parse(said) == Message(
        number, True, (Question(owner, Kind.A),), (Address(owner, TTL, address.packed),)
    )  # fmt: skip


def test_a_name_in_capitals_is_the_same_name() -> None:
    said = parse(answer(question("NAMED.example", 1), {"named.example": "192.0.2.1"}))
    assert isinstance(said, Message)
    assert len(said.answers) == 1


def test_a_name_that_is_not_there_is_said_to_be_none() -> None:
    said = parse(answer(question("other.example", 7), {"named.example": "192.0.2.1"}))
    assert isinstance(said, Message)
    assert (said.id, said.rcode, said.answers) == (7, 3, ())


@pytest.mark.parametrize("kind", [Kind.AAAA, Kind.HTTPS])
def test_other_questions_are_not_answered(kind: Kind) -> None:
    asked = encode(Message(1, False, (Question((b"named", b"example"), kind),)))
    with pytest.raises(ValueError, match="IPv4"):
        answer(asked, {"named.example": "192.0.2.1"})


@given(st.binary(max_size=80))
def test_no_datagram_breaks_it(data: bytes) -> None:
    with suppress(ValueError):
        answer(data, {"named.example": "192.0.2.1"})
