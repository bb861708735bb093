"""Records and bytes: what is packed is read back, pads are zero, and the sequence-space count is payload."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.abi import records
from engine.abi.numbers import HELLO_KEPT, NAME_KEY_BYTES, SHAPES_MAX

U8, U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))
ADDRESS = st.binary(min_size=16, max_size=16)
TUPLES = st.builds(records.Tuple, ADDRESS, ADDRESS, U16, U16, U8)
SHAPES = st.lists(U8, max_size=SHAPES_MAX).map(tuple)
ROUND_TRIPS = st.one_of(
    TUPLES,
    st.builds(records.Config, U32, U32, U32, U32, U32, U64, U32, U32),
    st.builds(records.InboundFlow, U8, U8, U32, U32, U32, U8, U64, U8, U32),
    st.builds(records.Plan, U32, SHAPES, SHAPES, st.booleans()),
    st.builds(records.Process, U64, U32),
    st.builds(records.VerdictEntry, U8, U32, U64, U8, U64, st.none()),
    st.builds(records.ConnectKey, U32, U8, U8, U16, ADDRESS, U64, U32, U32),
    st.builds(records.FlowKey, TUPLES, U32, U32, U64),
    st.builds(records.DestinationKey, U8, U8, U16, ADDRESS, st.integers(0, 128)),
    st.builds(records.SourceKey, U32, ADDRESS, st.integers(0, 128)),
    st.builds(records.NameKey, U32, st.binary(max_size=NAME_KEY_BYTES)),
    st.builds(records.StrategyKey, U32, U64),
)


@given(ROUND_TRIPS)
def test_what_is_packed_is_read_back(record: records.Tuple) -> None:
    assert type(record).unpack(record.pack()) == record


@given(st.builds(records.VerdictEntry, U8, U32, U64, U8, U64, st.none() | U32))
def test_a_flow_s_own_entry_says_how_far_its_stream_was_read(entry: records.VerdictEntry) -> None:
    assert records.VerdictEntry.unpack_of_flow(entry.pack_of_flow()) == entry


@given(st.builds(records.KeptHello, TUPLES, U32, st.binary(max_size=HELLO_KEPT)))
def test_a_kept_hello_is_as_long_as_it_was(kept: records.KeptHello) -> None:
    assert records.KeptHello.unpack(kept.pack()) == kept


@pytest.mark.parametrize("name", records.LAYOUTS)
def test_offsets_leave_no_byte_unaccounted_for(name: str) -> None:
    """Hash keys are compared byte by byte: a hole would hold whatever was there."""
    at = 0
    for offset, size in records.offsets(name).values():
        assert offset == at
        at += size


def test_trie_prefixes_count_what_stands_before_the_address() -> None:
    assert records.DestinationKey(2, 6, 443, bytes(16), 120).pack()[:4] == (32 + 120).to_bytes(4, "little")
    assert records.SourceKey(7, bytes(16), 24).pack()[:4] == (32 + 24).to_bytes(4, "little")
    assert records.NameKey(16, b"moc.elpmaxe\0").pack()[:4] == (32 + 8 * 12).to_bytes(4, "little")


def test_a_name_longer_than_the_key_is_refused() -> None:
    """Cut short it would be a prefix: a verdict for every name that begins alike."""
    with pytest.raises(ValueError, match="too long"):
        records.NameKey(16, bytes(NAME_KEY_BYTES + 1)).pack()


@pytest.mark.parametrize(
    ("acked", "old_state", "sent"),
    [(0, 2, 0), (1, 1, 0), (101, 1, 100), (102, 5, 100), (102, 6, 100), (102, 9, 100), (102, 11, 100), (101, 4, 100)],
)
def test_bytes_sent_are_payload(acked: int, old_state: int, sent: int) -> None:
    """RFC 9293 section 3.4: the SYN counts one once anything is acknowledged, the FIN one in its states."""
    data = bytearray(records.SOCKET_EVENT.size)
    for field, value in (("bytes_acked", acked), ("old_state", old_state)):
        at, size = records.offsets("socket_event")[field]
        data[at : at + size] = value.to_bytes(size, "little")
    event = records.SocketEvent.unpack(bytes(data))
    assert event.bytes_sent() == sent


@given(st.binary(min_size=1, max_size=199))
def test_a_named_verdict_gives_the_name_as_it_is_read(name: bytes) -> None:
    head = bytes(records.VERDICT_EVENT.size)
    data = head + len(name).to_bytes(4, "little") + name[::-1].ljust(NAME_KEY_BYTES, b"x") + bytes(4)
    assert records.VerdictEvent.unpack_named(data).name == name
