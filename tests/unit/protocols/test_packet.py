"""Packet headers of every link layer, and stated reasons for what is none."""

from __future__ import annotations

import struct

import pytest

from engine.model import net
from engine.model.facts import Transport
from engine.protocols.packet import ACK, PSH, Fragment, Packet, Refusal, parse
from tests.support import captures as build

SEGMENT = build.tcp(40_000, 443, b"payload", seq=0xFEDCBA98, flags=ACK | PSH, options=b"\x01" * 12)
V4 = build.ipv4(6, SEGMENT)
V6 = build.ipv6(6, SEGMENT)


def packet(frame: bytes, link: int = 1, *, tunnels: bool = False) -> Packet:
    result = parse(frame, link, tunnels=tunnels)
    assert isinstance(result, Packet), result
    return result


@pytest.mark.parametrize(("ip", "src", "dst"), [(V4, build.CLIENT, build.SERVER), (V6, build.CLIENT6, build.SERVER6)])
def test_a_tcp_segment(ip: bytes, src: str, dst: str) -> None:
    got = packet(build.ethernet(ip))
    assert (str(got.src), got.sport, str(got.dst), got.dport) == (src, 40_000, dst, 443)
    assert (got.transport, got.seq, got.flags) == (Transport.TCP, 0xFEDCBA98, ACK | PSH)
    assert got.payload == b"payload"
    assert got.source_key == net.to_key(got.src)
    assert got.dest_key == net.to_key(got.dst)
    assert got.missing == 0


def test_a_datagram_and_its_padding() -> None:
    got = packet(build.ethernet(build.ipv4(17, build.udp(53, 5353, b"answer")) + b"\0" * 12))
    assert (got.transport, got.sport, got.dport, got.payload) == (Transport.UDP, 53, 5353, b"answer")


def test_udp_length_bounds_the_payload() -> None:
    assert packet(build.ethernet(build.ipv4(17, build.udp(1, 2, b"abc") + b"trailer"))).payload == b"abc"


def test_other_protocols_have_no_ports() -> None:
    got = packet(build.ethernet(build.ipv4(1, b"\x08\0\0\0echo")))
    assert (got.transport, got.sport, got.dport, got.payload) == (Transport.ICMP, 0, 0, b"\x08\0\0\0echo")
    assert packet(build.ethernet(build.ipv4(132, b"sctp"))).transport is Transport.OTHER


def test_ipv4_options_are_skipped() -> None:
    assert packet(build.ethernet(build.ipv4(6, SEGMENT, options=b"\x94\x04\0\0" * 3))).payload == b"payload"


def test_mapped_addresses_are_told_as_ipv4() -> None:
    got = packet(build.ethernet(build.ipv6(6, SEGMENT, src="::ffff:192.0.2.1")))
    assert str(got.src) == "192.0.2.1"


def test_a_super_packet_with_total_length_0_reaches_to_the_frames_end() -> None:
    big = build.tcp(1, 443, b"x" * 70_000)
    assert len(packet(build.ethernet(build.ipv4(6, big, total=0))).payload) == 70_000


LINKS = {
    "null, little-endian": (0, struct.pack("<I", 2) + V4),
    "null, big-endian": (0, struct.pack(">I", 2) + V4),
    "null, FreeBSD's AF_INET6": (0, struct.pack("<I", 28) + V6),
    "null, Darwin's AF_INET6": (0, struct.pack("<I", 30) + V6),
    "loop": (108, struct.pack(">I", 24) + V6),
    "ppp": (9, b"\x00\x21" + V4),
    "ppp with address and control": (9, b"\xff\x03\x00\x57" + V6),
    "ppp, compressed protocol": (9, b"\x21" + V4),
    "cisco hdlc": (104, b"\x0f\x00\x08\x00" + V4),
    "raw 12": (12, V4),
    "raw 101": (101, V6),
    "ipv4": (228, V4),
    "ipv6": (229, V6),
    "cooked v1": (113, b"\0\x04\0\x01\0\x06\x02\x02\x02\x02\x02\x02\0\0\x08\x00" + V4),
    "cooked v2": (276, b"\x86\xdd\0\0\0\0\0\x02\0\x01\x04\x06" + b"\x02" * 8 + V6),
    "nflog": (239, b"\x02\0\0\0" + b"\x08\0\x0a\0\0\0\0\0" + struct.pack("<HH", 4 + len(V4), 9) + V4),
    "pppoe": (51, b"\x11\0\0\x01\0\x50\x00\x21" + V4),
    "ethernet with pppoe": (1, build.ethernet(b"\x11\0\0\x01\0\x50\x00\x21" + V4, ethertype=0x8864)),
    "ethernet with snap": (1, build.ethernet(b"\xaa\xaa\x03\0\0\0\x08\0" + V4, ethertype=len(V4) + 8)),
}


@pytest.mark.parametrize(("link", "frame"), LINKS.values(), ids=LINKS.keys())
def test_link_layers(link: int, frame: bytes) -> None:
    got = packet(frame, link)
    assert (got.dport, got.payload) == (443, b"payload")


@pytest.mark.parametrize("vlans", [(7,), (3704, 2474), (1, 2, 3)])
def test_vlan_tags_are_kept_outermost_first(vlans: tuple[int, ...]) -> None:
    got = packet(build.ethernet(V6, vlans=vlans))
    assert got.vlans == vlans
    assert got.payload == b"payload"


def test_vlan_tags_in_cooked_frames() -> None:
    frame = b"\0\x04\0\x01\0\x06\x02\x02\x02\x02\x02\x02\0\0\x81\x00" + b"\x00\x2a\x08\x00" + V4
    assert packet(frame, 113).vlans == (42,)


def extended(*headers: tuple[int, bytes], last: int = 6, payload: bytes = SEGMENT) -> bytes:
    """Chain extension headers (kind, eight bytes whose first is overwritten by the next kind) before the
    payload."""
    kinds = [kind for kind, _ in headers[1:]] + [last]
    chain = b"".join(bytes([following]) + body[1:] for following, (_, body) in zip(kinds, headers, strict=True))
    return build.ethernet(build.ipv6(headers[0][0], chain + payload))


OPTIONS = b"\0\0\x01\x04\0\0\0\0"


def test_ipv6_extension_headers_are_walked() -> None:
    authentication = b"\0\x04\0\0" + b"\xaa" * 20
    frame = extended((0, OPTIONS), (60, OPTIONS), (43, b"\0\0\x02\0\0\0\0\0"), (51, authentication))
    assert packet(frame).payload == b"payload"


def test_an_atomic_fragment_is_a_whole_packet() -> None:
    assert packet(extended((44, b"\0\0\0\0\0\0\0\x09"))).payload == b"payload"


def test_a_chain_of_extension_headers_has_an_end() -> None:
    assert isinstance(parse(extended(*[(60, OPTIONS)] * 8)), Packet)
    assert parse(extended(*[(60, OPTIONS)] * 9)) is Refusal.TOO_DEEP


def test_fragments_are_told_as_such() -> None:
    got = parse(build.ethernet(build.ipv4(6, b"\xab" * 16, ident=77, offset=24, more=True)))
    assert isinstance(got, Fragment)
    assert (got.version, got.ident, got.offset, got.more, got.data) == (4, 77, 24, True, b"\xab" * 16)
    got6 = parse(extended((44, b"\0\0" + struct.pack("!HI", 16 | 1, 99)), payload=b"\xcd" * 16))
    assert isinstance(got6, Fragment)
    assert (got6.version, got6.ident, got6.offset, got6.more, got6.protocol) == (6, 99, 16, True, 6)


def test_a_short_snapshot_says_how_much_is_missing() -> None:
    frame = build.tcp_frame(b"x" * 1000)[:200]
    got = packet(frame)
    assert got.missing == 1000 - len(got.payload)
    assert got.payload == b"x" * (200 - 54)


@pytest.mark.parametrize("frame", [build.ethernet(V4), build.ethernet(V6), build.ethernet(V4, vlans=(1, 2))])
def test_headers_cut_anywhere_are_refused_not_guessed(frame: bytes) -> None:
    headers = len(frame) - len(b"payload")
    for length in range(headers):
        assert isinstance(parse(frame[:length]), Refusal), length


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", Refusal.TRUNCATED),
        (build.ethernet(b"\x00" * 28, ethertype=0x0806), Refusal.NOT_IP),
        (build.ethernet(b"\x45" + b"\0" * 10, ethertype=0x0800), Refusal.TRUNCATED),
        (build.ethernet(b"\x65" + V4[1:], ethertype=0x0800), Refusal.MALFORMED),
        (build.ethernet(b"\x44" + V4[1:], ethertype=0x0800), Refusal.MALFORMED),
        (build.ethernet(b"\x45" + V6[1:], ethertype=0x86DD), Refusal.MALFORMED),
        (build.ethernet(build.ipv4(6, SEGMENT, total=19)), Refusal.MALFORMED),
        (build.ethernet(build.ipv4(6, SEGMENT[:12] + b"\x40" + SEGMENT[13:])), Refusal.MALFORMED),
        (build.ethernet(build.ipv4(6, SEGMENT[:12] + b"\xf0" + SEGMENT[13:])), Refusal.MALFORMED),
        (build.ethernet(build.ipv4(17, b"\0\x35\0\x35\0\x07\0\0")), Refusal.MALFORMED),
        (build.ethernet(V4, vlans=range(1, 10)), Refusal.NOT_IP),
    ],
)
def test_what_is_no_packet_has_a_reason(frame: bytes, reason: Refusal) -> None:
    assert parse(frame) is reason


def test_an_unknown_link_layer_is_named() -> None:
    assert parse(build.ethernet(V4), 127) is Refusal.UNKNOWN_LINK


INNER = build.ethernet(build.ipv4(6, build.tcp(50_000, 8443, b"inside"), src="10.1.1.1", dst="10.2.2.2"))
IP = INNER[14:]
IP6 = build.ipv6(6, build.tcp(50_000, 8443, b"inside"))
TUNNELS = {
    "ipip": build.ipv4(4, IP),
    "6in4": build.ipv4(41, IP6),
    "4in6": build.ipv6(4, IP),
    "gre": build.ipv4(47, b"\0\0\x08\0" + IP),
    "gre with checksum, key and sequence": build.ipv4(47, b"\xb0\0\x86\xdd" + b"\0" * 12 + IP6),
    "gre with ethernet": build.ipv4(47, b"\0\0\x65\x58" + INNER),
    "gre of pptp": build.ipv4(47, b"\x30\x81\x88\x0b\0\x30\0\x01" + b"\0" * 8 + b"\xff\x03\x00\x21" + IP),
    "erspan ii": build.ipv4(47, b"\x10\0\x88\xbe" + b"\0" * 4 + b"\x10" + b"\0" * 7 + INNER),
    "geneve": build.ipv4(17, build.udp(1, 6081, b"\x01\0\x65\x58\0\0\x01\0" + b"\0" * 4 + INNER)),
    "vxlan": build.ipv6(17, build.udp(1, 4789, b"\x08\0\0\0\0\0\x2a\0" + INNER)),
    "gtp": build.ipv4(17, build.udp(2152, 2152, b"\x30\xff\0\0\0\0\0\x01" + IP)),
    "gtp with extension": build.ipv4(
        17, build.udp(2152, 2152, b"\x34\xff\0\0\0\0\0\x01\0\0\0\x85\x01\x10\x09\x00" + IP)
    ),
    "teredo": build.ipv4(17, build.udp(1, 3544, b"\0\0" + b"\0" * 6 + IP6)),
    "mpls": None,
    "gre in ipip": build.ipv4(4, build.ipv4(47, b"\0\0\x08\0" + IP)),
}


@pytest.mark.parametrize("name", TUNNELS)
def test_tunnels_are_opened_when_asked_for(name: str) -> None:
    outer = TUNNELS[name]
    frame = build.ethernet(outer) if outer else build.ethernet(b"\0\0\x10\x40\0\0\x21\x40" + IP, ethertype=0x8847)
    got = packet(frame, tunnels=True)
    assert (got.sport, got.dport, got.payload) == (50_000, 8443, b"inside")
    assert got.encaps
    if outer:
        assert packet(frame).encaps == ()
        assert packet(frame).dport != 8443


def test_what_only_looks_like_a_tunnel_stays_what_it_is() -> None:
    frame = build.ethernet(build.ipv4(17, build.udp(4789, 4789, b"\x08\0\0\0\0\0\x2a\0" + b"nothing of the sort")))
    got = packet(frame, tunnels=True)
    assert (got.dport, got.encaps) == (4789, ())


def test_tunnels_in_tunnels_have_an_end() -> None:
    ip = IP
    for _ in range(10):
        ip = build.ipv4(4, ip)
    assert packet(build.ethernet(ip), tunnels=True).encaps == ("ipip",) * 4
