"""The TLS record layer up to the end of the first hello (RFC 8446 section 5.1)."""

from __future__ import annotations

from engine.model.facts import Name, NameState
from engine.protocols.tls import CLIENT_HELLO, HelloReading, early_fault, parse_hello, stated, version_name

DEFAULT_LIMIT = 16 * 1024
"""Bytes of one hello, record headers included; ten times what browsers send with post-quantum key shares."""

_HANDSHAKE = 22
_MAX_FRAGMENT = 16_384


class HelloAssembler:
    """Reads a hello from the first bytes of a TCP stream, however they are cut.

    `feed` takes the next bytes in stream order and returns None while more are needed, then the reading; from
    there on it returns the same reading. The verdict on a stream never depends on how it was cut. `limit`
    bounds the bytes taken in.
    """

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self.reading: HelloReading | None = None
        self._limit = limit
        self._taken = 0
        self._header = b""
        self._left = 0
        self._records = 0
        self._message = bytearray()

    def feed(self, data: bytes) -> HelloReading | None:
        """Take the next bytes of the stream."""
        if self.reading is None:
            self.reading = self._feed(data)
        return self.reading

    @property
    def taken(self) -> int:
        """How many bytes of the stream the reading rests on: whatever follows them, it is the same."""
        return self._taken

    def give_up(self, why: str) -> HelloReading:
        """End the wait (a time-out, the end of a capture): PARTIAL unless there is a reading already."""
        if self.reading is None:
            self.reading = stated(NameState.PARTIAL, why)
        return self.reading

    def _feed(self, data: bytes) -> HelloReading | None:
        if not self._taken and len(data) > 9 and data[0] == _HANDSHAKE and data[1] == 3 and data[5] == CLIENT_HELLO:
            length = data[3] << 8 | data[4]
            size = (data[6] << 16 | data[7] << 8 | data[8]) + 4
            if size <= length <= _MAX_FRAGMENT and size + 5 <= len(data) and size + 5 <= self._limit:
                whole = parse_hello(data[5 : 5 + size])
                whole.records = 1
                self._taken = size + 5
                return whole
        at = 0
        while at < len(data):
            if self._taken >= self._limit:
                return self._over(f"no whole hello in {self._limit} bytes")
            if self._left:
                take = data[at : at + min(self._left, self._limit - self._taken)]
                self._message += take
                self._left -= len(take)
                reading = self._message_state()
            else:
                take = data[at : at + min(5 - len(self._header), self._limit - self._taken)]
                self._header += take
                reading = self._header_state()
            self._taken += len(take)
            at += len(take)
            if reading is not None:
                return reading
        return None

    def _header_state(self) -> HelloReading | None:
        header = self._header
        if header[0] != _HANDSHAKE:
            if self._records:
                return stated(NameState.MALFORMED, f"a record of type {header[0]} inside the hello")
            return _sslv2(header)
        if len(header) > 1 and header[1] != 3:
            state = NameState.MALFORMED if self._records else NameState.NOT_TLS
            return stated(state, f"a record of version {header[1]}")
        if len(header) < 5:
            return None
        length = header[3] << 8 | header[4]
        if not 0 < length <= _MAX_FRAGMENT:
            return stated(NameState.MALFORMED, f"a handshake record of {length} bytes")
        self._left = length
        self._records += 1
        self._header = b""
        return None

    def _message_state(self) -> HelloReading | None:
        message = self._message
        present = len(message)
        size = (message[1] << 16 | message[2] << 8 | message[3]) + 4 if present >= 4 else 4
        if message[0] == CLIENT_HELLO and size > self._limit:
            return self._over(f"a hello that claims {size} bytes")
        fault = early_fault(message)
        if fault:
            return stated(NameState.MALFORMED, fault)
        if present < size:
            return None
        reading = parse_hello(bytes(message[:size]))
        reading.records = self._records
        return reading

    def _over(self, why: str) -> HelloReading:
        return stated(NameState.PARTIAL, f"{why}, more than the bound of {self._limit}")


def _sslv2(header: bytes) -> HelloReading | None:
    """Tell the SSL 2.0 compatible hello (RFC 5246 appendix E.2), which has no room for a name, from other
    traffic."""
    not_tls = stated(NameState.NOT_TLS, f"the first byte 0x{header[0]:02x} starts no TLS handshake")
    if not header[0] & 0x80 or (len(header) > 2 and header[2] != CLIENT_HELLO):
        return not_tls
    if len(header) < 5:
        return None
    version = header[3] << 8 | header[4]
    length = (header[0] & 0x7F) << 8 | header[1]
    if version not in (0x0002, 0x0300, 0x0301, 0x0302, 0x0303) or length < 9 + 3:
        return not_tls
    return HelloReading(
        Name("", NameState.UNSUPPORTED),
        "an SSL 2.0 compatible hello, which carries no name",
        versions=(version_name(version),),
        version=version,
    )
