"""The names that DNS answered for an address: what policy sees as `dest_names`.

Nothing is asked by us: messages are observed as they pass. An answer counts only if a question for it was seen to leave
this host within the last seconds, to a resolver that this host uses, by the same interface, with the same ports,
number, name and type, and only once. Otherwise any program could name an address as it likes: by asking a server of its
own, by letting one send what nobody asked for, or from a container, as a packet with the resolver's address.

All of it is bounded, and what is pushed out is the oldest: a name that is forgotten is unknown, which policy sees.
"""

from __future__ import annotations

import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Set
from dataclasses import dataclass

from engine.abi.records import DnsEvent, Tuple
from engine.protocols.dns import ADDRESS_KINDS, IN, NO_ERROR, QUERY, Labels, Malformed, Message, MessageStream, parse
from engine.protocols.dns_chain import folded, named_addresses

PORT = 53
PATIENCE = 10.0
"""Seconds that a question waits for its answer: resolver libraries give up after five, and ask again."""
LEAST, MOST = 5.0, 86_400.0
"""Seconds that a name is kept. An answer with no time to live is meant for the connection that follows (RFC 1035
section 3.2.1), and that one must have the time to begin."""
CAPACITY = 16_384
"""Names kept in all: some 430 bytes each where every address has one, so 7 MB."""
NAMES = 16
"""Kept of one address, the newest: one for each link of the longest chain."""
QUESTIONS = 4096
"""Outstanding, the newest: an answer takes some milliseconds, and to push a question out within them a program would
have to ask some hundred thousand a second."""
CONNECTIONS = 64
"""TCP connections to resolvers that are followed, the newest; at most 100 KiB each."""

_SYN = 0x02
_MAPPED = bytes(10) + b"\xff\xff"
_Way = tuple[Tuple, int]
"""From this host to a resolver: tuple of the question, interface."""
_Asked = tuple[_Way, int, Labels, int]


@dataclass
class Observed:
    """Messages by what became of them."""

    asked: int = 0
    """Questions for an address, to a resolver of this host."""
    answered: int = 0
    """Answers to them."""
    elsewhere: int = 0
    """Questions to somebody else: nothing that comes back is believed."""
    unasked: int = 0
    """Answers to no question that waits for one: another name, number or port, too late, or a second one."""
    malformed: int = 0
    """Messages that contradict themselves, and connections whose bytes do."""
    cut: int = 0
    """Messages and segments that were longer than what the gate hands on."""


class _Connection:
    """A TCP connection to a resolver, from its first segments on."""

    __slots__ = ("answers", "questions")

    def __init__(self, start: int) -> None:
        self.questions = MessageStream(start)
        self.answers: MessageStream | None = None


class Resolutions:
    """Belongs to the event loop's thread.

    `capacity`: names kept in all; beyond it whole addresses go, the least recently answered or looked up first.
    `resolvers`: the addresses of this host's resolvers now, 16 key bytes each. `now`: CLOCK_MONOTONIC in ns, the clock
    of the events.
    """

    def __init__(
        self, capacity: int, resolvers: Callable[[], Set[bytes]], now: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._capacity = capacity
        self._resolvers = resolvers
        self._now = now
        self._addresses: OrderedDict[bytes, dict[str, int]] = OrderedDict()
        self._names = 0
        self._asked: OrderedDict[_Asked, int] = OrderedDict()
        self._connections: OrderedDict[_Way, _Connection] = OrderedDict()
        self.observed = Observed()

    def __len__(self) -> int:
        """Return how many names are kept."""
        return self._names

    # ---- what policy sees

    def names(self, address: bytes, now: int) -> tuple[tuple[str, ...], int | None]:
        """Return the names of an address (16 key bytes) at a time, sorted, and when the first of them ends; None
        when there is none."""
        kept = self._addresses.get(address)
        if kept is None:
            return (), None
        self._addresses.move_to_end(address)
        for name in [name for name, until in kept.items() if until <= now]:
            del kept[name]
            self._names -= 1
        if not kept:
            del self._addresses[address]
            return (), None
        return tuple(sorted(kept)), min(kept.values())

    def known(self, address: bytes) -> tuple[tuple[str, ...], float | None]:
        """Return the names of an address now, and the seconds that all of them are good for."""
        now = self._now()
        names, until = self.names(address, now)
        return names, None if until is None else (until - now) / 1e9

    # ---- what passes

    def observe(self, seen: DnsEvent) -> None:
        """Take one message, or one segment of a stream of them, in the order of their passing."""
        flow = seen.tuple
        if flow.dport == PORT and not seen.ingress:
            if flow.dst not in self._resolvers():
                self.observed.elsewhere += 1
                return
        elif flow.sport == PORT and seen.ingress:
            flow = Tuple(flow.dst, flow.src, flow.dport, flow.sport, flow.transport)
        else:
            return  # this host answers somebody: what it says there is no answer to it
        way = flow, seen.ifindex
        if flow.transport == socket.IPPROTO_TCP:
            self._segment(way, seen)
        elif seen.truncated:
            self.observed.cut += 1
        else:
            self._message(way, seen, seen.payload)

    def _segment(self, way: _Way, seen: DnsEvent) -> None:
        connection = self._connection(way, seen)
        if connection is None:
            return
        stream = connection.answers if seen.ingress else connection.questions
        if stream is None:
            return
        if seen.truncated:
            self.observed.cut += 1
            del self._connections[way]
            return
        messages = stream.push(seen.seq, seen.payload)
        if isinstance(messages, Malformed):
            self.observed.malformed += 1
            del self._connections[way]
            return
        for message in messages:
            self._message(way, seen, message)

    def _connection(self, way: _Way, seen: DnsEvent) -> _Connection | None:
        """Return the connection that a segment belongs to; None when its beginning was not seen: older than the gate,
        or pushed out, or given up. `seq` of a SYN is that of the byte behind it."""
        known = self._connections.get(way)
        if seen.tcp_flags & _SYN and not seen.ingress and (known is None or known.questions.start != seen.seq):
            known = self._connections[way] = _Connection(seen.seq)
            if len(self._connections) > CONNECTIONS:
                self._connections.popitem(last=False)
        if known is None:
            return None
        if seen.tcp_flags & _SYN and seen.ingress:
            if known.answers is not None and known.answers.start != seen.seq:
                # Two servers answer one SYN: nobody can tell which of them the client listens to.
                self.observed.malformed += 1
                del self._connections[way]
                return None
            known.answers = known.answers or MessageStream(seen.seq)
        self._connections.move_to_end(way)
        return known

    def _message(self, way: _Way, seen: DnsEvent, data: bytes) -> None:
        message = parse(data)
        if isinstance(message, Malformed):
            self.observed.malformed += 1
        elif message.response is seen.ingress and message.opcode == QUERY and len(message.questions) == 1:
            question = message.questions[0]
            if question.klass == IN and question.kind in ADDRESS_KINDS:
                key = (way, message.id, folded(question.name), question.kind)
                if seen.ingress:
                    self._answer(key, message, seen.time)
                else:
                    self._ask(key, seen.time)

    def _ask(self, key: _Asked, time_ns: int) -> None:
        self.observed.asked += 1
        self._asked[key] = time_ns
        self._asked.move_to_end(key)  # sent once more
        if len(self._asked) > QUESTIONS:
            self._asked.popitem(last=False)

    def _answer(self, key: _Asked, message: Message, time_ns: int) -> None:
        asked = self._asked.pop(key, None)
        if asked is None or not 0 <= time_ns - asked <= PATIENCE * 1e9:
            self.observed.unasked += 1
            return
        self.observed.answered += 1
        # What is cut short is asked for again over TCP (RFC 2181 section 9).
        if message.rcode != NO_ERROR or message.truncated:
            return
        for address, names in named_addresses(message):
            self._learn(address if len(address) == 16 else _MAPPED + address, names, time_ns)

    def _learn(self, address: bytes, names: tuple[tuple[str, int], ...], time_ns: int) -> None:
        kept = self._addresses.setdefault(address, {})
        self._addresses.move_to_end(address)
        before = len(kept)
        for name, seconds in names:
            until = time_ns + int(min(max(seconds, LEAST), MOST) * 1e9)
            # An answer that was good for longer is still good: somebody may have kept it.
            until = max(until, kept.pop(name, 0))
            kept[name] = until
        while len(kept) > NAMES:
            del kept[next(iter(kept))]
        self._names += len(kept) - before
        while self._names > self._capacity:
            self._names -= len(self._addresses.popitem(last=False)[1])
