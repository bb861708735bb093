"""The Python targets: each takes any bytes and returns; an exception is a finding.

A parser may refuse with its own closed family of errors and nothing else. Where it has a printer, what it accepts is
what the printer writes.
"""

from __future__ import annotations

import contextlib
import io
import json
import struct
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import msgspec

from audit import entry
from audit.checkpoint import Head, SigningKey, VerifierKey
from audit.errors import FormatError
from audit.proof import InclusionProof
from audit.recovery import parse_range, print_range
from engine.config_file import parse as parse_config
from engine.errors import ConfigError, InputError, SallyportError, UsageError
from engine.model.facts import NameState
from engine.policy.bundle import Bundle, Module
from engine.policy.check import check
from engine.policy.interpreter import InterpreterError
from engine.policy.interpreter import parse as parse_rego
from engine.policy.reply import decision_reply
from engine.protocols import dns as lookups
from engine.protocols import link as link_layer
from engine.protocols.capture import records
from engine.protocols.defrag import Defragmenter
from engine.protocols.packet import Fragment, Packet, Refusal
from engine.protocols.packet import parse as parse_packet
from engine.protocols.quic import InitialAssembler, initial_packets
from engine.protocols.records import DEFAULT_LIMIT, HelloAssembler
from engine.protocols.stream import Outcome, StreamAssembler
from engine.protocols.survey import Survey
from engine.protocols.tls import HelloReading, parse_hello
from engine.runtime.commands import Commands
from engine.runtime.control import _request
from engine.runtime.orders import Order
from tests.support import initials
from tests.support.rig import Rig, deny_names, run

KEPT = Path(__file__).parents[2] / "build/fuzz/request"
"""Where the commands keep their settings."""
LINKS = (0, 1, 9, 12, 14, 50, 51, 101, 104, 108, 113, 166, 228, 229, 239, 276, 127)


def stated(reading: HelloReading | None) -> None:
    """A name is there when, and only when, the hello was read to its end; and every refusal has a reason."""
    if reading is None:
        return
    assert bool(reading.name.value) == (reading.state is NameState.COMPLETE), reading
    assert bool(reading.reason) == (reading.state not in (NameState.COMPLETE, NameState.ABSENT)), reading
    assert reading.ja4 or not reading.whole
    reading.hello()


def frame(data: bytes) -> None:
    """Link, network and transport headers, tunnels, fragments. u8 link type, u8 tunnels, the frame."""
    if len(data) < 2:
        return
    link, tunnels, rest = LINKS[data[0] % len(LINKS)], bool(data[1] & 1), data[2:]
    got = parse_packet(rest, link, tunnels=tunnels)
    assert isinstance(got, (Packet, Fragment, Refusal))
    assert link_layer.supported(link) or got is Refusal.UNKNOWN_LINK
    if isinstance(got, Packet):
        assert 0 <= got.payload_offset <= got.payload_end <= len(got.frame)
        assert got.missing >= 0
        assert len(got.source_key) == len(got.dest_key) == 16
        assert (str(got.src), str(got.dst), got.transport, got.payload) is not None
    elif isinstance(got, Fragment):
        assert got.offset % 8 == 0
        Defragmenter(2).add(got, tunnels=tunnels)


def facts(reading: HelloReading | None) -> tuple[object, ...] | None:
    return reading and (reading.name, reading.raw_name, reading.reason, reading.hello(), reading.size)


def hello(data: bytes) -> None:
    """The first bytes of a TCP stream: the same reading however they are cut. u8 length of the first piece, u8 size of
    the others, the bytes."""
    if len(data) < 2:
        return
    first, step, stream = data[0] + 1, data[1] * 8 + 1, data[2:]
    at_once, in_pieces = HelloAssembler(), HelloAssembler()
    whole = at_once.feed(stream)
    stated(whole)
    for start, end in pairwise([0, *range(first, len(stream), step), len(stream)]):
        in_pieces.feed(stream[start:end])
    assert facts(whole) == facts(in_pieces.reading)
    if whole is None:
        assert len(stream) <= DEFAULT_LIMIT
        stated(in_pieces.give_up("the end"))
        assert not in_pieces.give_up("again").name.value
    stated(parse_hello(stream))
    stated(parse_hello(stream, quic=True))


def quic(data: bytes) -> None:
    """A client's datagrams. u8 kind: even: the bytes are a datagram; odd: they are frames, which are sealed."""
    if not data:
        return
    datagram = data[1:]
    if data[0] & 1:
        datagram = initials.initial(data[1:], version=initials.V2 if data[0] & 2 else initials.V1)
    for packet in initial_packets(datagram):
        assert len(packet.packet) <= len(datagram)
    assembler = InitialAssembler()
    reading = assembler.feed(datagram)
    stated(reading)
    assert assembler.opened or reading is None or not reading.name.value
    assert len(assembler.hello_bytes) <= len(datagram)
    assert not data[0] & 1 or assembler.opened
    assembler.continues(datagram)
    assert facts(assembler.feed(datagram)) == facts(reading) or reading is None
    stated(assembler.give_up("the end"))


def stream(data: bytes) -> None:
    """TCP segments: what comes out is what went in, in order, once. Repeated: u8 length, u16 place, the bytes."""
    tcp, limit, at, out = StreamAssembler(limit=2048, max_segments=16, start=0xFFFFFF00), 2048, 0, b""
    first: dict[int, int] = {}
    while at + 3 <= len(data):
        length, place = struct.unpack_from("!BH", data, at)
        piece = data[at + 3 : at + 3 + length]
        at += 3 + length
        push = tcp.push((0xFFFFFF00 + place) & 0xFFFFFFFF, piece)
        if push.outcome in (Outcome.CONFLICT, Outcome.FULL):
            break
        for index, byte in enumerate(piece, place):
            assert first.setdefault(index, byte) == byte, "another version of a byte was taken"
        for position, fresh in push.pieces:
            assert position == len(out)
            out += fresh
        assert out == bytes(first[index] for index in range(len(out)))
        assert len(tcp.content) <= limit


def dns(data: bytes) -> None:
    """DNS messages. u8 kind: even: the rest is one, and what is read of it prints and reads the same; odd: it is a
    stream of messages, the same ones however it is cut (u8 length of the first piece)."""
    if len(data) < 2:
        return
    kind, first, rest = data[0] & 1, data[1], data[2:]
    if kind:
        at_once, in_pieces = lookups.MessageStream(0xFFFFFFF0), lookups.MessageStream(0xFFFFFFF0)
        whole = at_once.push(0xFFFFFFF0, rest)
        head = in_pieces.push(0xFFFFFFF0, rest[:first])
        tail = in_pieces.push((0xFFFFFFF0 + len(rest[:first])) & 0xFFFFFFFF, rest[first:])
        if isinstance(whole, lookups.Malformed):
            assert isinstance(head, lookups.Malformed) or isinstance(tail, lookups.Malformed)
        else:
            assert isinstance(head, list)
            assert isinstance(tail, list)
            assert whole == head + tail
        return
    message = lookups.parse(rest)
    if isinstance(message, lookups.Malformed):
        assert message.reason
        return
    again = lookups.parse(lookups.encode(message))
    assert again == message, (message, again)


def capture(data: bytes) -> None:
    """A capture file, and the hellos in it."""
    survey, refusal = Survey(), None
    try:
        for record in records(io.BytesIO(data)):
            for sighting in survey.feed(record):
                stated(sighting.reading)
    except InputError as error:
        refusal = error
    assert refusal is None or (refusal.hint and "\n" not in refusal.message)
    for sighting in survey.finish():
        stated(sighting.reading)


def line(data: bytes) -> None:
    """A line of the audit log: what is read prints, and reads the same again."""
    try:
        header = entry.decode_header(data)
    except FormatError:
        header = None
    try:
        whole = entry.decode(data)
    except FormatError:
        return
    printed = entry.encode(whole)
    assert entry.encode(entry.decode(printed)) == printed
    if header is not None:
        assert (header.seq, header.time_ns, header.type) == (whole.seq, whole.time_ns, whole.type)
        assert entry.decode_header(printed) == header


def note(data: bytes) -> None:
    """Heads, proofs, keys and ranges: only what its own printer would have written."""
    text = data.decode("utf-8", "surrogateescape")
    parsers: tuple[Callable[[], bytes | str], ...] = (
        lambda: Head.parse(data).note(),
        lambda: InclusionProof.parse(data).text(),
        lambda: print_range(parse_range(data)),
        lambda: str(VerifierKey.parse(text)),
        lambda: SigningKey.parse(text).private_text(),
    )
    for printed in parsers:
        try:
            again = printed()
        except FormatError:
            continue
        assert again in (data, text)


def rego(data: bytes) -> None:
    """A Rego file: findings, each with a place in the file."""
    text = data.decode("utf-8", "replace")
    module = Module("fuzzed.rego", text)
    try:
        tree = parse_rego(module.file, text), ""
    except InterpreterError as error:
        tree = b"", str(error)
    checked = check(Bundle(Path(), (module,), (), {"settings": {}}, {}, {}, ""), {module.file: tree})
    lines = text.count("\n") + 1
    for finding in checked.findings:
        assert finding.message
        assert finding.file != module.file or 0 <= finding.line <= lines


class _Desk:
    """The engine's commands over a simulated gate."""

    def __init__(self) -> None:
        # Not a temporary folder: libFuzzer ends the process without a chance to remove it.
        KEPT.mkdir(parents=True, exist_ok=True)
        self.rig = Rig(KEPT, deny_names())
        done = cast("Any", self._nothing)
        self.commands = Commands(
            self.rig.orders,
            self.rig.gatekeeper,
            self.rig.people,
            cast("Any", self.rig.diary),
            self.rig.sources,
            done,
            done,
            done,
        )

    async def _nothing(self) -> str:
        return "done"

    async def answer(self, request: dict[str, Any]) -> object:
        try:
            return await self.commands(request)
        finally:
            for kind in ("verdict", "strategy"):
                await self.commands({"command": "clear", "kind": kind, "all": True})


@cache
def _desk() -> _Desk:
    return _Desk()


def request(data: bytes) -> None:
    """A request on the control socket: an answer that JSON can hold, or an error of the engine's family."""
    try:
        asked = _request(data)
    except UsageError:
        return
    with contextlib.suppress(SallyportError):
        json.dumps(run(_desk().answer(asked))).encode()
    order = asked.get("order")
    if isinstance(order, dict):
        try:
            made = Order.make(order)
        except SallyportError:
            return
        assert Order.make(asdict(made)) == made


def config(data: bytes) -> None:
    """A configuration file."""
    with contextlib.suppress(ConfigError):
        parse_config(data, Path("/etc/sallyport.toml"))


def reply(data: bytes) -> None:
    """What a policy's decision evaluates to."""
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    got = decision_reply(value)
    assert bool(got.error) != bool(got.deny or got.reject or got.allow), got


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (frame, hello, quic, stream, dns, capture, line, note, rego, request, config, reply)
}
