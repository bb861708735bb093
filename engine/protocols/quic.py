"""QUIC Initial packets of a client: open them, put the CRYPTO frames together, read the hello.

Versions 1 (RFC 9000, RFC 9001 section 5), 2 (RFC 9369) and the drafts that used their own salts. The keys of
Initial packets come from the destination connection id of the client's first one, so anybody on the path can
open them: they protect against packets made up off the path, not against reading.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from engine.model.facts import NameState
from engine.protocols.stream import OrderedBytes, Outcome
from engine.protocols.tls import CLIENT_HELLO, HelloReading, parse_hello, stated

DEFAULT_LIMIT = 16 * 1024
"""Bytes of one hello."""
MAX_DATAGRAMS = 32
"""Datagrams of one first flight; browsers send two or three, Chrome's padding games ("chaos protection") some
more."""
_MAX_PIECES = 256

V1, V2 = 0x00000001, 0x6B3343CF
_SALT_V1 = bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a")
_SALT_V2 = bytes.fromhex("0dede3def700a6db819381be6e269dcbf9bd2ed9")
_SALT_DRAFT_29 = bytes.fromhex("afbfec289993d24c9e9786f19c6111e04390a899")
_SALT_DRAFT_23 = bytes.fromhex("c3eef712c72ebb5a11a7d2432bb46365bef9f502")
_SALTS = {
    V1: _SALT_V1,
    V2: _SALT_V2,
    0xFF000022: _SALT_V1,
    0xFF000021: _SALT_V1,
    **dict.fromkeys(range(0xFF00001D, 0xFF000021), _SALT_DRAFT_29),
    **dict.fromkeys(range(0xFF000017, 0xFF00001D), _SALT_DRAFT_23),
}
_INITIAL_TYPE = {V2: 1}
"""RFC 9369 section 3.2 renumbers the long packet types; 0 elsewhere."""
_RETRY_TYPE = {V2: 0}

_MAX_CID = 20
_MIN_CLIENT_CID = 8
_MIN_INITIAL_DATAGRAM = 1200
"""RFC 9000 section 14.1: a client pads datagrams with an Initial packet to at least this."""
_LONG = 0x80
_PADDING, _PING, _ACK, _ACK_ECN, _CRYPTO, _CLOSE = 0x00, 0x01, 0x02, 0x03, 0x06, 0x1C


@dataclass(frozen=True)
class InitialPacket:
    """One protected Initial packet of a datagram. `packet` runs from its first byte to its end; `pn_offset`
    is where the protected packet number starts in it."""

    version: int
    dcid: bytes
    scid: bytes
    token: bytes
    packet: bytes
    pn_offset: int


def known(version: int) -> bool:
    """Say whether Initial packets of this version can be opened."""
    return version in _SALTS


def version_of(datagram: bytes) -> int | None:
    """Return the version of a datagram that starts with a long header (RFC 8999 section 5.1), None for any
    other."""
    if len(datagram) < 7 or not datagram[0] & _LONG:
        return None
    return int.from_bytes(datagram[1:5], "big")


def initial_packets(datagram: bytes) -> Iterator[InitialPacket]:
    """Yield the Initial packets of a datagram; other packets coalesced with them are passed over.

    Ends quietly where the bytes make no sense as long headers: what follows may be a short header or padding.
    """
    at = 0
    try:
        while at < len(datagram):
            first = datagram[at]
            version = int.from_bytes(datagram[at + 1 : at + 5], "big")
            # Not the bit behind it: a client that was told so may send it as it likes (RFC 9287).
            if not first & _LONG or version not in _SALTS:
                return
            kind = first >> 4 & 3
            offset = at + 5
            dcid, offset = _cid(datagram, offset)
            scid, offset = _cid(datagram, offset)
            if kind == _RETRY_TYPE.get(version, 3):
                return
            token = b""
            initial = kind == _INITIAL_TYPE.get(version, 0)
            if initial:
                length, offset = _varint(datagram, offset)
                token = datagram[offset : offset + length]
                offset += length
            length, offset = _varint(datagram, offset)
            end = offset + length
            if end > len(datagram):
                return
            if initial:
                yield InitialPacket(version, dcid, scid, token, datagram[at:end], offset - at)
            at = end
    except (IndexError, struct.error):
        return


class ClientKeys:
    """The keys a client protects its Initial packets with."""

    def __init__(self, version: int, dcid: bytes) -> None:
        """Derive them (RFC 9001 section 5.2, RFC 9369 section 3.3). The version must be `known`."""
        prefix = b"quicv2 " if version == V2 else b"quic "
        initial = hmac.digest(_SALTS[version], dcid, "sha256")
        secret = _expand_label(initial, b"client in", 32)
        self.version = version
        self.key = _expand_label(secret, prefix + b"key", 16)
        self.iv = _expand_label(secret, prefix + b"iv", 12)
        self.hp = _expand_label(secret, prefix + b"hp", 16)
        self._aead = AESGCM(self.key)
        # ECB over one block is how RFC 9001 section 5.4.3 makes the header mask: nothing is encrypted with
        # it.
        self._mask = Cipher(algorithms.AES(self.hp), modes.ECB())  # noqa: S305
        self._expected = 0

    def open(self, initial: InitialPacket) -> bytes | None:
        """Return the frames of a packet, or None when it was not sealed with these keys."""
        packet, at = initial.packet, initial.pn_offset
        sample = packet[at + 4 : at + 20]
        if initial.version != self.version or len(sample) < 16:
            return None
        mask = self._mask.encryptor().update(sample)
        first = packet[0] ^ mask[0] & 0x0F
        size = (first & 3) + 1
        truncated = bytes(a ^ b for a, b in zip(packet[at : at + size], mask[1:], strict=False))
        number = _packet_number(int.from_bytes(truncated, "big"), size * 8, self._expected)
        header = bytes([first]) + packet[1:at] + truncated
        nonce = (int.from_bytes(self.iv, "big") ^ number).to_bytes(12, "big")
        try:
            frames = self._aead.decrypt(nonce, packet[at + size :], header)
        except InvalidTag:
            return None
        self._expected = max(self._expected, number + 1)
        return frames


class InitialAssembler:
    """Reads the hello of one client on one UDP flow, in the client's direction.

    `feed` takes datagrams as they come and returns None while more are needed, then the reading, and from
    there on the same reading. NOT_TLS: not QUIC. UNSUPPORTED: QUIC of another version. MALFORMED: an Initial
    that does not open, or opens to what is no hello. `opened` says that at least one packet was authentic.
    """

    def __init__(self, limit: int = DEFAULT_LIMIT, max_datagrams: int = MAX_DATAGRAMS) -> None:
        self.reading: HelloReading | None = None
        self.opened = False
        self._limit = limit
        self._max_datagrams = max_datagrams
        self._datagrams = 0
        self._keys: ClientKeys | None = None
        self._dcid = b""
        self._crypto = OrderedBytes(limit, _MAX_PIECES)

    @property
    def hello_bytes(self) -> bytes:
        """The handshake bytes so far: the same after a Retry, others for another connection."""
        return self._crypto.content

    def feed(self, datagram: bytes) -> HelloReading | None:
        """Take the next datagram of the client."""
        if self.reading is None:
            self._datagrams += 1
            self.reading = self._feed(datagram)
            if self.reading is None and self._datagrams >= self._max_datagrams:
                self.reading = stated(NameState.PARTIAL, f"no whole hello in {self._max_datagrams} datagrams")
        return self.reading

    def continues(self, datagram: bytes) -> bool:
        """Say whether a later datagram belongs to the connection whose hello was read: every Initial packet in it opens
        with that connection's keys and shows no byte of a hello that was not in it. So acknowledgements and
        retransmissions do, and another connection's hello does not, nor what is of a version that cannot be read."""
        version = version_of(datagram)
        if version is not None and not known(version):
            return False
        return all(self._shows_nothing_new(packet) for packet in initial_packets(datagram))

    def _shows_nothing_new(self, packet: InitialPacket) -> bool:
        frames = self._keys.open(packet) if self._keys is not None else None
        if frames is None:
            return False
        hello = self._crypto.content
        try:
            return all(data == hello[offset : offset + len(data)] for offset, data in crypto_frames(frames))
        except (IndexError, ValueError):
            return False

    def give_up(self, why: str) -> HelloReading:
        """End the wait (a time-out, the end of a capture): PARTIAL unless there is a reading already."""
        if self.reading is None:
            self.reading = stated(NameState.PARTIAL, why)
        return self.reading

    def _feed(self, datagram: bytes) -> HelloReading | None:
        version = version_of(datagram)
        if self._keys is None and version not in _SALTS:
            if version and plausible_version(version):
                return stated(NameState.UNSUPPORTED, f"QUIC of version 0x{version:08x}")
            return stated(NameState.NOT_TLS, "not a QUIC handshake")
        for packet in initial_packets(datagram):
            frames = self._open(packet)
            if frames is None:
                continue
            self.opened = True
            reading = self._frames(frames)
            if reading is not None:
                return reading
        if not self.opened and client_initial(datagram):
            return stated(NameState.MALFORMED, "the Initial packet does not open with its connection id's keys")
        return None  # a 0-RTT packet that overtook the Initial, or more to come

    def _open(self, packet: InitialPacket) -> bytes | None:
        if self._keys is not None:
            frames = self._keys.open(packet)
            # After the server's first packet the client uses the server's connection id with the same keys.
            if frames is not None or packet.dcid == self._dcid:
                return frames
        keys = ClientKeys(packet.version, packet.dcid)
        frames = keys.open(packet)
        if frames is not None:
            # The first packet, or the first after a Retry (RFC 9001 section 5.2): the CRYPTO stream starts
            # afresh.
            self._keys, self._dcid = keys, packet.dcid
            self._crypto = OrderedBytes(self._limit, _MAX_PIECES)
        return frames

    def _frames(self, frames: bytes) -> HelloReading | None:
        try:
            for offset, data in crypto_frames(frames):
                if offset + len(data) > self._limit:
                    return stated(NameState.PARTIAL, f"a hello of more than the bound of {self._limit} bytes")
                outcome, _ = self._crypto.insert(offset, data)
                if outcome is Outcome.CONFLICT:
                    return stated(NameState.MALFORMED, f"{self._crypto.reason} in the CRYPTO frames")
                if outcome is Outcome.FULL:
                    return stated(NameState.PARTIAL, f"CRYPTO frames with {self._crypto.reason}")
        except (IndexError, ValueError):
            return stated(NameState.MALFORMED, "an Initial packet with a frame that may not stand in it")
        return self._hello()

    def _hello(self) -> HelloReading | None:
        if self._crypto.next < 4:
            return None
        message = self._crypto.content
        if message[0] != CLIENT_HELLO:
            return parse_hello(message, quic=True)
        size = int.from_bytes(message[1:4], "big") + 4
        if size > self._limit:
            return stated(NameState.PARTIAL, f"a hello that claims {size} bytes, more than the bound of {self._limit}")
        return parse_hello(message[:size], quic=True) if len(message) >= size else None


def crypto_frames(frames: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, data) of the CRYPTO frames. ValueError or IndexError: a frame that no Initial may hold,
    or one that runs past the end (RFC 9000 sections 12.4 and 19)."""
    at = 0
    end = len(frames)
    while at < end:
        kind = frames[at]
        at += 1
        if kind in (_PADDING, _PING):
            continue
        if kind == _CRYPTO:
            offset, at = _varint(frames, at)
            length, at = _varint(frames, at)
            if at + length > end:
                raise ValueError("a CRYPTO frame runs past the packet")
            yield offset, frames[at : at + length]
            at += length
        elif kind in (_ACK, _ACK_ECN):
            at = _after_ack(frames, at, ecn=kind == _ACK_ECN)
        elif kind == _CLOSE:
            return
        else:
            raise ValueError(f"frame type {kind}")


def plausible_version(version: int) -> bool:
    """Say whether a number looks like a QUIC version that exists: any UDP datagram can have the long header's
    bit.

    Google's Q0xx and T0xx, IETF drafts, Facebook's mvfst, and the versions reserved to force negotiation (RFC
    9000 section 15).
    """
    raw = version.to_bytes(4, "big")
    google = raw[:1] in (b"Q", b"T") and raw[1:].isdigit()
    return google or raw[:3] in (b"\xff\0\0", b"\xfa\xce\xb0") or version & 0x0F0F0F0F == 0x0A0A0A0A


def client_initial(datagram: bytes) -> bool:
    """Say whether a datagram may start a client's handshake; cheap, for picking QUIC out of a capture."""
    version = version_of(datagram)
    if not version:
        return False
    if version in _SALTS:
        initial = datagram[0] >> 4 & 3 == _INITIAL_TYPE.get(version, 0)
        return initial and datagram[5] <= _MAX_CID
    # Google's versions before T051 pack both lengths into this byte: 0x50 is eight bytes and none.
    cid = _MIN_CLIENT_CID <= datagram[5] <= _MAX_CID or datagram[5] == 0x50
    return cid and len(datagram) >= _MIN_INITIAL_DATAGRAM and plausible_version(version)


def _after_ack(frames: bytes, at: int, *, ecn: bool) -> int:
    _, at = _varint(frames, at)
    _, at = _varint(frames, at)
    ranges, at = _varint(frames, at)
    if ranges > len(frames):
        raise ValueError("an ACK frame with more ranges than bytes")
    for _ in range(1 + 2 * ranges + (3 if ecn else 0)):
        _, at = _varint(frames, at)
    return at


def _cid(data: bytes, at: int) -> tuple[bytes, int]:
    length = data[at]
    end = at + 1 + length
    if length > _MAX_CID or end > len(data):
        raise IndexError("connection id")
    return data[at + 1 : end], end


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """RFC 9000 section 16."""
    first = data[at]
    size = 1 << (first >> 6)
    if at + size > len(data):
        raise IndexError("variable-length integer")
    return int.from_bytes(data[at : at + size], "big") & ((1 << (8 * size - 2)) - 1), at + size


def _packet_number(truncated: int, bits: int, expected: int) -> int:
    """RFC 9000 appendix A.3."""
    window = 1 << bits
    number = (expected & ~(window - 1)) | truncated
    if number + window // 2 <= expected:
        return number + window
    return number - window if number > expected + window // 2 and number >= window else number


def _expand_label(secret: bytes, label: bytes, length: int) -> bytes:
    """HKDF-Expand-Label with an empty context (RFC 8446 section 7.1); one block of SHA-256 is enough here."""
    full = b"tls13 " + label
    info = struct.pack("!HB", length, len(full)) + full + b"\0\x01"
    return hmac.digest(secret, info, "sha256")[:length]
