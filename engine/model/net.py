"""Addresses in one canonical form."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
_MAPPED = bytes(10) + b"\xff\xff"


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
        return _MAPPED + address.packed
    return address.packed


def from_key(key: bytes) -> IPAddress:
    """Read 16 key bytes back into a canonical address."""
    if key.startswith(_MAPPED) and len(key) == 16:
        return ipaddress.IPv4Address(key[12:])
    return canonical(ipaddress.IPv6Address(key))


@lru_cache(maxsize=1024)
def text_of(key: bytes) -> str:
    """Return 16 key bytes as canonical text: few hosts have many addresses of their own."""
    return str(from_key(key))


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
