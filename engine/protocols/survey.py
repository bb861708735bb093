"""Every client hello of a capture: frames in, sightings out.

A hello usually opens its stream, and comes late after STARTTLS, CONNECT, SOCKS, a proxy header or a
database's own negotiation. Those are not spoken here: a late hello is found by its own form, where a segment
starts or behind what precedes it in the same segment, on any port and in both directions.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import TypeVar

from engine.model import net
from engine.model.facts import NameState
from engine.protocols import quic
from engine.protocols.capture import CaptureRecord
from engine.protocols.defrag import Defragmenter
from engine.protocols.packet import ACK, SYN, TCP, UDP, Fragment, Packet, Refusal, parse
from engine.protocols.records import HelloAssembler
from engine.protocols.stream import Outcome, Push, StreamAssembler
from engine.protocols.tls import HelloReading, stated

FlowKey = tuple[bytes, int, bytes, int]
"""Source key and port, destination key and port; of the innermost packet."""

_FLOWS = 16_384
_STREAM_WINDOW = 16 * 1024
_Entry = TypeVar("_Entry")
_PREFIX_LIMIT = 2048
_SHAPE = re.compile(rb"\x16\x03[\x00-\x04][\x00-\x40].\x01\x00..\x03[\x00-\x04]", re.DOTALL)
"""The first eleven bytes of a record with a ClientHello: 56 of 88 bits fixed or nearly so, on top of which
the whole message has to add up. Random bytes do not pass."""
_SHAPE_LENGTH = 11


@dataclass(frozen=True)
class Sighting:
    """One client hello. `packet` is the number of the record that completed it, `time_ns` that record's time;
    `late`: other data came before it in its stream. The flow is the client's direction."""

    packet: int
    time_ns: int
    transport: str
    flow: FlowKey
    reading: HelloReading
    late: bool
    vlans: tuple[int, ...] = ()
    encaps: tuple[str, ...] = ()

    @property
    def src(self) -> net.IPAddress:
        return net.from_key(self.flow[0])

    @property
    def dst(self) -> net.IPAddress:
        return net.from_key(self.flow[2])


class Survey:
    """Takes the records of one capture in order. `refusals` counts frames that were no packets, by reason."""

    def __init__(self) -> None:
        self.packets = 0
        self.refusals: Counter[str] = Counter()
        self.unknown_links: Counter[int] = Counter()
        self._defragmenter = Defragmenter()
        self._streams: OrderedDict[FlowKey, _HalfStream] = OrderedDict()
        self._quic: OrderedDict[FlowKey, _QuicFlow] = OrderedDict()

    def feed(self, record: CaptureRecord) -> list[Sighting]:
        """Take one record; return the hellos that it completed."""
        self.packets += 1
        parsed = parse(record.data, record.link, tunnels=True)
        if isinstance(parsed, Fragment):
            whole = self._defragmenter.add(parsed, tunnels=True)
            if whole is None or isinstance(whole, Fragment):
                return []
            parsed = whole
        if isinstance(parsed, Refusal):
            self.refusals[parsed.value] += 1
            if parsed is Refusal.UNKNOWN_LINK:
                self.unknown_links[record.link] += 1
            return []
        if parsed.protocol == TCP:
            readings = self._tcp(parsed, record)
            transport = "tcp"
        elif parsed.protocol == UDP:
            readings = self._udp(parsed, record)
            transport = "quic"
        else:
            return []
        return [
            Sighting(
                record.number, record.time_ns, transport, _flow(parsed), reading, late, parsed.vlans, parsed.encaps
            )
            for reading, late in readings
        ]

    def finish(self) -> list[Sighting]:
        """Return the hellos that began and never became whole (PARTIAL), with the last packet of their
        flow."""
        found = [
            Sighting(*stream.last, "tcp", flow, reading, late)
            for flow, stream in self._streams.items()
            for reading, late in stream.finish()
        ]
        found += [
            Sighting(*client.last, "quic", flow, reading, late=False)
            for flow, client in self._quic.items()
            for reading in client.finish()
        ]
        return sorted(found, key=lambda sighting: sighting.packet)

    def _tcp(self, packet: Packet, record: CaptureRecord) -> list[tuple[HelloReading, bool]]:
        flow = _flow(packet)
        syn = bool(packet.flags & SYN)
        stream = self._streams.get(flow)
        found: list[tuple[HelloReading, bool]] = []
        if syn and (stream is None or stream.begun != packet.seq):
            if stream is not None:
                found = stream.finish()  # the ports are used anew
            stream = _HalfStream(packet.seq, client=not packet.flags & ACK)
            _remember(self._streams, flow, stream)
        if packet.payload_offset == packet.payload_end:
            return found
        if stream is None:
            stream = _HalfStream(None, client=False)
            _remember(self._streams, flow, stream)
        else:
            self._streams.move_to_end(flow)
        stream.last = (record.number, record.time_ns)
        return found + stream.segment(packet.seq, packet.payload, syn=syn)

    def _udp(self, packet: Packet, record: CaptureRecord) -> list[tuple[HelloReading, bool]]:
        flow = _flow(packet)
        datagram = packet.payload
        client = self._quic.get(flow)
        # Once a client's Initial was seen, 0-RTT and others of its long headers may come before the next one.
        if not (quic.version_of(datagram) if client else quic.client_initial(datagram)):
            return []
        if client is None:
            client = _QuicFlow()
            _remember(self._quic, flow, client)
        else:
            self._quic.move_to_end(flow)
        client.last = (record.number, record.time_ns)
        return [(reading, False) for reading in client.datagram(datagram)]


class _HalfStream:
    """One direction of a TCP connection: its bytes in order, and the search for a hello in them."""

    def __init__(self, syn_seq: int | None, *, client: bool) -> None:
        self.begun = syn_seq
        self.last = (0, 0)
        start = None if syn_seq is None else (syn_seq + 1) & 0xFFFFFFFF
        self._assembler = StreamAssembler(_STREAM_WINDOW, start=start, window=True)
        self._search = _HelloSearch(known_start=client)

    def segment(self, seq: int, payload: bytes, *, syn: bool) -> list[tuple[HelloReading, bool]]:
        expected = self._assembler.expected_seq
        if len(payload) == 1 and expected is not None and seq == (expected - 1) & 0xFFFFFFFF:
            return []  # a keep-alive may carry one byte of garbage, RFC 9293 section 3.8.4
        push = self._assembler.push(seq, payload, syn=syn)
        found = self._take(push)
        if push.outcome is Outcome.CONFLICT:
            return self._search.contradicted(self._assembler.reason)
        if push.outcome is Outcome.FULL:
            # The capture lost packets: what comes after the gap is still worth reading.
            found = self._past_gaps()
            push = self._assembler.push(seq, payload, syn=syn)
            if push.outcome is Outcome.FULL:
                self._assembler.resume(seq)
                push = self._assembler.push(seq, payload)
            found += self._take(push)
        return found

    def finish(self) -> list[tuple[HelloReading, bool]]:
        return self._past_gaps() + self._search.finish()

    def _past_gaps(self) -> list[tuple[HelloReading, bool]]:
        found = []
        push = self._assembler.skip_gap()
        while push.pieces:
            found += self._search.finish() + self._take(push)
            push = self._assembler.skip_gap()
        return found

    def _take(self, push: Push) -> list[tuple[HelloReading, bool]]:
        found = []
        for position, data in push.pieces:
            found += self._search.piece(position, data)
        return found


class _HelloSearch:
    """Finds hellos in the pieces of a stream, a piece being what one segment brought."""

    def __init__(self, *, known_start: bool) -> None:
        self._known_start = known_start
        self._candidate: HelloAssembler | None = None
        self._head = b""
        self._late = False
        self._told: HelloReading | None = None

    def piece(self, position: int, data: bytes) -> list[tuple[HelloReading, bool]]:
        if self._candidate is not None:
            self._head += data[: _SHAPE_LENGTH - len(self._head)]
            reading = self._candidate.feed(data)
            if reading is None:
                return []
            self._candidate = None
            told = self._tell(reading)
            if told:
                return told
        return self._start(data, 0, late=position > 0) or self._inside(data)

    def finish(self) -> list[tuple[HelloReading, bool]]:
        """No more bytes come, or some are missing: a hello under way cannot be completed."""
        if self._candidate is None:
            return []
        reading = self._candidate.give_up("the capture lacks the rest of the hello")
        self._candidate = None
        return self._tell(reading)

    def contradicted(self, reason: str) -> list[tuple[HelloReading, bool]]:
        """A segment came with other bytes than those before: a hello under way is spoilt by it."""
        if self._candidate is None:
            return []
        self._candidate = None
        return self._tell(stated(NameState.MALFORMED, reason))

    def _start(self, data: bytes, at: int, *, late: bool) -> list[tuple[HelloReading, bool]]:
        self._head = data[at : at + _SHAPE_LENGTH]
        self._late = late
        self._candidate = HelloAssembler()
        reading = self._candidate.feed(data[at:] if at else data)
        if reading is None:
            return []
        self._candidate = None
        return self._tell(reading)

    def _inside(self, data: bytes) -> list[tuple[HelloReading, bool]]:
        """Look behind the start of a piece: a request and the hello after it, in one segment.

        What precedes must end a line, or the hello must end the segment, for a client has to wait for the
        server then: a hello inside a file that is being transferred is neither.
        """
        if self._candidate is not None or self._told is not None:
            return []
        for match in _SHAPE.finditer(data, 1, _PREFIX_LIMIT + _SHAPE_LENGTH):
            at = match.start()
            if data[at - 1 : at] == b"\n":
                told = self._start(data, at, late=True)
                if told or self._candidate is not None:
                    return told
            elif at + 5 + int.from_bytes(data[at + 3 : at + 5], "big") == len(data):
                told = self._start(data, at, late=True)
                if told:
                    return told
        self._candidate = None
        return []

    def _tell(self, reading: HelloReading) -> list[tuple[HelloReading, bool]]:
        """Decide whether a reading is a hello worth a line."""
        head = self._head
        shaped = bool(_SHAPE.match(head))
        opens = self._known_start and not self._late
        if reading.state is NameState.NOT_TLS:
            return []
        if reading.state is NameState.MALFORMED and not shaped and not opens:
            return []
        if reading.state is NameState.PARTIAL and not shaped and not (opens and head.startswith(b"\x16\x03")):
            return []
        if reading.state is NameState.UNSUPPORTED and not opens:
            return []
        if self._told is not None and (reading.name, reading.raw_name) == (self._told.name, self._told.raw_name):
            # The second hello after a HelloRetryRequest says the same as the first (RFC 8446 section 4.1.2);
            # one that names another server is told.
            return []
        self._told = reading
        return [(reading, self._late)]


class _QuicFlow:
    """The client's datagrams of one UDP flow, which may carry one connection after another."""

    def __init__(self) -> None:
        self.last = (0, 0)
        self._assembler = quic.InitialAssembler()
        self._told = b""

    def datagram(self, datagram: bytes) -> list[HelloReading]:
        if self._assembler.reading is not None:
            # Retransmissions and the flight after a Retry bring the same hello again; other bytes are another
            # one.
            self._assembler = quic.InitialAssembler()
        reading = self._assembler.feed(datagram)
        return self._tell(reading) if reading is not None else []

    def finish(self) -> list[HelloReading]:
        if self._assembler.reading is not None:
            return []
        return self._tell(self._assembler.give_up("the capture ends inside the hello"))

    def _tell(self, reading: HelloReading) -> list[HelloReading]:
        bytes_ = self._assembler.hello_bytes
        if reading.state is NameState.UNSUPPORTED:
            bytes_ = reading.reason.encode()
        elif not self._assembler.opened:
            return []  # the server's Initials, and what is no QUIC
        if bytes_ == self._told or (reading.state is NameState.PARTIAL and self._told):
            return []
        self._told = bytes_
        return [reading]


def _flow(packet: Packet) -> FlowKey:
    return packet.source_key, packet.sport, packet.dest_key, packet.dport


def _remember(table: OrderedDict[FlowKey, _Entry], flow: FlowKey, entry: _Entry) -> None:
    if len(table) >= _FLOWS:
        table.popitem(last=False)
    table[flow] = entry
    table.move_to_end(flow)
