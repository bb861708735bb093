"""Random gates and random packets, from one seed: for tests/kernel/test_oracle.py.

Small alphabets everywhere, so that packets and entries meet: two hosts a version, two ports, a few programs, users and
names. What stands in the gate is put there through `Gate` calls, so the same world can be built in the kernel's maps
and in the simulated ones.
"""

from __future__ import annotations

import ipaddress
import random
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from engine.abi.numbers import DestinationClass, FlowFlag, KernelVerdict, Mode, NameClass, PostureBit, Present
from engine.abi.numbers import StrategyKind as Kind
from engine.abi.records import (
    Config,
    ConnectKey,
    DestinationKey,
    FlowKey,
    Identity,
    NameKey,
    Plan,
    Process,
    StrategyKey,
    Tuple,
    VerdictEntry,
)
from engine.model.net import to_key
from engine.ports import Gate
from engine.protocols.packet import ACK, FIN, PSH, RST, SYN, TCP, UDP, URG
from tests.support import captures, hello, initials
from tests.support.egress import JUDGED_MOST, SEEN_LAST, Socket, key_of
from tests.support.simulator import HELLOS as HELLOS_KEPT

T = TypeVar("T")
SOURCES = {4: "10.1.0.1", 6: "fd00:1::1"}
HOSTS = {4: ("10.2.0.1", "10.2.0.130"), 6: ("fd00:2::1", "fd00:2::81")}
PORTS = (443, 53)
NAMES = ("a.example", "b.a.example", "example", "xa.example", "c.example")
SHAPES = tuple(range(16))
MINUTE = 60 * 10**9
LATER = 1 << 62
VERDICTS = (KernelVerdict.ALLOW, KernelVerdict.DENY, KernelVerdict.REJECT, KernelVerdict.UNDECIDED)
FLAGS = (
    FlowFlag.PAYLOAD_PASSED, FlowFlag.HOLDING, FlowFlag.OBSERVE, FlowFlag.INBOUND, FlowFlag.COPIED, FlowFlag.STARTED,
)  # fmt: skip
_LONG = ".".join(["n" * 48] * 4)
HELLOS = (
    *(hello.client_hello(name, alpn=["h2"]) for name in NAMES),
    hello.client_hello("A.Example"),
    hello.client_hello("a.example") + hello.record(b"\x01", kind=20),
    hello.client_hello("a.example", size=1900),
    hello.client_hello("deep.below.a.example"),
    hello.client_hello("a.example."),
    hello.client_hello("a.example", ech=True),
    hello.client_hello("a.example", records=2),
    hello.client_hello("a.example")[:-1],
    hello.client_hello("a.example")[:60],
    hello.client_hello(b"x\0a.example"),
    hello.client_hello(_LONG + ".a.example"),
    hello.client_hello("n" * 50 + ".a.example"),
    hello.client_hello(None),
    hello.in_records(hello.message([(0, hello.server_names("a.example", "c.example"))])),
    b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
    b"\x16",
)
IP_OPTIONS = (
    b"\x94\x04\0\0", b"\x94\x04\0\0" * 10, b"\x01" * 12, b"\x01" * 40, b"\x01\x83\x07\x04\x0a\0\0\1",
    b"\x89\x07\x04\x0a\0\0\1\0", b"\x07\x04\0\0\0\x83\x03\x04", b"\x07\x01\0\0", b"\x01\x01\x01\x07",
)  # fmt: skip
AROUND = (
    -1, -1, -len(HELLOS[0]), -len(HELLOS[0]), -JUDGED_MOST, -JUDGED_MOST - 1, 0, 1, SEEN_LAST - 1,
    SEEN_LAST, 2 * SEEN_LAST - 1, 2 * SEEN_LAST,
)  # fmt: skip
"""Where a segment may begin, counted from the end of what was read."""
DATAGRAMS = (
    initials.initial(initials.crypto(0, hello.handshake("a.example", alpn=["h3"]))),
    initials.initial(initials.crypto(0, hello.handshake("a.example")), version=initials.V2),
    initials.initial(initials.crypto(0, hello.handshake("a.example")))[:1199],
    b"\xe3\0\0\0\1" + bytes(1250),
    b"\x40" + bytes(1300),
    b"query",
    b"",
)


@dataclass
class Maker:
    """Draws everything from one seed."""

    chance: random.Random
    generation: int = 0
    entries: int = 0
    strangers: bool = False
    """No socket has storage."""
    deep: bool = False
    """Little stands in the way of a hello: else few packets come as far as the names."""
    sockets: list[tuple[Socket, Tuple, int]] = field(default_factory=list)
    """Each socket with its own flow and IP version."""

    def one(self, of: Sequence[T]) -> T:
        return self.chance.choice(of)

    def some(self, of: Sequence[T], most: int) -> list[T]:
        return self.chance.sample(of, self.chance.randint(0, min(most, len(of))))

    def odds(self, of_ten: int) -> bool:
        return self.chance.randrange(10) < of_ten

    # ---- what stands

    def entry(self, verdicts: Sequence[KernelVerdict] = VERDICTS) -> VerdictEntry:
        self.entries += 1
        return VerdictEntry(
            self.one(verdicts), self.entries, self.one((0, 0, 0, 0, LATER, 1)), self.chance.randrange(2)
        )

    def shape(self) -> int:
        return self.one((0, 1, 1, 2, 3, 4, 8, self.one(SHAPES)))

    def number(self) -> int:
        """The generation in force, or another one."""
        return self.generation if self.odds(9) else self.generation - 1

    def world(self, gate: Gate, *, hold_ifindex: int, enforcing: bool) -> None:
        """Fill empty maps and put a configuration in force."""
        self.generation = self.chance.randint(2, 0xFFFFFFFF)
        self.deep = self.odds(5)
        shapes = [self.shape() for _ in range(self.chance.randint(1, 4))]
        names = [self.shape() for _ in range(self.chance.randint(1, 4))]
        gate.set_plan(Plan(self.generation if self.odds(9) else self.generation - 4, tuple(shapes), tuple(names)))
        gate.set_generation(self.generation)
        for number in range(8 if self.deep else 3):
            self._socket(number)
        for number in range(3):
            gate.put_process((1 << 30) + number, Process(self.one((10, 11)), self.one((0, 7, 8))))
        for _ in range(self.chance.randint(0, 12)):
            if (key := self.connect_key(shapes)) is not None:
                gate.put_connect(key, self.entry())
        for _ in range(self.chance.randint(0, 16 if self.deep else 4)):
            if (key := self.connect_key(names)) is not None:
                gate.put_class(key, self.one((16, 17, 18)))
        for _ in range(self.chance.randint(0, 16 if self.deep else 6)):
            gate.put_name(self.name_key(), self.entry(VERDICTS[:3]))
        for _ in range(self.chance.randint(0, 1 if self.deep else 5)):
            gate.put_destination(*self.destination())
        if self.deep:
            for socket, flow, _ in self.sockets:
                if (key := key_of(self.one(shapes), self.generation, socket.identity, flow)) is not None:
                    gate.put_connect(key, self.entry((KernelVerdict.UNDECIDED, KernelVerdict.UNDECIDED, VERDICTS[0])))
        for _ in range(self.chance.randint(0, 1 if self.deep else 3)):
            kind, values = self.one(((Kind.EXE, (7, 8)), (Kind.CGROUP, (5, 6)), (Kind.USER, (0, 1000))))
            gate.put_strategy(StrategyKey(kind, self.one(values)), self.entry(tuple(KernelVerdict)[5:]))
        for _ in range(self.chance.randint(0, 4)):
            gate.put_flow(*self.of_flow())
        present = sum(bit for bit in tuple(Present)[:5] if self.odds(6))
        mode = Mode.ENFORCE if enforcing or self.odds(6) else self.one((Mode.OBSERVE,) * 5 + (Mode.PANIC,))
        config = Config(
            mode, hold_ifindex, present, sum(bit for bit in tuple(PostureBit)[:5] if self.odds(5)),
            1 if self.odds(2) else 1024, 0 if self.odds(1) else MINUTE, orders=0 if self.odds(8) else 1,
        )  # fmt: skip
        gate.set_config(config)

    def identity(self) -> Identity:
        return Identity(
            self.one((5, 6)), self.one((10, 11)), (1 << 30) + self.chance.randrange(4), 1, self.one((0, 1000)),
            self.one((0, 7, 7, 8)),
        )  # fmt: skip

    def _socket(self, number: int) -> None:
        version = self.one((4, 6))
        flow = Tuple(
            _key(SOURCES[version]), _key(self.one(HOSTS[version])), 40_000 + number, self.one(PORTS),
            TCP if self.deep else self.one((TCP, UDP)),
        )  # fmt: skip
        # Two of them share the place where the gate keeps a hello, and others have one far off.
        socket = Socket(
            (1 << 40) + number // 4 + number // 2 % 2 * (HELLOS_KEPT // 2) + number % 2 * HELLOS_KEPT,
            self.identity(),
            stored=not self.strangers and self.odds(9 if self.deep else 6),
            connections=self.one((1, 2)),
        )
        if socket.stored and self.deep:
            passed = FlowFlag.PAYLOAD_PASSED if self.odds(1) else FlowFlag(0)
            socket.start, socket.flags = 1000, int(FlowFlag.STARTED | passed)
        elif socket.stored:
            self._remember(socket, number)
        socket.judged = socket.start
        if socket.stored and flow.transport == TCP and self.odds(3):
            self.have_read(socket, 90 + number)
        if socket.stored and flow.transport == TCP and self.odds(9):
            socket.peer, socket.peer_port = flow.dst, flow.dport if self.odds(9) else 1
            socket.local_port = self.one((0, flow.sport, flow.sport))
        self.sockets.append((socket, flow, version))

    def _remember(self, socket: Socket, number: int) -> None:
        """Let a socket have a past."""
        socket.start = self.one((0, 1000, 0xFFFFFFFF))
        if self.odds(5):
            socket.flags = int(FlowFlag.STARTED)
        if self.odds(3):
            socket.flags = sum(self.one((0, 0, int(flag))) for flag in FLAGS)
        if self.odds(3):
            socket.verdict = self.one((*VERDICTS, KernelVerdict.IGNORE))
            socket.generation, socket.verdict_id = self.number(), 90 + number
            socket.expires = self.one((0, 0, LATER, 1))

    def have_read(self, socket: Socket, verdict_id: int) -> None:
        """Let what a socket's stream carried have decided it."""
        socket.judged = self.end_of_hello(socket)
        socket.flags |= FlowFlag.PAYLOAD_PASSED | (FlowFlag.STARTED if self.odds(8) else FlowFlag(0))
        if self.odds(8):
            socket.verdict = self.one((KernelVerdict.ALLOW,) * 5 + (KernelVerdict.DENY,) * 2 + (KernelVerdict.IGNORE,))
            socket.generation, socket.verdict_id = self.number(), verdict_id
            socket.expires = self.one((0, 0, 0, LATER, 1))

    def end_of_hello(self, socket: Socket) -> int:
        """The sequence number behind what may have been read of a stream; its numbers may have come round before."""
        return (socket.start + self.one((len(HELLOS[0]), len(HELLOS[0]), 1, JUDGED_MOST))) & 0xFFFFFFFF

    def of_flow(self) -> tuple[FlowKey, VerdictEntry]:
        """A verdict on one flow, which may have been read from its stream."""
        key, entry = self.flow_key(), self.entry((*VERDICTS, KernelVerdict.IGNORE))
        socket = next(socket for socket, flow, _ in self.sockets if flow == key.tuple)
        return key, entry._replace(judged=self.one((None, self.end_of_hello(socket))))

    def connect_key(self, shapes: Sequence[int]) -> ConnectKey | None:
        """A key that some socket's packets may meet, of one of the shapes."""
        socket, flow, _ = self.one(self.sockets)
        who = socket.identity if self.odds(8) else self.identity()
        known = who if who.exe else who._replace(exe=7)
        key = key_of(self.one(shapes), self.number(), known if self.odds(5) else who, flow)
        # What the engine never writes, and no unknown program may meet: an entry for executable 0.
        return key._replace(exe=0) if key is not None and known is not who and self.odds(5) else key

    def name_key(self) -> NameKey:
        name = self.one(NAMES)
        return NameKey(
            self.one((NameClass.SET, 16, 16, 17, 18)), name.encode()[::-1] + self.one((b"\0", b"\0", b".")),
        )  # fmt: skip

    def destination(self) -> tuple[DestinationKey, VerdictEntry]:
        _, flow, version = self.one(self.sockets)
        kind = self.one(tuple(DestinationClass))
        bits = self.one((128, 128, 121, 120, 96 if version == 4 else 32, 0))
        entry = self.entry(tuple(KernelVerdict)[5:] if kind is DestinationClass.STRATEGY else VERDICTS[:3])
        transport, port = self.one(((flow.transport, flow.dport), (flow.transport, 0), (0, 0), (TCP, 443)))
        return DestinationKey(kind, transport, port, flow.dst, bits), entry

    def flow_key(self) -> FlowKey:
        socket, flow, _ = self.one(self.sockets)
        part = 0
        if socket.stored:
            part = socket.connections if flow.transport == TCP else socket.identity.exe
        return FlowKey(flow, self.number(), part if self.odds(8) else part + 1, socket.cookie)

    # ---- packets

    def packet(self, link: int) -> tuple[Socket, bytes]:
        """A packet of one of the sockets, or one that could be."""
        socket, flow, version = self.one(self.sockets)
        protocol = flow.transport if self.odds(9) else self.one((TCP, UDP, 1, 2, 58, 132))
        if protocol == TCP:
            inside = self._segment(socket, flow)
        elif protocol == UDP:
            inside = captures.udp(flow.sport, flow.dport, self.one(DATAGRAMS))
        else:
            inside = bytes([self.one((0x80, 0x87, 0x8F, 8))]) + bytes(23)
        packet = self._ip(version, protocol, inside, flow)
        frame = bytearray(self._ethernet(packet) if link else packet)
        if self.odds(1):
            for _ in range(self.chance.randint(1, 2)):
                frame[self.chance.randrange(min(90, len(frame)))] ^= 1 << self.chance.randrange(8)
        if self.odds(1):
            del frame[max(14, self.chance.randrange(min(120, len(frame)))) :]
        return socket, bytes(frame).ljust(14, b"\0")

    def _segment(self, socket: Socket, flow: Tuple) -> bytes:
        if self.odds(1 if self.deep else 3):
            flags, payload = SYN, self.one((b"", b"", *HELLOS[:3]))
            seq = self.one((999, 0xFFFFFFFE, (socket.start - 1) & 0xFFFFFFFF))
        else:
            flags = self.one((ACK, ACK | PSH, ACK | PSH, ACK | PSH, ACK | FIN, RST, SYN | ACK, ACK | URG))
            payload = b"" if self.odds(2) else self.one(HELLOS[:10]) if self.odds(7) else self.one(HELLOS)
            seq = (socket.start + self.one((0, 0, 0, 0, 0, 1, 517))) & 0xFFFFFFFF
            if self.odds(2 if socket.judged == socket.start else 6):
                seq = (socket.judged + self.one(AROUND)) & 0xFFFFFFFF
        options = self.one((b"", b"", b"\x02\x04\x05\xb4", b"\x01" * 40))
        return captures.tcp(flow.sport, flow.dport, payload, seq=seq, flags=flags, options=options)

    def _ip(self, version: int, protocol: int, inside: bytes, flow: Tuple) -> bytes:
        src, dst = (text_of(version, key) for key in (flow.src, flow.dst))
        if version == 4:
            offset = self.one((8, 64, 800)) if self.odds(1) else 0
            dst = "224.0.0.22" if protocol == 2 and self.odds(5) else dst
            return captures.ipv4(
                protocol, inside, src=src, dst=dst, offset=offset, more=self.odds(1),
                options=self.one((b"",) * 12 + IP_OPTIONS), ttl=self.one((1, 64)),
            )  # fmt: skip
        for _ in range(self.one((0, 0, 0, 0, 1, 2, 3, 7))):
            protocol, inside = self._extension(protocol, inside)
        dst = "ff02::16" if protocol == 58 and self.odds(3) else dst
        packet = bytearray(captures.ipv6(protocol, inside, src=src, dst=dst))
        packet[7] = self.one((1, 64, 255))
        return bytes(packet)

    def _extension(self, following: int, inside: bytes) -> tuple[int, bytes]:
        """Put an extension header before `inside`; return its number and both together."""
        kind = self.one((0, 43, 60, 135, 44, 51))
        if kind == 44:
            offset = self.one((0, 0, 0, 1, 56, 800))
            return kind, struct.pack("!BxHI", following, offset & 0xFFF8 | offset & 1, 7) + inside
        if kind == 51:
            return kind, bytes([following, 4]) + bytes(22) + inside
        size, left = self.one((8, 8, 16, 48)), self.one((0, 0, 0, 1))
        return kind, bytes([following, size // 8 - 1, 0, left]) + bytes(size - 4) + inside

    def _ethernet(self, packet: bytes) -> bytes:
        if self.odds(1) and self.odds(3):
            return captures.ethernet(bytes(46), ethertype=self.one((0x0806, 0x88CC, 0x0842)))
        kinds = [self.one((b"\x81\0", b"\x88\xa8")) for _ in range(self.one((0, 0, 0, 0, 1, 2, 3)))]
        plain = captures.ethernet(packet)
        tags = b"".join(kind + b"\0\7" for kind in kinds)
        padding = bytes(self.one((0, 0, 6)))
        return plain[:12] + tags + plain[12:] + padding


def now() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def _key(address: str) -> bytes:
    return to_key(ipaddress.ip_address(address))


def text_of(version: int, key: bytes) -> str:
    return str(ipaddress.IPv4Address(key[12:]) if version == 4 else ipaddress.IPv6Address(key))
