"""DNS messages: bytes in, one message or a stated fault out (RFC 1035 section 4, RFC 3596, RFC 6891, RFC 9460).

A message is read to its end, so that a count or a length that lies is found; kept is only what ties a name to an
address: the questions, and of the answer section A, AAAA, CNAME, SVCB and HTTPS. What servers add beside the answer
(authority, additional) was not asked for, and nothing here ever looks at it but for the extended response code.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from engine.protocols.stream import Outcome, StreamAssembler

Labels = tuple[bytes, ...]
"""A domain name as sent: its labels, without the root. A label may hold any byte, a dot too."""

IN = 1
QUERY = 0
"""The opcode of a plain question."""
NO_ERROR = 0
MAX_MESSAGE = 16 * 1024
"""Bytes of a message in a stream. A resolver's answer about an address has some hundred."""
MAX_RECORDS = 256
"""Of all sections together: each owner's name may cost 127 steps."""

_MAX_WIRE, _MAX_LABEL = 255, 63
_OPT = 41
_RESPONSE, _TRUNCATED = 0x8000, 0x0200
_HEADER = struct.Struct("!6H")
_FIXED = struct.Struct("!HHIH")
_PAIR = struct.Struct("!HH")
_U16 = struct.Struct("!H")
_HINTS = {4: 4, 6: 16}
"""SvcParamKeys with addresses (RFC 9460 section 7.3): the bytes of one."""
_OPT_SIZE = 1232


class Kind(IntEnum):
    """Types of records that are read; as the type of a question, the ones that ask for an address."""

    A = 1
    CNAME = 5
    AAAA = 28
    SVCB = 64
    HTTPS = 65


ADDRESS_KINDS = frozenset({Kind.A, Kind.AAAA, Kind.SVCB, Kind.HTTPS})
_KINDS = frozenset(int(kind) for kind in Kind)
_LENGTHS: dict[int, int] = {Kind.A: 4, Kind.AAAA: 16}


class Question(NamedTuple):
    """`kind` and `klass` as on the wire, known or not."""

    name: Labels
    kind: int
    klass: int = IN


class Address(NamedTuple):
    """A or AAAA: `address` has 4 or 16 bytes. `ttl` in seconds."""

    owner: Labels
    ttl: int
    address: bytes

    @property
    def kind(self) -> Kind:
        return Kind.A if len(self.address) == _LENGTHS[Kind.A] else Kind.AAAA


class Alias(NamedTuple):
    """CNAME."""

    owner: Labels
    ttl: int
    target: Labels


class Service(NamedTuple):
    """SVCB or HTTPS. `addresses`: the hints, 4 or 16 bytes each; other parameters are not kept."""

    owner: Labels
    ttl: int
    kind: Kind
    priority: int
    target: Labels
    addresses: tuple[bytes, ...] = ()


Record = Address | Alias | Service


class Message(NamedTuple):
    """`rcode` with the bits that EDNS adds; `edns`: the message has an OPT record."""

    id: int
    response: bool
    questions: tuple[Question, ...]
    answers: tuple[Record, ...] = ()
    rcode: int = NO_ERROR
    opcode: int = QUERY
    truncated: bool = False
    edns: bool = False


class Malformed(NamedTuple):
    """`reason` is a clause for the log."""

    reason: str


class _MalformedError(Exception):
    """Never leaves this module."""


def parse(data: bytes) -> Message | Malformed:
    """Read one whole message, without the length that precedes it in a stream. Never raises."""
    try:
        return _message(_Reader(data))
    except _MalformedError as error:
        return Malformed(str(error))


def encode(message: Message) -> bytes:
    """Return the bytes of a message, names compressed (RFC 1035 section 4.1.4). ValueError: it has no wire form."""
    if message.rcode > 0xF and not message.edns:
        raise ValueError(f"response code {message.rcode} needs EDNS")
    flags = message.opcode << 11 | message.rcode & 0xF
    flags |= (_RESPONSE if message.response else 0) | (_TRUNCATED if message.truncated else 0)
    writer = _Writer()
    writer.out += _HEADER.pack(
        message.id, flags, len(message.questions), len(message.answers), 0, 1 if message.edns else 0
    )
    for question in message.questions:
        writer.name(question.name)
        writer.out += _PAIR.pack(question.kind, question.klass)
    for record in message.answers:
        writer.record(record)
    if message.edns:
        writer.out += b"\0" + _FIXED.pack(_OPT, _OPT_SIZE, message.rcode >> 4 << 24, 0)
    return bytes(writer.out)


class MessageStream:
    """The messages in one direction of a TCP connection (RFC 1035 section 4.2.2, RFC 7766), from its first byte.

    `start`: the sequence number of that byte. There is no way back into a stream that has a hole: parts of an answer
    are written by whoever owns the zone, and a text record may hold what looks like a message of its own.
    """

    def __init__(self, start: int) -> None:
        self.start = start
        self._stream = StreamAssembler(MAX_MESSAGE, start=start, window=True)
        self._rest = bytearray()

    def push(self, seq: int, payload: bytes) -> list[bytes] | Malformed:
        """Take one segment, `seq` of its first byte; return the messages that it completes. A fault is final: the
        caller lets go of the stream."""
        push = self._stream.push(seq, payload)
        if push.outcome in (Outcome.CONFLICT, Outcome.FULL):
            return Malformed(f"the stream has {self._stream.reason}")
        self._rest += push.data
        messages = []
        while len(self._rest) >= 2:
            size = _U16.unpack_from(self._rest)[0]
            if not _HEADER.size <= size <= MAX_MESSAGE:
                return Malformed(f"a message of {size} bytes")
            if len(self._rest) < 2 + size:
                break
            messages.append(bytes(self._rest[2 : 2 + size]))
            del self._rest[: 2 + size]
        return messages


class _Reader:
    """A cursor over one message."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise _MalformedError("a field runs past the end of the message")
        self.at += count
        return self.data[self.at - count : self.at]

    def name(self) -> Labels:
        """Read a name. A pointer must lead to before the run of labels that it ends, and to behind the header: so
        each jump leads further back, and no name is read for ever."""
        labels: list[bytes] = []
        size, at, start, after = 1, self.at, self.at, -1
        while True:
            length = self._byte(at)
            at += 1
            if length >= 0xC0:
                target = (length & 0x3F) << 8 | self._byte(at)
                if not _HEADER.size <= target < start:
                    raise _MalformedError("a name's pointer does not lead back")
                if after < 0:
                    after = at + 1
                at = start = target
            elif length > _MAX_LABEL:
                raise _MalformedError(f"a label of the unknown type 0x{length & 0xC0:02x}")
            elif not length:
                break
            else:
                size += length + 1
                if size > _MAX_WIRE:
                    raise _MalformedError(f"a name of more than {_MAX_WIRE} bytes")
                if at + length > len(self.data):
                    raise _MalformedError("a label runs past the end of the message")
                labels.append(self.data[at : at + length])
                at += length
        self.at = at if after < 0 else after
        return tuple(labels)

    def _byte(self, at: int) -> int:
        if at >= len(self.data):
            raise _MalformedError("a name runs past the end of the message")
        return self.data[at]


def _message(reader: _Reader) -> Message:
    number, flags, asked, answered, authority, additional = _HEADER.unpack(reader.take(_HEADER.size))
    if asked + answered + authority + additional > MAX_RECORDS:
        raise _MalformedError(f"more than {MAX_RECORDS} records")
    questions = []
    for _ in range(asked):
        name = reader.name()
        questions.append(Question(name, *_PAIR.unpack(reader.take(_PAIR.size))))
    answers: list[Record] = []
    rcode, edns = flags & 0xF, False
    for index in range(answered + authority + additional):
        owner = reader.name()
        kind, klass, ttl, length = _FIXED.unpack(reader.take(_FIXED.size))
        end = reader.at + length
        if kind == _OPT:
            if owner or edns or index < answered + authority:
                raise _MalformedError("a second or misplaced OPT record")
            edns, rcode = True, rcode | ttl >> 24 << 4
        elif index < answered and klass == IN and kind in _KINDS:
            # A time with the first bit set means none (RFC 2181 section 8).
            answers.append(_record(reader, owner, ttl if ttl < 1 << 31 else 0, Kind(kind), end))
            if reader.at != end:
                raise _MalformedError(f"a record of type {kind} with {length} bytes")
        reader.at = end
    if reader.at != len(reader.data):
        raise _MalformedError("the message does not end with its last record")
    opcode, truncated = flags >> 11 & 0xF, bool(flags & _TRUNCATED)
    return Message(number, bool(flags & _RESPONSE), tuple(questions), tuple(answers), rcode, opcode, truncated, edns)


def _record(reader: _Reader, owner: Labels, ttl: int, kind: Kind, end: int) -> Record:
    if kind is Kind.CNAME:
        return Alias(owner, ttl, reader.name())
    if kind in _LENGTHS:
        return Address(owner, ttl, reader.take(_LENGTHS[kind]))
    priority = _U16.unpack(reader.take(2))[0]
    target = reader.name()
    hints: list[bytes] = []
    last = -1
    while reader.at < end:
        key, length = _PAIR.unpack(reader.take(_PAIR.size))
        if key <= last:
            raise _MalformedError("service parameters out of order")
        last = key
        value = reader.take(length)
        size = _HINTS.get(key)
        if size:
            if not value or length % size:
                raise _MalformedError(f"address hints of {length} bytes")
            hints += [value[start : start + size] for start in range(0, length, size)]
    return Service(owner, ttl, kind, priority, target, tuple(hints))


class _Writer:
    """Bytes of one message, and where each name in them begins."""

    def __init__(self) -> None:
        self.out = bytearray()
        self._places: dict[Labels, int] = {}

    def name(self, name: Labels, *, compressed: bool = True) -> None:
        if sum(len(label) + 1 for label in name) >= _MAX_WIRE or not all(0 < len(one) <= _MAX_LABEL for one in name):
            raise ValueError("a name or a label of it is too long, or a label empty")
        for index, label in enumerate(name):
            place = self._places.get(name[index:])
            if compressed and place is not None:
                self.out += _U16.pack(0xC000 | place)
                return
            if len(self.out) < 0x4000:
                self._places.setdefault(name[index:], len(self.out))
            self.out += bytes((len(label),)) + label
        self.out.append(0)

    def record(self, record: Record) -> None:
        self.name(record.owner)
        match record:
            case Alias():
                kind = Kind.CNAME
            case Address():
                kind = record.kind
            case Service():
                kind = record.kind
        self.out += _FIXED.pack(kind, IN, record.ttl, 0)
        start = len(self.out)
        match record:
            case Alias():
                self.name(record.target)
            case Address():
                self.out += record.address
            case Service():
                self._service(record)
        _U16.pack_into(self.out, start - 2, len(self.out) - start)

    def _service(self, record: Service) -> None:
        self.out += _U16.pack(record.priority)
        self.name(record.target, compressed=False)
        for key, size in _HINTS.items():
            value = b"".join(address for address in record.addresses if len(address) == size)
            if value:
                self.out += _PAIR.pack(key, len(value)) + value
