"""What a policy says of sources: who may send, who may not, and how much one may ask for."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

import msgspec

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PREFIX_SETS = ("source_deny", "source_allow")
LIMITS = ("scan_limit", "flood_limit")
WORDS = (*PREFIX_SETS, *LIMITS)
"""What `package sallyport` may say of sources."""


class ScanLimit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A source that tries this many ports within `seconds` is blocked for `block_seconds`."""

    ports: int
    seconds: float
    block_seconds: float


class FloodLimit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A source that sends this many SYNs within `seconds` is blocked for `block_seconds`."""

    syns: int
    seconds: float
    block_seconds: float


class SourceReport(msgspec.Struct, frozen=True, array_like=True):
    """What the checker found: prefixes in canonical form and order."""

    deny: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    scan: ScanLimit | None = None
    flood: FloodLimit | None = None

    def rules(self) -> SourceRules:
        return SourceRules(_networks(self.deny), _networks(self.allow), self.scan, self.flood)


@dataclass(frozen=True)
class SourceRules:
    """The part of a policy that is about sources. The longest prefix decides; of two alike, the allow."""

    deny: tuple[Network, ...] = ()
    allow: tuple[Network, ...] = ()
    scan: ScanLimit | None = None
    flood: FloodLimit | None = None

    @property
    def judge(self) -> bool:
        """Whether any frame may be dropped for its source: an allow alone excepts from nothing."""
        return bool(self.deny or self.scan or self.flood)


def _networks(prefixes: tuple[str, ...]) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(prefix) for prefix in prefixes)
