"""Map keys, map values and events of bpf/include/abi.h as typed values that pack to the same bytes.

LAYOUTS gives each C struct field by field as struct codes. Pads are written out, so that every byte of a key is
determined. tests/host_c compares every size and offset with the header.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from engine.abi.numbers import DNS_BYTES, HELLO_KEPT, NAME_KEY_BYTES, SHAPES_MAX

Codes = tuple[tuple[str, str], ...]


class Tuple(NamedTuple):
    """A flow as it stands on the wire: `src`, `dst` 16 key bytes, ports in host order, `transport` IPPROTO_*."""

    src: bytes
    dst: bytes
    sport: int
    dport: int
    transport: int

    def pack(self) -> bytes:
        return TUPLE.pack(*self)

    def reversed(self) -> Tuple:
        """Return the tuple of what goes the other way."""
        return Tuple(self.dst, self.src, self.dport, self.sport, self.transport)

    @classmethod
    def unpack(cls, data: bytes | memoryview, offset: int = 0) -> Tuple:
        return cls._make(TUPLE.unpack_from(data, offset))


class Identity(NamedTuple):
    cgroup: int
    exec_stamp: int
    tgid: int
    tid: int
    uid: int
    exe: int

    @classmethod
    def unpack(cls, data: bytes | memoryview, offset: int = 0) -> Identity:
        return cls._make(IDENTITY.unpack_from(data, offset))


class Config(NamedTuple):
    mode: int
    hold_ifindex: int
    present: int
    open: int
    hold_limit: int
    heartbeat_max: int
    release_mark: int = 0
    orders: int = 0

    def pack(self) -> bytes:
        return CONFIG.pack(*self[:5], self.release_mark, self.heartbeat_max, self.orders)

    @classmethod
    def unpack(cls, data: bytes) -> Config:
        mode, hold_ifindex, present, open_, hold_limit, release_mark, heartbeat_max, orders = CONFIG.unpack(data)
        return cls(mode, hold_ifindex, present, open_, hold_limit, heartbeat_max, release_mark, orders)


class Plan(NamedTuple):
    generation: int
    connect_shapes: tuple[int, ...]
    name_shapes: tuple[int, ...]
    inbound: bool = False

    def pack(self) -> bytes:
        return PLAN.pack(
            self.generation,
            len(self.connect_shapes),
            len(self.name_shapes),
            int(self.inbound),
            bytes(self.connect_shapes),
            bytes(self.name_shapes),
        )

    @classmethod
    def unpack(cls, data: bytes) -> Plan:
        generation, connect, name, inbound, connect_shapes, name_shapes = PLAN.unpack(data)
        return cls(generation, tuple(connect_shapes[:connect]), tuple(name_shapes[:name]), bool(inbound))


class Process(NamedTuple):
    exec_stamp: int
    exe: int

    def pack(self) -> bytes:
        return PROCESS.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Process:
        return cls._make(PROCESS.unpack(data))


class VerdictEntry(NamedTuple):
    """`expires` CLOCK_MONOTONIC ns, 0 never; `id` the engine's number for the entry. `judged`: of a flow's own entry
    alone, the sequence number behind what was read of its stream; None: it was decided without."""

    verdict: int
    id: int = 0
    expires: int = 0
    by_name: int = 0
    hits: int = 0
    judged: int | None = None

    def pack(self) -> bytes:
        return VERDICT_ENTRY.pack(self.expires, self.hits, self.id, self.verdict, self.by_name)

    @classmethod
    def unpack(cls, data: bytes) -> VerdictEntry:
        expires, hits, number, verdict, by_name = VERDICT_ENTRY.unpack(data)
        return cls(verdict, number, expires, by_name, hits)

    def pack_of_flow(self) -> bytes:
        """As `flow_verdicts` has it."""
        read = self.judged is not None
        return FLOW_VERDICT.pack(
            self.expires, self.hits, self.id, self.verdict, self.by_name, self.judged or 0, int(read)
        )

    @classmethod
    def unpack_of_flow(cls, data: bytes) -> VerdictEntry:
        expires, hits, number, verdict, by_name, judged, read = FLOW_VERDICT.unpack(data)
        return cls(verdict, number, expires, by_name, hits, judged if read else None)


class ConnectKey(NamedTuple):
    generation: int
    shape: int
    transport: int = 0
    port: int = 0
    address: bytes = bytes(16)
    cgroup: int = 0
    exe: int = 0
    uid: int = 0

    def pack(self) -> bytes:
        return CONNECT_KEY.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> ConnectKey:
        return cls._make(CONNECT_KEY.unpack(data))


class FlowKey(NamedTuple):
    tuple: Tuple
    generation: int
    part: int
    cookie: int

    def pack(self) -> bytes:
        return FLOW_KEY.pack(*self.tuple, self.generation, self.part, self.cookie)

    @classmethod
    def unpack(cls, data: bytes) -> FlowKey:
        fields = FLOW_KEY.unpack(data)
        return cls(Tuple._make(fields[:5]), *fields[5:])


class Held(NamedTuple):
    identity: Identity
    cookie: int
    time: int
    ifindex: int
    generation: int
    verdict_id: int
    part: int
    start: int
    stage: int
    flags: int
    hook: int = 0
    answer: int = 0
    judged: int = 0
    number: int = 0

    @classmethod
    def unpack(cls, data: bytes) -> Held:
        fields = HELD.unpack(data)
        cookie, when, number = fields[6:9]
        return cls._make((Identity._make(fields[:6]), cookie, when, *fields[9:], number))


class KeptHello(NamedTuple):
    """The first payload that the gate judged a TCP stream by itself. `start`: sequence number of its first byte."""

    tuple: Tuple
    start: int
    content: bytes

    def pack(self) -> bytes:
        return KEPT_HELLO.pack(*self.tuple, self.start, len(self.content), self.content)

    @classmethod
    def unpack(cls, data: bytes) -> KeptHello:
        *flow, start, length, content = KEPT_HELLO.unpack(data)
        return cls(Tuple._make(flow), start, content[:length])


class InboundFlow(NamedTuple):
    """`expires` CLOCK_MONOTONIC ns, 0 never; `start` sequence number of a TCP stream's first byte; `judged` behind what
    was read of a stream that was decided by it, else `start`."""

    verdict: int
    opened_by: int
    generation: int = 0
    verdict_id: int = 0
    start: int = 0
    flags: int = 0
    expires: int = 0
    by_name: int = 0
    judged: int = 0

    def pack(self) -> bytes:
        return INBOUND_FLOW.pack(
            self.expires, self.generation, self.verdict_id, self.start, self.verdict, self.flags, self.opened_by,
            self.by_name, self.judged,
        )  # fmt: skip

    @classmethod
    def unpack(cls, data: bytes) -> InboundFlow:
        expires, generation, verdict_id, start, verdict, flags, opened_by, by_name, judged = INBOUND_FLOW.unpack(data)
        return cls(verdict, opened_by, generation, verdict_id, start, flags, expires, by_name, judged)


class DestinationKey(NamedTuple):
    """`address_bits` of `address` count; `transport` and `port` 0 mean any."""

    kind: int
    transport: int
    port: int
    address: bytes
    address_bits: int = 128

    def pack(self) -> bytes:
        return DESTINATION_KEY.pack(32 + self.address_bits, self.kind, self.transport, self.port, self.address)

    @classmethod
    def unpack(cls, data: bytes) -> DestinationKey:
        bits, kind, transport, port, address = DESTINATION_KEY.unpack(data)
        return cls(kind, transport, port, address, bits - 32)


class SourceKey(NamedTuple):
    generation: int
    address: bytes
    address_bits: int = 128

    def pack(self) -> bytes:
        return SOURCE_KEY.pack(32 + self.address_bits, self.generation, self.address)

    @classmethod
    def unpack(cls, data: bytes) -> SourceKey:
        bits, generation, address = SOURCE_KEY.unpack(data)
        return cls(generation, address, bits - 32)


class NameKey(NamedTuple):
    """`reversed_name`: lower case, last byte first, ending in NUL (exact) or '.' (everything below a suffix)."""

    name_class: int
    reversed_name: bytes

    def pack(self) -> bytes:
        if len(self.reversed_name) > NAME_KEY_BYTES:
            raise ValueError("name too long for a kernel key")
        return NAME_KEY.pack(32 + 8 * len(self.reversed_name), self.name_class, self.reversed_name)

    @classmethod
    def unpack(cls, data: bytes) -> NameKey:
        bits, name_class, name = NAME_KEY.unpack(data)
        return cls(name_class, name[: (bits - 32) // 8])


class StrategyKey(NamedTuple):
    kind: int
    value: int

    def pack(self) -> bytes:
        return STRATEGY_KEY.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> StrategyKey:
        return cls._make(STRATEGY_KEY.unpack(data))


class ProcessEvent(NamedTuple):
    time: int
    type: int
    identity: Identity

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> ProcessEvent:
        fields = PROCESS_EVENT.unpack_from(data)
        return cls(fields[0], fields[1], Identity._make(fields[2:]))


class SocketEvent(NamedTuple):
    """Flat, because there are tens of thousands a second; `identity` and `tuple` are made when asked for."""

    time: int
    type: int
    cgroup: int
    exec_stamp: int
    tgid: int
    tid: int
    uid: int
    exe: int
    src: bytes
    dst: bytes
    sport: int
    dport: int
    transport: int
    old_state: int
    srtt: int
    cookie: int
    opened: int
    bytes_acked: int
    bytes_received: int
    segments_out: int
    segments_in: int
    retransmits: int
    flags: int

    @property
    def identity(self) -> Identity:
        return Identity._make(self[2:8])

    @property
    def tuple(self) -> Tuple:
        return Tuple._make(self[8:13])

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> SocketEvent:
        return cls._make(SOCKET_EVENT.unpack_from(data))

    def bytes_sent(self) -> int:
        """Payload bytes that the peer acknowledged: sequence space less the SYN and an acknowledged FIN
        (RFC 9293 section 3.4)."""
        return max(0, self.bytes_acked - (self.bytes_acked > 0) - (self.old_state in _FIN_ACKNOWLEDGED))


class VerdictEvent(NamedTuple):
    time: int
    type: int
    identity: Identity
    tuple: Tuple
    ifindex: int
    generation: int
    cookie: int
    verdict_id: int
    verdict: int
    origin: int
    stage: int
    flags: int
    part: int = 0
    name: bytes = b""

    @classmethod
    def unpack(cls, data: bytes | memoryview, name: bytes = b"") -> VerdictEvent:
        fields = VERDICT_EVENT.unpack_from(data)
        head, tail = fields[:2], fields[13:]
        return cls._make((*head, Identity._make(fields[2:8]), Tuple._make(fields[8:13]), *tail, name))

    @classmethod
    def unpack_named(cls, data: bytes | memoryview) -> VerdictEvent:
        length, reversed_name = _NAME_TAIL.unpack_from(data, VERDICT_EVENT.size)
        return cls.unpack(data, reversed_name[:length][::-1])


class DnsEvent(NamedTuple):
    """A DNS message as it passed: one datagram, or one segment of a stream that begins at `seq`. `truncated`: the
    packet had more than `payload`. `ifindex`: of the interface that it left or came in by."""

    time: int
    tuple: Tuple
    ingress: bool
    tcp_flags: int
    seq: int
    payload: bytes
    truncated: bool = False
    ifindex: int = 0

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> DnsEvent:
        time, _, *flow, seq, length, ingress, tcp_flags, truncated, ifindex = _DNS_HEAD.unpack_from(data)
        payload = bytes(data[_DNS_HEAD.size : _DNS_HEAD.size + length])
        return cls(time, Tuple._make(flow), bool(ingress), tcp_flags, seq, payload, bool(truncated), ifindex)


# Numbers of net/tcp_states.h: FIN_WAIT2 5, TIME_WAIT 6, LAST_ACK 9, CLOSING 11.
_FIN_ACKNOWLEDGED = frozenset({5, 6, 9, 11})

TUPLE_CODES: Codes = (("src", "16s"), ("dst", "16s"), ("sport", "H"), ("dport", "H"), ("transport", "B"), ("pad", "3x"))
IDENTITY_CODES: Codes = (
    ("cgroup", "Q"), ("exec_stamp", "Q"), ("tgid", "I"), ("tid", "I"), ("uid", "I"), ("exe", "I"),
)  # fmt: skip
HEADER_CODES: Codes = (("time", "Q"), ("type", "I"), ("pad", "4x"))


def _nested(prefix: str, codes: Codes) -> Codes:
    return tuple((f"{prefix}.{name}", code) for name, code in codes)


LAYOUTS: dict[str, Codes] = {
    "tuple": TUPLE_CODES,
    "identity": IDENTITY_CODES,
    "config": (
        ("mode", "I"), ("hold_ifindex", "I"), ("present", "I"), ("open", "I"), ("hold_limit", "I"),
        ("release_mark", "I"), ("heartbeat_max", "Q"), ("orders", "I"), ("pad", "4x"),
    ),
    "plan": (
        ("generation", "I"), ("connect_shapes_n", "B"), ("name_shapes_n", "B"), ("inbound", "B"), ("pad", "x"),
        ("connect_shapes", f"{SHAPES_MAX}s"), ("name_shapes", f"{SHAPES_MAX}s"),
    ),
    "process": (("exec_stamp", "Q"), ("exe", "I"), ("pad", "4x")),
    "verdict_entry": (
        ("expires", "Q"), ("hits", "Q"), ("id", "I"), ("verdict", "B"), ("by_name", "B"), ("pad", "2x"),
    ),
    "flow_verdict": (
        ("entry.expires", "Q"), ("entry.hits", "Q"), ("entry.id", "I"), ("entry.verdict", "B"), ("entry.by_name", "B"),
        ("entry.pad", "2x"), ("judged", "I"), ("read", "B"), ("pad", "3x"),
    ),
    "connect_key": (
        ("generation", "I"), ("shape", "B"), ("transport", "B"), ("port", "H"), ("address", "16s"), ("cgroup", "Q"),
        ("exe", "I"), ("uid", "I"),
    ),
    "flow_key": (
        *_nested("tuple", TUPLE_CODES), ("generation", "I"), ("part", "I"), ("cookie", "Q"),
    ),
    "held": (
        *_nested("identity", IDENTITY_CODES), ("cookie", "Q"), ("time", "Q"), ("number", "Q"), ("ifindex", "I"),
        ("generation", "I"), ("verdict_id", "I"), ("part", "I"), ("start", "I"), ("stage", "B"), ("flags", "B"),
        ("hook", "B"), ("answer", "B"), ("judged", "I"), ("pad", "4x"),
    ),
    "kept_hello": (
        *_nested("tuple", TUPLE_CODES), ("start", "I"), ("length", "I"), ("bytes", f"{HELLO_KEPT}s"),
    ),
    "inbound_flow": (
        ("expires", "Q"), ("generation", "I"), ("verdict_id", "I"), ("start", "I"), ("verdict", "B"), ("flags", "B"),
        ("opened_by", "B"), ("by_name", "B"), ("judged", "I"), ("pad", "4x"),
    ),
    "destination_key": (
        ("prefixlen", "I"), ("class", "B"), ("transport", "B"), ("port", "H"), ("address", "16s"), ("pad", "4x"),
    ),
    "source_key": (("prefixlen", "I"), ("generation", "I"), ("address", "16s"), ("pad", "4x")),
    "name_key": (("prefixlen", "I"), ("class", "I"), ("name", f"{NAME_KEY_BYTES}s"), ("pad", "4x")),
    "strategy_key": (("kind", "I"), ("pad", "4x"), ("value", "Q")),
    "process_event": (*_nested("header", HEADER_CODES), *_nested("identity", IDENTITY_CODES)),
    "socket_event": (
        *_nested("header", HEADER_CODES), *_nested("identity", IDENTITY_CODES), *_nested("tuple", TUPLE_CODES),
        ("old_state", "I"), ("srtt", "I"), ("cookie", "Q"), ("opened", "Q"), ("bytes_acked", "Q"),
        ("bytes_received", "Q"), ("segments_out", "I"), ("segments_in", "I"), ("retransmits", "I"), ("flags", "B"),
        ("pad", "3x"),
    ),
    "verdict_event": (
        *_nested("header", HEADER_CODES), *_nested("identity", IDENTITY_CODES), *_nested("tuple", TUPLE_CODES),
        ("ifindex", "I"), ("generation", "I"), ("cookie", "Q"), ("verdict_id", "I"), ("verdict", "B"),
        ("origin", "B"), ("stage", "B"), ("flags", "B"), ("part", "I"), ("pad", "4x"),
    ),
    "dns_event": (
        *_nested("header", HEADER_CODES), *_nested("tuple", TUPLE_CODES), ("seq", "I"), ("length", "I"),
        ("ingress", "B"), ("tcp_flags", "B"), ("truncated", "B"), ("pad", "x"), ("ifindex", "I"),
        ("payload", f"{DNS_BYTES}s"),
    ),
}  # fmt: skip


def _struct(name: str) -> struct.Struct:
    return struct.Struct("<" + "".join(code for _, code in LAYOUTS[name]))


def offsets(name: str) -> dict[str, tuple[int, int]]:
    """Return {field: (offset, size)} of a layout, pads included."""
    at = 0
    found: dict[str, tuple[int, int]] = {}
    for field, code in LAYOUTS[name]:
        size = struct.calcsize("<" + code)
        found[field] = (at, size)
        at += size
    return found


TUPLE = _struct("tuple")
IDENTITY = _struct("identity")
CONFIG = _struct("config")
PLAN = _struct("plan")
PROCESS = _struct("process")
VERDICT_ENTRY = _struct("verdict_entry")
FLOW_VERDICT = _struct("flow_verdict")
CONNECT_KEY = _struct("connect_key")
FLOW_KEY = _struct("flow_key")
HELD = _struct("held")
KEPT_HELLO = _struct("kept_hello")
INBOUND_FLOW = _struct("inbound_flow")
DESTINATION_KEY = _struct("destination_key")
SOURCE_KEY = _struct("source_key")
NAME_KEY = _struct("name_key")
STRATEGY_KEY = _struct("strategy_key")
PROCESS_EVENT = _struct("process_event")
SOCKET_EVENT = _struct("socket_event")
VERDICT_EVENT = _struct("verdict_event")
_DNS_HEAD = struct.Struct("<" + "".join(code for _, code in LAYOUTS["dns_event"][:-1]))
_NAME_TAIL = struct.Struct(f"<I{NAME_KEY_BYTES}s")

Event = ProcessEvent | SocketEvent | VerdictEvent | DnsEvent
"""What the ring carries."""
