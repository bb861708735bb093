"""Laws of the name normalisation that the kernel's table rests on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.model.name import NamePattern, normalise, reversed_key

LABEL = st.text("abcxyz019-_", min_size=1, max_size=63)
NAME = st.lists(LABEL, min_size=1, max_size=4).map(".".join).filter(lambda name: not normalise(name.encode())[1])
ANY = st.one_of(st.binary(max_size=300), st.text("aB.0-_x", max_size=260).map(str.encode))


@given(ANY)
def test_a_usable_name_is_the_folded_bytes_without_one_trailing_dot(raw: bytes) -> None:
    value, reason = normalise(raw)
    assert bool(value) != bool(reason)
    if value:
        assert value.encode() in (raw.lower(), raw.lower()[:-1])
        assert raw.lower() in (value.encode(), value.encode() + b".")
        assert normalise(value.encode()) == (value, "")


@given(NAME)
def test_case_and_trailing_dot_never_change_a_name(name: str) -> None:
    assert normalise(name.upper().encode()) == normalise(name.encode() + b".") == (name, "")


@given(NAME, st.booleans())
def test_what_a_pattern_prints_it_reads_back(name: str, below: bool) -> None:
    pattern = NamePattern(name, below)
    assert NamePattern.parse(str(pattern)) == pattern


@given(NAME, NAME, st.booleans())
def test_the_key_of_a_wildcard_is_a_prefix_exactly_of_what_it_matches(name: str, other: str, nested: bool) -> None:
    candidate = f"{other}.{name}" if nested else other
    pattern = NamePattern(name, below=True)
    assert reversed_key(candidate).startswith(pattern.key()) == pattern.matches(candidate)
    assert NamePattern(name).matches(candidate) == (reversed_key(candidate) == reversed_key(name))
