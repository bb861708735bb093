"""Compiled programs as values: what binds them to maps, what is refused, and their printed form."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import KernelError
from engine.kernel.objects import Code, MapLayout, Unit, from_json, shared_maps, to_json

EXIT = bytes([0x95, 0, 0, 0, 0, 0, 0, 0])
TABLE = MapLayout("table", 1, 4, 8, 100, 1, pinned=True)


def load_64(source: int, value: int, second: bytes = bytes(8)) -> bytes:
    """An instruction that loads 64 bits; `source` 1: the address of the map with this descriptor."""
    return struct.pack("<BBhI", 0x18, source << 4 | 1, 0, value) + second


def test_a_map_is_named_and_gets_its_new_descriptor() -> None:
    code = Code.of("f", EXIT + load_64(1, 77) + load_64(1, 78) + EXIT, {77: "table", 78: "other"})
    assert code.maps == ((1, "table"), (3, "other"))
    assert code.bound({"table": 5, "other": 0x01020304}) == (
        EXIT + load_64(1, 5) + load_64(1, 0x01020304) + EXIT
    )  # fmt: skip


def test_what_the_compiling_process_had_leaves_no_trace() -> None:
    """The same source gives the same bytes, whatever descriptors the compiler had."""
    first = Code.of("f", load_64(1, 7) + EXIT, {7: "table"})
    assert first == Code.of("f", load_64(1, 9) + EXIT, {9: "table"})


def test_a_constant_is_no_map() -> None:
    code = Code.of("f", load_64(0, 77) + EXIT, {77: "table"})
    assert code.maps == ()
    assert code.bound({}) == load_64(0, 77) + EXIT


def test_the_second_half_of_a_long_constant_is_no_instruction() -> None:
    """Its first byte can be anything: here that of a load and of a call."""
    for byte in (0x18, 0x85):
        whole = load_64(0, 1, bytes([byte, 0x11, 0, 0, 77, 0, 0, 0])) + EXIT
        assert Code.of("f", whole, {77: "table"}).instructions == whole


@pytest.mark.parametrize(
    ("instructions", "says"),
    [
        (load_64(1, 3) + EXIT, "no map"),
        (load_64(2, 77) + EXIT, "no map"),
        (bytes([0x85, 0x10, 0, 0, 1, 0, 0, 0]) + EXIT, "calls another function"),
    ],
    ids=["a descriptor of nothing", "a global variable", "another function"],
)
def test_what_needs_more_than_instructions_is_refused(instructions: bytes, says: str) -> None:
    with pytest.raises(KernelError, match=says):
        Code.of("f", instructions, {77: "table"})


def test_a_helper_call_is_nothing_special() -> None:
    helper = bytes([0x85, 0, 0, 0, 5, 0, 0, 0])
    assert Code.of("f", helper + EXIT, {}).instructions == helper + EXIT


names = st.text("abcdefghijklmnop_0123456789", min_size=1, max_size=15)
numbers = st.integers(0, 2**32 - 1)
layouts = st.builds(MapLayout, names, numbers, numbers, numbers, numbers, numbers, st.booleans())
codes = st.builds(
    Code, names, st.lists(st.binary(min_size=8, max_size=8), max_size=9).map(b"".join),
    st.lists(st.tuples(st.integers(0, 9), names), max_size=3).map(tuple),
)  # fmt: skip
units = st.builds(
    Unit, names, names, st.lists(layouts, max_size=4).map(tuple), st.lists(codes, max_size=4).map(tuple)
)  # fmt: skip


@given(st.lists(units, max_size=3).map(tuple))
def test_what_is_printed_is_read_back(given_units: tuple[Unit, ...]) -> None:
    assert from_json(to_json(given_units)) == given_units


@given(st.one_of(st.binary(), st.text().map(str.encode), st.just(b"[{}]"), st.just(b'[{"source":1}]'), st.just(b"7")))
def test_anything_else_is_an_error_of_one_kind(text: bytes) -> None:
    try:
        found = from_json(text)
    except ValueError:
        return
    assert to_json(found) in {text.strip(), b"[]"}


def test_two_files_that_declare_a_map_differently_are_refused() -> None:
    """BCC lets the second one read values of the first one's size."""
    first = Unit("a.c", "GPL", (TABLE,), ())
    assert shared_maps((first, replace(first, source="b.c"))) == {"table": TABLE}
    with pytest.raises(KernelError, match=r"table is declared differently in b\.c"):
        shared_maps((first, Unit("b.c", "GPL", (replace(TABLE, value_size=16),), ())))


def test_maps_that_are_not_pinned_are_nobody_elses() -> None:
    own = replace(TABLE, pinned=False)
    assert shared_maps((Unit("a.c", "GPL", (own,), ()), Unit("b.c", "GPL", (replace(own, value_size=16),), ()))) == {}
