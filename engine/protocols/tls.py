"""The TLS ClientHello: bytes in, one reading out (RFC 8446 section 4.1.2, RFC 5246, RFC 6066, RFC 7301, RFC
9849).

A reading is whole or it states what is wrong: there is never a name from a hello that was not read to its
end. `parse_hello` reads one handshake message; `engine.protocols.records` finds it in a TCP stream, `quic` in
datagrams.
"""

from __future__ import annotations

import struct

from engine.model.facts import Hello, Name, NameState
from engine.model.name import normalise
from engine.protocols import ja4

CLIENT_HELLO = 1
"""The handshake message type."""

_SERVER_NAME, _SIGNATURES, _ALPN, _VERSIONS, _ECH = 0, 13, 16, 43, 0xFE0D
_READ = frozenset((_SERVER_NAME, _SIGNATURES, _ALPN, _VERSIONS))
_VERSION_NAMES = {0x0304: "1.3", 0x0303: "1.2", 0x0302: "1.1", 0x0301: "1.0", 0x0300: "ssl3", 0x0002: "ssl2"}
_DRAFTS = 0x7F00
_SHORTEST = 4 + 2 + 32 + 1 + (2 + 2) + (1 + 1)
"""Header, version, random, an empty session id, one cipher, one compression method."""
_EXTENSION = struct.Struct("!HH")
_U16 = struct.Struct("!H")


class HelloReading:
    """What a client's first payload said.

    `name` is the policy's fact; `raw_name` the bytes sent, also of an invalid name. `reason` is empty for
    COMPLETE and ABSENT and says in a clause what is wrong otherwise. `versions` and `alpn` as in
    `engine.model.facts.Hello`, without GREASE. `ciphers`, `extensions`, `signature_algorithms` are wire
    numbers in order. `size`: bytes of the handshake message with its header; `records`: TLS records it took,
    0 for QUIC.
    """

    __slots__ = (
        "_first_alpn", "_version", "alpn", "ciphers", "extensions", "name", "quic", "raw_name", "reason", "records",
        "signature_algorithms", "size", "versions",
    )  # fmt: skip

    def __init__(
        self,
        name: Name,
        reason: str = "",
        *,
        raw_name: bytes = b"",
        versions: tuple[str, ...] = (),
        alpn: tuple[str, ...] = (),
        ciphers: tuple[int, ...] = (),
        extensions: tuple[int, ...] = (),
        signature_algorithms: tuple[int, ...] = (),
        size: int = 0,
        quic: bool = False,
        version: int = 0,
        first_alpn: bytes = b"",
    ) -> None:
        self.name = name
        self.reason = reason
        self.raw_name = raw_name
        self.versions = versions
        self.alpn = alpn
        self.ciphers = ciphers
        self.extensions = extensions
        self.signature_algorithms = signature_algorithms
        self.size = size
        self.records = 0
        self.quic = quic
        self._version = version
        self._first_alpn = first_alpn

    @property
    def state(self) -> NameState:
        return self.name.state

    @property
    def whole(self) -> bool:
        """A hello was read to its end."""
        return self.name.state in (NameState.COMPLETE, NameState.ABSENT, NameState.INVALID)

    @property
    def ja4(self) -> str:
        """The fingerprint, empty unless `whole`. Computed on each call."""
        if not self.whole:
            return ""
        return ja4.fingerprint(
            quic=self.quic,
            version=self._version,
            ciphers=self.ciphers,
            extensions=self.extensions,
            signature_algorithms=self.signature_algorithms,
            first_alpn=self._first_alpn,
        )

    def hello(self) -> Hello:
        """Return the policy's `hello` fact."""
        return Hello(self.versions, self.alpn, self.ja4)

    def __repr__(self) -> str:
        return f"HelloReading({self.name!r}, {self.reason!r})"


def stated(state: NameState, reason: str) -> HelloReading:
    """Return a reading without a hello."""
    return HelloReading(Name("", state), reason)


def parse_hello(message: bytes, *, quic: bool = False) -> HelloReading:
    """Read one whole ClientHello handshake message, its four-byte header included.

    A message that ends before its declared length is PARTIAL; anything that contradicts its own lengths,
    repeats an extension or names the server twice is MALFORMED (RFC 8446 section 4.2, RFC 6066 section 3).
    """
    try:
        return _parse(message, quic)
    except (IndexError, struct.error):
        return stated(NameState.MALFORMED, "a field runs past the end of the hello")
    except _MalformedError as error:
        return stated(NameState.MALFORMED, str(error))


class _MalformedError(Exception):
    """Never leaves this module."""


def early_fault(message: bytes | bytearray) -> str:
    """Say what the first bytes of a hello settle already, in the order of the bytes, so that a hello that
    arrives in pieces is judged like one that arrives at once, and nothing is held that the rest cannot
    mend."""
    present = len(message)
    if not present:
        return ""
    if message[0] != CLIENT_HELLO:
        return f"the handshake starts with message type {message[0]}, not a ClientHello"
    if present >= 4 and not message[1] and not message[2] and message[3] < _SHORTEST - 4:
        return f"a hello of {message[3] + 4} bytes is too short to be one"
    if present > 4 and message[4] != 3:
        return f"a hello of version {message[4]}"
    if present > 38 and message[38] > 32:
        return f"a session id of {message[38]} bytes, more than 32"
    return ""


def _parse(message: bytes, quic: bool) -> HelloReading:
    fault = early_fault(message)
    if fault:
        raise _MalformedError(fault)
    present = len(message)
    end = (message[1] << 16 | message[2] << 8 | message[3]) + 4 if present >= 4 else 4
    if present < end:
        return stated(NameState.PARTIAL, f"{present} of {end} bytes of the hello")
    version = 0x0300 | message[5]
    at = 39 + message[38]
    length = message[at] << 8 | message[at + 1]
    at += 2
    if not length or length & 1 or at + length > end:
        raise _MalformedError("a cipher list that contradicts its length")
    ciphers = struct.unpack_from(f"!{length >> 1}H", message, at)
    at += length
    length = message[at]
    at += 1 + length
    if not length or at > end:
        raise _MalformedError("a compression list that contradicts its length")

    kinds: list[int] = []
    spans: dict[int, tuple[int, int]] = {}
    if at != end:  # RFC 5246 section 7.4.1.2: no extensions at all is no empty list
        if at + 2 + (message[at] << 8 | message[at + 1]) != end:
            raise _MalformedError("an extension list that contradicts its length")
        at += 2
        unpack = _EXTENSION.unpack_from
        while at < end:
            kind, length = unpack(message, at)
            at += 4
            kinds.append(kind)
            if kind in _READ:
                spans[kind] = (at, at + length)
            at += length
        if at != end:
            raise _MalformedError(f"extension {kinds[-1]} runs past the end of the hello")
        if len(set(kinds)) != len(kinds):
            raise _MalformedError("an extension that stands in it twice")

    ech = _ECH in kinds
    raw_name = b""
    name = Name("", NameState.ABSENT, ech)
    reason = ""
    if _SERVER_NAME in spans:
        raw_name = _server_name(message, *spans[_SERVER_NAME])
        value, why = normalise(raw_name)
        name = Name(value, NameState.INVALID if why else NameState.COMPLETE, ech)
        reason = why and f"the server name is {why}"
    first_alpn = b""
    alpn: tuple[str, ...] = ()
    if _ALPN in spans:
        first_alpn, alpn = _alpn(message, *spans[_ALPN])
    versions: tuple[str, ...] = (version_name(version),)
    if _VERSIONS in spans:
        start, stop = spans[_VERSIONS]
        if start == stop or message[start] != stop - start - 1:
            raise _MalformedError("a version list that contradicts its length")
        offered = [value for value in _numbers(message, start + 1, stop) if value not in ja4.GREASE]
        versions = tuple([version_name(value) for value in offered])
        version = max(offered, default=version)
    schemes: tuple[int, ...] = ()
    if _SIGNATURES in spans:
        start, stop = spans[_SIGNATURES]
        if stop - start < 2 or _U16.unpack_from(message, start)[0] != stop - start - 2:
            raise _MalformedError("a signature algorithm list that contradicts its length")
        schemes = _numbers(message, start + 2, stop)
    return HelloReading(
        name, reason, raw_name=raw_name, versions=versions, alpn=alpn, ciphers=ciphers, extensions=tuple(kinds),
        signature_algorithms=schemes, size=end, quic=quic, version=version, first_alpn=first_alpn,
    )  # fmt: skip


def _server_name(message: bytes, start: int, stop: int) -> bytes:
    # RFC 6066 section 3 defines one name type and forbids two names of a type: so one entry, filling the
    # list.
    if stop - start < 6 or message[start] << 8 | message[start + 1] != stop - start - 2:
        raise _MalformedError("a server name list that contradicts its length")
    if message[start + 2] != 0:
        raise _MalformedError(f"a server name of unknown type {message[start + 2]}")
    length = message[start + 3] << 8 | message[start + 4]
    if start + 5 + length < stop:
        raise _MalformedError("more than one server name")
    if start + 5 + length > stop or not length:
        raise _MalformedError("a server name that contradicts its length")
    return message[start + 5 : stop]


def _alpn(message: bytes, start: int, stop: int) -> tuple[bytes, tuple[str, ...]]:
    if stop - start < 4 or message[start] << 8 | message[start + 1] != stop - start - 2:
        raise _MalformedError("an ALPN list that contradicts its length")
    protocols = []
    at = start + 2
    while at < stop:
        length = message[at]
        protocol = message[at + 1 : at + 1 + length]
        at += 1 + length
        if not length or at > stop:
            raise _MalformedError("an ALPN protocol that contradicts its length")
        protocols.append(protocol)
    shown = [one for one in protocols if len(one) != 2 or _U16.unpack(one)[0] not in ja4.GREASE]
    return (shown[0] if shown else b""), tuple([protocol_text(one) for one in shown])


def protocol_text(protocol: bytes) -> str:
    """Return an ALPN protocol as text: printable ASCII as it is, any other byte and the backslash as
    \\xNN."""
    if protocol.isalnum():
        return protocol.decode("ascii")
    return "".join([chr(byte) if 0x20 <= byte < 0x7F and byte != 0x5C else f"\\x{byte:02x}" for byte in protocol])


def version_name(value: int) -> str:
    known = _VERSION_NAMES.get(value)
    if known:
        return known
    return f"1.3-draft{value & 0xFF}" if value & 0xFF00 == _DRAFTS else f"0x{value:04x}"


def _numbers(message: bytes, start: int, stop: int) -> tuple[int, ...]:
    if (stop - start) & 1 or stop <= start:
        raise _MalformedError("a list of numbers that contradicts its length")
    return struct.unpack_from(f"!{(stop - start) >> 1}H", message, start)
