"""What a DNS answer says: which names lead to which address. No IO.

Only what hangs together with the question counts; a server may write anything else beside it.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.model.name import normalise
from engine.protocols.dns import Address, Alias, Labels, Message, Service

MAX_CHAIN = 16
"""Names from the one asked for to the one that has the address. Resolvers stop at 16 or before (BIND, unbound,
systemd-resolved)."""
MAX_ADDRESSES = 64
"""Believed of one answer: with more, a few answers of one zone would push every other name out."""


def folded(name: Labels) -> Labels:
    """Return the name for comparison: letter case does not count (RFC 4343)."""
    return tuple(label.lower() for label in name)


def host_name(name: Labels) -> str:
    """Return the normalised host name, empty when it is none. A label with a dot inside would be read as two."""
    if any(b"." in label for label in name):
        return ""
    return normalise(b".".join(name))[0]


def named_addresses(message: Message) -> list[tuple[bytes, tuple[tuple[str, int], ...]]]:
    """Return what an answer says: (address, ((host name, seconds), ...)) for each address, 4 or 16 bytes.

    Only what hangs together with the question counts: the name asked for, and each link of the one chain of aliases
    that leads from it to the owner of an address of the kind asked for. A name's seconds are the least of the links
    behind it. The target of a service record is left out: whoever has a zone may write there whose name he likes, and
    beside it his own addresses. A chain that forks (RFC 2181 section 10.1), loops or has no end says nothing.
    """
    question = message.questions[0]
    links: dict[Labels, Alias] = {}
    for record in message.answers:
        if isinstance(record, Alias):
            owner = folded(record.owner)
            known = links.setdefault(owner, record)
            if folded(known.target) != folded(record.target):
                return []
    at = folded(question.name)
    chain: list[tuple[Labels, int]] = []
    while at in links:
        chain.append((at, links[at].ttl))
        if len(chain) >= MAX_CHAIN:
            return []
        at = folded(links[at].target)
    found = []
    for address, ttl in _addresses(message, at, question.kind):
        names: dict[str, int] = {}
        left = ttl
        for owner, bound in [(at, ttl), *reversed(chain)]:
            left = min(left, bound)
            name = host_name(owner)
            if name:
                names[name] = left
        if names:
            found.append((address, tuple(names.items())))
        if len(found) == MAX_ADDRESSES:
            break
    return found


def _addresses(message: Message, owner: Labels, kind: int) -> Iterator[tuple[bytes, int]]:
    for record in message.answers:
        if folded(record.owner) != owner:
            continue
        if isinstance(record, Address) and record.kind == kind:
            yield record.address, record.ttl
        elif isinstance(record, Service) and record.kind == kind:
            for address in record.addresses:
                yield address, record.ttl
