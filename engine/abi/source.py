"""The mirror of bpf/include/source_abi.h: what the engine and the program that judges by source address share."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from engine.abi.records import HEADER_CODES, Codes

LENGTHS = 3
FAMILIES = 2
PORT_BITS = 1024
EVENT_BLOCKED = 32


class Family(IntEnum):
    IPV4 = 0
    IPV6 = 1


class Cause(IntEnum):
    SCAN = 1
    FLOOD = 2


class SourceCounter(IntEnum):
    FRAMES = 0
    UNREADABLE = 1
    SPARED = 2
    DROPPED_BLOCKED = 3
    WOULD_BLOCK = 4
    BLOCKS = 5
    LOST_BLOCK = 6
    LOST_TRACK = 7


SOURCE_COUNTERS = 8
SOURCE_LOSSES = (SourceCounter.LOST_BLOCK, SourceCounter.LOST_TRACK)
TCP_FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr")


class Limits(NamedTuple):
    """`ports` or `syns` 0: no such limit. Times in nanoseconds."""

    ports: int = 0
    syns: int = 0
    scan_ns: int = 0
    scan_block_ns: int = 0
    flood_ns: int = 0
    flood_block_ns: int = 0


class SourcePlan(NamedTuple):
    """`hashed`: for each family the prefix lengths (of 128) that stand in the hash, longest first; `longest`: the
    longest of those in the trie plus one, 0 where it has none of the family."""

    generation: int
    hashed: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    longest: tuple[int, int] = (0, 0)
    limits: Limits = Limits()

    def pack(self) -> bytes:
        lengths = b"".join(
            SOURCE_LENGTH.pack(mask(family[at]) if at < len(family) else bytes(16), (*family, 0, 0, 0)[at])
            for family in self.hashed
            for at in range(LENGTHS)
        )
        return SOURCE_PLAN.pack(self.generation, *self.longest, lengths, *self.limits)

    @classmethod
    def unpack(cls, data: bytes) -> SourcePlan:
        generation, longest4, longest6, lengths, *limits = SOURCE_PLAN.unpack(data)
        bits = [bits for _, bits in SOURCE_LENGTH.iter_unpack(lengths)]
        hashed = tuple(tuple(filter(None, bits[at : at + LENGTHS])) for at in (0, LENGTHS))
        return cls(generation, (hashed[0], hashed[1]), (longest4, longest6), Limits(*limits))


class SourceEntry(NamedTuple):
    """A policy's word on a prefix of `bits` of 128."""

    verdict: int
    bits: int

    def pack(self) -> bytes:
        return SOURCE_ENTRY.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> SourceEntry:
        return cls._make(SOURCE_ENTRY.unpack(data))


class PrefixKey(NamedTuple):
    generation: int
    bits: int
    address: bytes

    def pack(self) -> bytes:
        return PREFIX_KEY.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> PrefixKey:
        return cls._make(PREFIX_KEY.unpack(data))


class Blocked(NamedTuple):
    """`since`, `expires`: CLOCK_MONOTONIC ns. What the source had asked for by then: `syns`, distinct `ports`, SYNs
    that no acknowledgement had followed. `observed`: nothing is dropped for it."""

    since: int
    expires: int
    dropped: int
    syns: int
    ports: int
    unanswered: int
    cause: int
    observed: int

    def pack(self) -> bytes:
        return BLOCKED.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Blocked:
        return cls._make(BLOCKED.unpack(data))


class Tracked(NamedTuple):
    """What a source has asked for in its windows; `port_bits` as the kernel has it."""

    scan_since: int
    flood_since: int
    ports: int
    syns: int
    unanswered: int
    salt: int
    port_bits: bytes

    @classmethod
    def unpack(cls, data: bytes) -> Tracked:
        return cls._make(TRACKED.unpack(data))


class SourceEvent(NamedTuple):
    """A source was blocked. `address`: 16 key bytes, of IPv6 the /64."""

    time: int
    type: int
    address: bytes
    blocked: Blocked
    ifindex: int
    generation: int

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> SourceEvent:
        fields = SOURCE_EVENT.unpack_from(data)
        return cls._make((*fields[:3], Blocked._make(fields[3:-2]), *fields[-2:]))


def mask(bits: int) -> bytes:
    """Return the 16 bytes that keep the first `bits` bits of an address."""
    return (((1 << bits) - 1) << (128 - bits)).to_bytes(16, "big")


BLOCKED_CODES: Codes = (
    ("since", "Q"), ("expires", "Q"), ("dropped", "Q"), ("syns", "I"), ("ports", "I"), ("unanswered", "I"),
    ("cause", "B"), ("observed", "B"), ("pad", "2x"),
)  # fmt: skip
LAYOUTS: dict[str, Codes] = {
    "source_length": (("mask", "16s"), ("bits", "I"), ("pad", "4x")),
    "source_limits": (
        ("ports", "I"), ("syns", "I"), ("scan_ns", "Q"), ("scan_block_ns", "Q"), ("flood_ns", "Q"),
        ("flood_block_ns", "Q"),
    ),
    "source_plan": (
        ("generation", "I"), ("longest[0]", "I"), ("longest[1]", "I"), ("pad", "4x"),
        ("lengths", f"{24 * FAMILIES * LENGTHS}s"), ("limits.ports", "I"), ("limits.syns", "I"),
        ("limits.scan_ns", "Q"), ("limits.scan_block_ns", "Q"), ("limits.flood_ns", "Q"),
        ("limits.flood_block_ns", "Q"),
    ),
    "source_entry": (("verdict", "B"), ("bits", "B"), ("pad", "6x")),
    "prefix_key": (("generation", "I"), ("bits", "I"), ("address", "16s")),
    "source_address": (("bytes", "16s"),),
    "tracked": (
        ("scan_since", "Q"), ("flood_since", "Q"), ("ports", "I"), ("syns", "I"), ("unanswered", "I"), ("salt", "I"),
        ("port_bits", f"{PORT_BITS // 8}s"),
    ),
    "blocked": BLOCKED_CODES,
    "tcp_flag_counts": (("flags", f"{8 * len(TCP_FLAGS)}s"),),
    "source_event": (
        *((f"header.{name}", code) for name, code in HEADER_CODES), ("address", "16s"),
        *((f"blocked.{name}", code) for name, code in BLOCKED_CODES), ("ifindex", "I"), ("generation", "I"),
    ),
}  # fmt: skip


def _struct(name: str) -> struct.Struct:
    return struct.Struct("<" + "".join(code for _, code in LAYOUTS[name]))


SOURCE_LENGTH = _struct("source_length")
SOURCE_PLAN = _struct("source_plan")
SOURCE_ENTRY = _struct("source_entry")
PREFIX_KEY = _struct("prefix_key")
TRACKED = _struct("tracked")
BLOCKED = _struct("blocked")
SOURCE_EVENT = _struct("source_event")
TCP_FLAG_COUNTS = struct.Struct("<8Q")
