"""Addresses in one canonical form."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def canonical(address: IPAddress) -> IPAddress:
    """Return the address with an IPv4-mapped one (RFC 4291 section 2.5.5.2) turned into IPv4 and without a zone."""
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        if mapped is not None:
            return mapped
        return ipaddress.IPv6Address(int(address))
    return address


def to_key(address: IPAddress) -> bytes:
    """Return the 16 bytes that every kernel key uses: IPv4 as ::ffff:a.b.c.d."""
    if isinstance(address, ipaddress.IPv4Address):
        return b"\0" * 10 + b"\xff\xff" + address.packed
    return address.packed


def from_key(key: bytes) -> IPAddress:
    """Read 16 key bytes back into a canonical address."""
    return canonical(ipaddress.IPv6Address(key))


@lru_cache(maxsize=4096)
def locality(address: IPAddress) -> str:
    """Return unspecified, loopback, multicast, link_local, private or public, first match (IANA special registries)."""
    if address.is_unspecified:
        return "unspecified"
    if address.is_loopback:
        return "loopback"
    if address.is_multicast:
        return "multicast"
    if address.is_link_local:
        return "link_local"
    if address.is_private:
        return "private"
    return "public"
