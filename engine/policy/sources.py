"""What a policy says of sources: who may send, who may not, and how much one may ask for."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Iterator

import msgspec

from engine.model.net import canonical

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PREFIX_SETS = ("source_deny", "source_allow")
LIMITS = ("scan_limit", "flood_limit")
WORDS = (*PREFIX_SETS, *LIMITS)
"""What `package sallyport` may say of sources."""
_BYTES = {4: 4, 6: 16}


class Prefixes(msgspec.Struct, frozen=True, array_like=True):
    """Prefixes, each once, in a form of which a million take some megabytes and no time: for each version and length,
    in that order, the addresses one behind the other, sorted."""

    groups: tuple[tuple[int, int, bytes], ...] = ()

    @classmethod
    def of(cls, networks: Iterable[Network | str]) -> Prefixes:
        """Raises ValueError with the first item that is no address and no prefix without host bits."""
        found: dict[tuple[int, int], set[bytes]] = {}
        for item in networks:
            version, length, address = packed(item) if isinstance(item, str) else _packed_network(item)
            found.setdefault((version, length), set()).add(address)
        return cls(
            tuple((version, length, b"".join(sorted(found[version, length]))) for version, length in sorted(found))
        )

    def __len__(self) -> int:
        return sum(len(addresses) // _BYTES[version] for version, _, addresses in self.groups)

    def __iter__(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield (version, length, packed address)."""
        for version, length, addresses in self.groups:
            size = _BYTES[version]
            for at in range(0, len(addresses), size):
                yield version, length, addresses[at : at + size]

    def counts(self) -> Iterator[tuple[int, int, int]]:
        """Yield (version, length, how many)."""
        for version, length, addresses in self.groups:
            yield version, length, len(addresses) // _BYTES[version]

    def texts(self) -> Iterator[str]:
        for _, length, address in self:
            yield f"{ipaddress.ip_address(address)}/{length}"


def packed(text: str) -> tuple[int, int, bytes]:
    """Read a prefix as (version, length, packed address), an IPv4-mapped one as IPv4. ValueError says what is wrong."""
    address, slash, length = text.partition("/")
    version, family = (6, socket.AF_INET6) if ":" in address else (4, socket.AF_INET)
    try:
        raw = socket.inet_pton(family, address)
    except (OSError, ValueError):
        return _packed_network(ipaddress.ip_network(text))
    width = 8 * len(raw)
    bits = int(length) if length.isascii() and length.isdigit() else -1 if slash else width
    # A netmask instead of a length, host bits, an IPv4-mapped address: rare, and ipaddress knows them all.
    if not 0 <= bits <= width or int.from_bytes(raw, "big") & ((1 << (width - bits)) - 1) or raw[:10] == bytes(10):
        return _packed_network(ipaddress.ip_network(text))
    return version, bits, raw


def _packed_network(network: Network) -> tuple[int, int, bytes]:
    mapped = network.version == 6 and network.prefixlen >= 96 and canonical(network.network_address)
    if isinstance(mapped, ipaddress.IPv4Address):
        return 4, network.prefixlen - 96, mapped.packed
    return network.version, network.prefixlen, network.network_address.packed


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


class SourceRules(msgspec.Struct, frozen=True, array_like=True):
    """The part of a policy that is about sources. The longest prefix decides; of two alike, the allow."""

    deny: Prefixes = Prefixes()
    allow: Prefixes = Prefixes()
    scan: ScanLimit | None = None
    flood: FloodLimit | None = None

    @property
    def judge(self) -> bool:
        """Whether any frame may be dropped for its source: an allow alone excepts from nothing."""
        return bool(self.deny or self.scan or self.flood)
