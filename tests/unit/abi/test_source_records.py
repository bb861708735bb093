"""Records about sources and bytes: what is packed is read back, and masks keep what they should."""

from __future__ import annotations

import ipaddress

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.abi import source

U8, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (8, 32, 64))
ADDRESS = st.binary(min_size=16, max_size=16)
LENGTHS = st.lists(st.integers(1, 128), max_size=source.LENGTHS).map(tuple)
ROUND_TRIPS = st.one_of(
    st.builds(
        source.SourcePlan, U32, st.tuples(LENGTHS, LENGTHS), st.tuples(U32, U32),
        st.builds(source.Limits, U32, U32, U64, U64, U64, U64),
    ),
    st.builds(source.SourceEntry, U8, U8),
    st.builds(source.PrefixKey, U32, U32, ADDRESS),
    st.builds(source.Blocked, U64, U64, U64, U32, U32, U32, U8, U8),
)  # fmt: skip


@settings(deadline=None)
@given(ROUND_TRIPS)
def test_what_is_packed_is_read_back(record: source.SourceEntry) -> None:
    assert type(record).unpack(record.pack()) == record


@settings(deadline=None)
@given(st.integers(0, 128), ADDRESS)
def test_a_mask_makes_an_address_its_network(bits: int, address: bytes) -> None:
    masked = bytes(one & other for one, other in zip(address, source.mask(bits), strict=True))
    assert masked == ipaddress.IPv6Network((address, bits), strict=False).network_address.packed
