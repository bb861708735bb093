"""DNS as the gate tells of it: questions that leave, answers that come, over UDP and TCP."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence

from engine.abi.records import DnsEvent, Tuple
from engine.model import net
from engine.protocols.dns import Address, Alias, Kind, Labels, Message, Question, Record, encode

HOST, RESOLVER, STRANGER = "198.51.100.10", "192.0.2.53", "203.0.113.66"
SECOND = 10**9
SYN = 0x02


def key(address: str) -> bytes:
    return net.to_key(net.canonical(ipaddress.ip_address(address)))


def labels(name: str) -> Labels:
    return tuple(label.encode() for label in name.split("."))


def points(name: str, address: str, ttl: int = 60) -> Address:
    return Address(labels(name), ttl, ipaddress.ip_address(address).packed)


def alias(name: str, target: str, ttl: int = 60) -> Alias:
    return Alias(labels(name), ttl, labels(target))


class Lookup:
    """One socket that asks. Events are made one by one, so that a test can leave one out or bend it."""

    def __init__(self, *, server: str = RESOLVER, sport: int = 40_000, transport: int = 17, isn: int = 5000) -> None:
        self.leaving = Tuple(key(HOST), key(server), sport, 53, transport)
        self.arriving = Tuple(key(server), key(HOST), 53, sport, transport)
        self.seqs = {False: isn, True: isn + 70_000}

    def event(self, payload: bytes, time: int = 0, *, ingress: bool = False, flags: int = 0x18) -> DnsEvent:
        seq = self.seqs[ingress]
        self.seqs[ingress] += len(payload)
        flow = self.arriving if ingress else self.leaving
        return DnsEvent(time, flow, ingress, flags if flow.transport == 6 else 0, seq, payload, ifindex=2)

    def opened(self) -> list[DnsEvent]:
        """The two segments that begin a connection."""
        return [self.event(b"", flags=SYN), self.event(b"", ingress=True, flags=SYN | 0x10)]

    def framed(self, message: bytes) -> bytes:
        return struct.pack("!H", len(message)) + message if self.leaving.transport == 6 else message

    def asks(self, name: str, kind: int = Kind.A, *, number: int = 7, time: int = 0) -> DnsEvent:
        message = Message(number, False, (Question(labels(name), kind),), edns=True)
        return self.event(self.framed(encode(message)), time)

    def gets(
        self, name: str, *records: Record, kind: int = Kind.A, number: int = 7, time: int = 0, rcode: int = 0,
        truncated: bool = False,
    ) -> DnsEvent:  # fmt: skip
        question = (Question(labels(name), kind),)
        message = Message(number, True, question, records, rcode, truncated=truncated, edns=rcode > 15)
        return self.event(self.framed(encode(message)), time, ingress=True)

    def looked_up(self, name: str, *records: Record, kind: int = Kind.A, time: int = 0) -> Sequence[DnsEvent]:
        return [self.asks(name, kind, time=time), self.gets(name, *records, kind=kind, time=time)]
