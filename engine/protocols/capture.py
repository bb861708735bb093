"""Capture files: pcap and pcapng, plain or gzip, read as a stream.

Sources: draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng. Every record that stands whole in the file is
yielded before the error that ends it is raised, so a capture that was cut short still tells what it can.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

from engine.errors import InputError

MAX_BLOCK = 16 * 1024 * 1024
"""Bytes of one record or block; the field has 32 bits and a broken one may claim them all."""

_GZIP = b"\x1f\x8b"
_NANO, _MICRO = 1, 1000
_PCAP_MAGICS = {0xA1B2C3D4: (_MICRO, 16), 0xA1B23C4D: (_NANO, 16), 0xA1B2CD34: (_MICRO, 24)}
"""Magic to (nanoseconds of a tick, bytes of a record header); the last is Kuznetzov's patched format."""
_SECTION = 0x0A0D0D0A
_INTERFACE, _OLD_PACKET, _SIMPLE_PACKET, _ENHANCED_PACKET = 1, 2, 3, 6
_TSRESOL, _TSOFFSET = 9, 14


@dataclass(frozen=True)
class CaptureRecord:
    """One captured frame. `number` counts from 1; `time_ns` since the epoch, 0 where the file has no time;
    `link` is a LINKTYPE_ number; `length` is what stood on the wire, of which `data` may be only the
    beginning."""

    number: int
    time_ns: int
    link: int
    data: bytes
    length: int


@dataclass(frozen=True)
class _Interface:
    link: int
    snaplen: int
    ticks: int
    offset_s: int


class _Source:
    """The stream with its position, so that an error can say where."""

    def __init__(self, stream: BinaryIO, label: str) -> None:
        self.label = label
        self.offset = 0
        self.number = 0
        self._packed = False
        self._stream = stream
        self._kept = self._raw(2)
        if self._kept == _GZIP:
            rewound = cast("BinaryIO", _Rewound(self._kept, stream))
            self._packed = True
            self._stream = cast("BinaryIO", gzip.GzipFile(fileobj=rewound))
            self._kept = b""

    def take(self, count: int, what: str, *, optional: bool = False) -> bytes:
        """Read exactly `count` bytes; at the very end of the file `optional` gives b"" instead of an
        error."""
        data = self._kept[:count]
        self._kept = self._kept[count:]
        while len(data) < count:
            chunk = self._raw(count - len(data))
            if not chunk:
                if optional and not data:
                    return b""
                raise self.error(f"ends inside {what} ({len(data)} of {count} bytes are there)")
            data += chunk
        self.offset += count
        return data

    def _raw(self, count: int) -> bytes:
        try:
            return self._stream.read(count)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise self.error(f"has damaged gzip data ({error})") from error
        except OSError as error:
            raise InputError(
                f"{self.label} cannot be read: {error.strerror or error}", hint="Give the path of a capture file."
            ) from error

    def error(self, clause: str) -> InputError:
        where = "unpacked byte" if self._packed else "byte"
        return InputError(
            f"{self.label} {clause} at {where} {self.offset}",
            hint=f"{self.number} packets before it were read; capture again, or copy the file once more.",
        )


class _Rewound:
    """A stream with two bytes put back: standard input cannot seek."""

    def __init__(self, head: bytes, stream: BinaryIO) -> None:
        self._head = head
        self._stream = stream

    def read(self, count: int = -1) -> bytes:
        if self._head:
            head, self._head = self._head[:count] if count >= 0 else self._head, b""
            return head
        return self._stream.read(count)


def records(stream: BinaryIO, label: str = "the capture") -> Iterator[CaptureRecord]:
    """Yield the frames of a capture. Raises InputError, with the offset, where the file stops making sense.

    `label` names the file in messages. Only `read(n)` of the stream is used.
    """
    source = _Source(stream, label)
    magic = source.take(4, "its first four bytes", optional=True)
    if not magic:
        raise InputError(f"{label} is empty", hint="Give a pcap or pcapng file.")
    if int.from_bytes(magic, "big") == _SECTION:
        yield from _pcapng(source)
        return
    for order in "<>":
        known = _PCAP_MAGICS.get(struct.unpack(order + "I", magic)[0])
        if known:
            yield from _pcap(source, order, *known)
            return
    raise InputError(
        f"{label} is neither pcap nor pcapng (it starts with {magic.hex()})",
        hint="Give a file written by tcpdump -w, dumpcap or Wireshark; gzip is fine.",
    )


def _pcap(source: _Source, order: str, tick_ns: int, header_size: int) -> Iterator[CaptureRecord]:
    _, _, _, _, _, network = struct.unpack(order + "HHiIII", source.take(20, "the file header"))
    link = network & 0xFFFF
    header = struct.Struct(order + "IIII")
    while True:
        raw = source.take(header_size, "a record header", optional=True)
        if not raw:
            return
        seconds, fraction, captured, length = header.unpack_from(raw)
        if captured > MAX_BLOCK:
            raise source.error(f"has a record that claims {captured} bytes")
        data = source.take(captured, "a record")
        source.number += 1
        yield CaptureRecord(source.number, seconds * 10**9 + fraction * tick_ns, link, data, length)


def _pcapng(source: _Source) -> Iterator[CaptureRecord]:
    order = "<"
    interfaces: list[_Interface] = []
    kind_raw = struct.pack(">I", _SECTION)
    while kind_raw:
        if int.from_bytes(kind_raw, "big") == _SECTION:
            size_raw = source.take(4, "a section header")
            magic = source.take(4, "a section header")
            order = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}.get(magic, "")
            if not order:
                raise source.error("has a section with an unknown byte order")
            interfaces = []
            _body(source, order, size_raw, 12)
        else:
            kind = struct.unpack(order + "I", kind_raw)[0]
            body = _body(source, order, source.take(4, "a block header"), 8)
            if kind == _INTERFACE:
                interfaces.append(_interface(source, order, body))
            elif kind in (_ENHANCED_PACKET, _OLD_PACKET, _SIMPLE_PACKET):
                yield _packet(source, order, kind, body, interfaces)
        kind_raw = source.take(4, "a block header", optional=True)


def _body(source: _Source, order: str, size_raw: bytes, read: int) -> bytes:
    size = struct.unpack(order + "I", size_raw)[0]
    if size < read + 4 or size % 4 or size > MAX_BLOCK:
        raise source.error(f"has a block that claims {size} bytes")
    body = source.take(size - read - 4, "a block")
    if source.take(4, "a block") != size_raw:
        raise source.error("has a block whose two lengths differ")
    return body


def _interface(source: _Source, order: str, body: bytes) -> _Interface:
    if len(body) < 8:
        raise source.error("has an interface block that is too short")
    link, snaplen = struct.unpack_from(order + "HxxI", body)
    ticks, offset_s = 10**6, 0
    at = 8
    while at + 4 <= len(body):
        code, length = struct.unpack_from(order + "HH", body, at)
        value = body[at + 4 : at + 4 + length]
        if code == 0:
            break
        if code == _TSRESOL and len(value) == 1:
            ticks = 2 ** (value[0] & 0x7F) if value[0] & 0x80 else 10 ** value[0]
        elif code == _TSOFFSET and len(value) == 8:
            offset_s = struct.unpack(order + "q", value)[0]
        at += 4 + (length + 3 & ~3)
    return _Interface(link, snaplen, ticks, offset_s)


def _packet(source: _Source, order: str, kind: int, body: bytes, interfaces: list[_Interface]) -> CaptureRecord:
    high = low = index = 0
    start = 4 if kind == _SIMPLE_PACKET else 20
    if len(body) < start:
        raise source.error("has a packet block that is too short")
    if kind == _SIMPLE_PACKET:
        length = captured = struct.unpack_from(order + "I", body)[0]
        if interfaces and interfaces[0].snaplen:
            captured = min(captured, interfaces[0].snaplen)
    elif kind == _OLD_PACKET:
        index, high, low, captured, length = struct.unpack_from(order + "HxxIIII", body)
    else:
        index, high, low, captured, length = struct.unpack_from(order + "IIIII", body)
    if index >= len(interfaces):
        raise source.error(f"has a packet of interface {index}, which it never describes")
    if captured > len(body) - start:
        raise source.error("has a packet that is longer than its block")
    interface = interfaces[index]
    time_ns = 0
    if kind != _SIMPLE_PACKET:
        time_ns = (high << 32 | low) * 10**9 // interface.ticks + interface.offset_s * 10**9
    source.number += 1
    return CaptureRecord(source.number, time_ns, interface.link, body[start : start + captured], length)
