"""Seed inputs for every target, from the builders that the tests use: nothing recorded, nothing of anybody else's."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from audit import ocsf
from audit.checkpoint import Head, SigningKey
from audit.entry import Generation, encode, note
from audit.proof import InclusionProof
from audit.recovery import print_range
from audit.tree import Range, leaf_hash
from engine.protocols import dns
from tests.support import captures, hello, initials

ROOT = Path(__file__).parents[2]


def _hellos() -> Iterator[bytes]:
    for name in ("example.com", "EXAMPLE.Com", "a" * 55 + ".example", "a.long.label." * 15 + "exam", "example.com.",
                 b"evil\0example.com", "192.0.2.1", None):  # fmt: skip
        yield hello.client_hello(name)
    yield hello.client_hello("example.com", alpn=["h2", "http/1.1"])
    yield hello.client_hello("example.com", ech=True)
    yield hello.client_hello("example.com", records=3)
    yield hello.client_hello("example.com", size=1900)
    yield hello.client_hello("example.com", extensions=[(0x0A0A, b""), (35, b""), (0x1A1A, b"\0")])
    yield hello.in_records(hello.message([(0, hello.server_names("a.example", "b.example"))]))
    yield hello.in_records(hello.message([(0, hello.server_names("a.example"))], session_id=b""))
    yield hello.in_records(hello.message(None))


def _extension(following: int, size: int = 8) -> bytes:
    return bytes([following, size // 8 - 1]) + bytes(size - 2)


def _packets() -> Iterator[bytes]:
    """IP packets, without a link header."""
    tcp, udp = captures.tcp(5000, 443, b"hello", options=b"\x02\x04\x05\xb4"), captures.udp(5000, 53, b"question")
    for four, six in ((captures.ipv4(6, tcp), captures.ipv6(6, tcp)), (captures.ipv4(17, udp), captures.ipv6(17, udp))):
        yield four
        yield six
    yield captures.ipv4(6, tcp, options=b"\x94\x04\0\0" * 3)
    yield captures.ipv4(6, tcp, more=True)
    yield captures.ipv4(6, tcp, offset=8)
    yield captures.ipv4(17, udp, offset=640)
    yield captures.ipv4(2, bytes(8), dst="224.0.0.22")
    yield captures.ipv4(132, bytes(12))
    yield captures.ipv6(0, _extension(60) + _extension(43, 24) + _extension(6) + tcp)
    yield captures.ipv6(51, bytes([6, 4]) + bytes(22) + tcp)
    for offset, more in ((0, 1), (0, 0), (56, 1), (800, 0)):
        yield captures.ipv6(44, struct.pack("!BxHI", 17, offset | more, 7) + udp)
    neighbour = captures.ipv6(58, b"\x87" + bytes(23))
    yield neighbour
    yield neighbour[:7] + b"\xff" + neighbour[8:]
    yield captures.ipv6(58, b"\x8f" + bytes(23), dst="ff02::16")


def _frames() -> Iterator[bytes]:
    for packet in _packets():
        yield captures.ethernet(packet)
    some = next(_packets())
    yield captures.ethernet(some, vlans=(7,))
    yield captures.ethernet(some, vlans=(7, 8))
    yield captures.ethernet(some, vlans=(7, 8, 9))
    for payload in _hellos():
        yield captures.tcp_frame(payload, seq=1001)
    yield captures.udp_frame(_initial())


def _tunnels() -> Iterator[bytes]:
    yield captures.ethernet(captures.ipv4(47, b"\xb0\0\x65\x58" + bytes(12) + captures.udp_frame(b"x" * 50)))
    geneve = b"\x01\0\x65\x58\0\0\x01\0" + bytes(4) + captures.tcp_frame(b"y")
    yield captures.ethernet(captures.ipv4(17, captures.udp(1, 6081, geneve)))
    gtp = b"\x34\xff\0\0\0\0\0\x01\0\0\0\x85\x01\x10\x09\x00" + bytes(40)
    yield captures.ethernet(captures.ipv4(17, captures.udp(2152, 2152, gtp)))
    yield captures.ethernet(captures.ipv4(17, captures.udp(1, 3544, b"\0\1\2\2" + bytes(40))))
    yield captures.ethernet(captures.ipv4(41, captures.ipv6(6, captures.tcp(1, 2, b"z"))))


def _initial() -> bytes:
    return initials.initial(initials.crypto(0, hello.handshake("quic.example", alpn=["h3"])))


def _captures() -> Iterator[bytes]:
    frames = captures.connection([hello.client_hello("example.com")])
    cut = hello.client_hello("example.com")
    for order in "<>":
        yield captures.pcap(frames, order=order)
        yield captures.pcapng(frames, order=order)
    yield captures.pcap(captures.connection([cut[:50], cut[50:]]), nano=True)
    yield captures.pcap([captures.udp_frame(_initial())])
    yield captures.pcap(list(_tunnels()))
    yield captures.pcap([captures.ipv4(6, captures.tcp(1, 2, cut))], link=101)


def _dns() -> Iterator[bytes]:
    """For a target that takes u8 kind and u8 cut before them: whole messages, and messages in a stream."""
    a = dns.Address((b"a", b"example"), 60, b"\xc0\x00\x02\x01")
    aaaa = dns.Address((b"a", b"example"), 60, bytes(15) + b"\1")
    alias = dns.Alias((b"www", b"example"), 300, (b"a", b"example"))
    service = dns.Service((b"a", b"example"), 30, dns.Kind.HTTPS, 1, (), (a.address, aaaa.address))
    asked = (dns.Question((b"www", b"example"), dns.Kind.A),)
    for message in (
        dns.Message(7, False, asked), dns.Message(7, True, asked, (alias, a, aaaa), edns=True),
        dns.Message(8, True, (dns.Question((b"a", b"example"), dns.Kind.HTTPS),), (service,)),
        dns.Message(9, True, asked, rcode=3), dns.Message(10, True, asked, truncated=True),
    ):  # fmt: skip
        data = dns.encode(message)
        yield b"\0\0" + data
        yield b"\1\5" + 2 * (struct.pack("!H", len(data)) + data)


def _streams() -> Iterator[bytes]:
    """For targets that take their input apart: u8 length and u8 offset of each segment, then its bytes."""
    for payload in _hellos():
        yield b"".join(
            struct.pack("!BH", len(payload[at : at + 200]), at) + payload[at : at + 200]
            for at in range(0, len(payload), 200)
        )


def _audit_lines() -> Iterator[bytes]:
    yield encode(note("start", version="0.1.0", words=["a", 1, None, 1.5, {"b": True}]))
    yield encode(note("alert", generation=Generation(3, "ab" * 32, "cd" * 20, True), text="\u202ename"))
    program = ocsf.Process(1, "curl", "/usr/bin/curl")
    flow = ocsf.Flow(dst_ip="192.0.2.1", dst_port=443, name="example.com", process=program)
    yield encode(ocsf.decision(flow, "deny", event="connect", stage="connect"))


def _notes() -> Iterator[bytes]:
    key, leaves = SigningKey.from_seed("example.org/log", b"\x07" * 32), Range()
    for index, line in enumerate(_audit_lines()):
        leaves.append(leaf_hash(line))
        head = Head.sign(key, index + 1, leaves.root())
        yield head.note()
        yield InclusionProof(0, (b"\x05" * 32,) * index, head).text()
        yield print_range(leaves)
    yield str(key.verifier).encode()
    yield key.private_text().encode()


def _regos() -> Iterator[bytes]:
    for path in sorted((ROOT / "policies").rglob("*.rego")):
        yield path.read_bytes()


def _requests() -> Iterator[bytes]:
    denied = {"kind": "verdict", "by": "name", "value": "*.example.com", "word": "deny", "reason": "why"}
    place = {"kind": "verdict", "by": "dest", "value": "192.0.2.0/24", "word": "allow", "port": 443, "transport": "tcp"}
    ignored = {"kind": "strategy", "by": "cgroup", "value": "/a/b", "word": "ignore", "expires": 4e9}
    for request in (
        {"command": "status"}, {"command": "reload"}, {"command": "list", "kind": "verdict"},
        {"command": "set", "order": denied}, {"command": "set", "order": place}, {"command": "set", "order": ignored},
        {"command": "clear", "kind": "verdict", "order": denied}, {"command": "clear", "kind": "strategy", "all": True},
    ):  # fmt: skip
        yield json.dumps(request).encode()


def _configurations() -> Iterator[bytes]:
    yield b"""interfaces = ["eth0"]
policy = "policies"
mode = "enforce"
[host]
name = "gateway"
labels = { role = "edge" }
[[never_deny]]
prefix = "192.0.2.0/24"
ports = [22]
transport = "tcp"
[dns]
servers = ["192.0.2.53"]
[posture]
fragment = "open"
[alerts]
window = 60
[alerts.webhook]
url = "https://alerts.example/hook"
timeout = 5.0
[hold]
bytes = 16384
[maps]
ring_bytes = 4194304
"""


def _replies() -> Iterator[bytes]:
    for value in ("deny", {"verdict": "reject", "reasons": ["why", 3], "ttl": 30}, {"verdict": "allow", "more": None}):
        yield json.dumps(value).encode()


def _before(head: bytes, inputs: Callable[[], Iterator[bytes]]) -> Callable[[], Iterator[bytes]]:
    return lambda: (head + data for data in inputs())


def _many(*several: Callable[[], Iterator[bytes]]) -> Callable[[], Iterator[bytes]]:
    return lambda: (data for inputs in several for data in inputs())


SEEDS: dict[str, Callable[[], Iterator[bytes]]] = {
    "c_packet": _many(_before(b"\1\0", _frames), _before(b"\0\0", _packets), _before(b"\1\x40", _frames)),
    "c_hello": _before(b"\0\x60", _hellos),
    "frame": _many(_before(b"\1\0", _frames), _before(b"\1\1", _tunnels), _before(b"\x0c\1", _packets)),
    "hello": _before(b"\x20\x03", _hellos),
    "quic": _many(
        lambda: (b"\0" + _initial() for _ in range(1)),
        lambda: (b"\1" + initials.crypto(0, data[5:]) for data in _hellos()),
    ),
    "stream": _streams,
    "dns": _dns,
    "capture": _captures,
    "line": _audit_lines,
    "note": _notes,
    "rego": _regos,
    "request": _requests,
    "config": _configurations,
    "reply": _replies,
}
"""Target -> its seeds, in the form that the target takes apart."""


def write(target: str, folder: Path) -> None:
    """Fill a corpus folder with the seeds of a target, beside what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, data in enumerate(SEEDS[target]()):
        (folder / f"seed-{index:02}").write_bytes(data)
