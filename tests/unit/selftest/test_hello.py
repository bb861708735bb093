"""The hellos of attempts are real ones: the project's own parsers read what was meant."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine.model.facts import NameState
from engine.protocols.quic import InitialAssembler
from engine.protocols.records import HelloAssembler
from engine.selftest.attempts import hellos
from engine.selftest.hello import client_hello, crypto, handshake, initial, record, scrambled

NAME = b"0123456789abcdef.denied.example"
DCID = bytes(range(8))


def read(stream: bytes) -> tuple[str, NameState, bool]:
    reading = HelloAssembler(16384).feed(stream)
    assert reading is not None
    return reading.name.value, reading.name.state, reading.name.ech


def test_the_name_is_the_one_that_was_asked_for() -> None:
    assert read(client_hello(NAME)) == (NAME.decode(), NameState.COMPLETE, False)


def test_ech_is_there_when_it_was_asked_for() -> None:
    assert read(client_hello(NAME, ech=True)) == (NAME.decode(), NameState.COMPLETE, True)


def test_the_name_ends_the_hello() -> None:
    # The urgent byte and the second name rest on it.
    assert client_hello(NAME).endswith(NAME)


def test_an_initial_can_be_opened() -> None:
    reading = InitialAssembler(16384).feed(initial(crypto(0, handshake(NAME)), DCID, token=b"seen by all"))
    assert reading is not None
    assert reading.name.value == NAME.decode()


def test_an_initial_shows_its_token_and_hides_its_name() -> None:
    datagram = initial(crypto(0, handshake(NAME)), DCID, token=b"seen by all")
    assert b"seen by all" in datagram
    assert NAME not in datagram
    assert len(datagram) == 1200


def test_a_scrambled_hello_needs_both_datagrams() -> None:
    hello = handshake(NAME)
    first, second = scrambled(hello, DCID, b"token", range(7, len(hello), 7))
    assembler = InitialAssembler(16384)
    assert assembler.feed(first) is None
    reading = assembler.feed(second)
    assert reading is not None
    assert reading.name.value == NAME.decode()


class Said(Exception):  # noqa: N818 - no error
    pass


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[hellos.Chance], None]], bytes]:
    def say(attempt: Callable[[hellos.Chance], None]) -> bytes:
        pieces: list[bytes] = []
        monkeypatch.setattr(hellos, "_say", lambda _chance, given: pieces.extend(given))
        attempt(hellos.Chance(5001, "0123456789abcdef", *([None] * 3)))  # type: ignore[arg-type]
        return b"".join(pieces)

    return say


def test_two_names_make_one_well_formed_hello_but_for_the_second(said: Callable[..., bytes]) -> None:
    stream = said(hellos.two_names)
    # Every length in it is right: it is refused for naming itself twice, and for nothing else.
    assert int.from_bytes(stream[3:5], "big") == len(stream) - 5
    assert int.from_bytes(stream[6:9], "big") == len(stream) - 9
    assert int.from_bytes(stream[50:52], "big") == len(stream) - 52
    assert read(stream)[1] is NameState.MALFORMED


@pytest.mark.parametrize("attempt", [hellos.trickled, hellos.record_each], ids=lambda attempt: str(attempt.__name__))
def test_cut_hellos_are_whole_once_put_together(said: Callable[..., bytes], attempt: object) -> None:
    assert read(said(attempt)) == (NAME.decode(), NameState.COMPLETE, False)


def test_a_record_says_what_is_in_it() -> None:
    assert record(b"abc") == b"\x16\x03\x01\x00\x03abc"
