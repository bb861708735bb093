"""TLS client hellos and QUIC Initials as an attempt wants them, rather than as a library makes them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from engine.protocols.quic import V1, ClientKeys

_SERVER_NAME, _GROUPS, _SIGNATURES, _VERSIONS, _KEY_SHARE, _ECH = 0, 10, 13, 43, 51, 0xFE0D
_INITIAL_BYTES = 1200
"""RFC 9000 section 14.1."""
_TAG_BYTES, _NUMBER_BYTES = 16, 2


def counted(data: bytes) -> bytes:
    return struct.pack("!H", len(data)) + data


def handshake(name: bytes, *, ech: bool = False) -> bytes:
    """Return a ClientHello message with this server name, which is its last extension."""
    listed = [
        (_GROUPS, counted(b"\x00\x1d")),
        (_SIGNATURES, counted(b"\x04\x03\x08\x04")),
        (_VERSIONS, b"\x02\x03\x04"),
        (_KEY_SHARE, counted(b"\x00\x1d" + counted(b"\x4b" * 32))),
    ]
    if ech:
        # RFC 9849 section 5: type outer, HKDF-SHA256 and AES-128-GCM, a config id, an encapsulated key, the secret.
        listed.append((_ECH, b"\0" + struct.pack("!HHB", 1, 1, 7) + counted(b"\x0e" * 32) + counted(b"\x0c" * 144)))
    listed.append((_SERVER_NAME, counted(b"\0" + counted(name))))
    extensions = b"".join(struct.pack("!H", kind) + counted(data) for kind, data in listed)
    body = b"\x03\x03" + b"\x7a" * 32 + b"\0" + counted(b"\x13\x01") + b"\x01\0" + counted(extensions)
    return b"\x01" + len(body).to_bytes(3, "big") + body


def record(content: bytes, kind: int = 22) -> bytes:
    return struct.pack("!BHH", kind, 0x0301, len(content)) + content


def client_hello(name: bytes, *, ech: bool = False) -> bytes:
    """Return a ClientHello in one record."""
    return record(handshake(name, ech=ech))


def crypto(offset: int, data: bytes) -> bytes:
    """Return a CRYPTO frame."""
    return b"\x06" + _varint(offset) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 64 else (0x4000 | value).to_bytes(2, "big")


def initial(frames: bytes, dcid: bytes, *, number: int = 0, token: bytes = b"", version: int = V1) -> bytes:
    """Return a datagram with one Initial packet of QUIC version 1 or a draft, sealed as a client does it (RFC 9001).

    `token` goes unencrypted: it is how a witness that has no keys recognises the packet.
    """
    keys = ClientKeys(version, dcid)
    head = b"\xc1" + version.to_bytes(4, "big") + bytes([len(dcid)]) + dcid + b"\0" + _varint(len(token)) + token
    room = _INITIAL_BYTES - len(head) - 2 - _NUMBER_BYTES - _TAG_BYTES
    frames += bytes(max(0, room - len(frames)))
    head += (0x4000 | (_NUMBER_BYTES + len(frames) + _TAG_BYTES)).to_bytes(2, "big")
    packet_number = number.to_bytes(_NUMBER_BYTES, "big")
    nonce = bytes(a ^ b for a, b in zip(keys.iv, number.to_bytes(12, "big"), strict=True))
    sealed = AESGCM(keys.key).encrypt(nonce, frames, head + packet_number)
    mask = Cipher(algorithms.AES(keys.hp), modes.ECB()).encryptor().update(sealed[2:18])  # noqa: S305 - RFC 9001
    hidden = bytes(a ^ b for a, b in zip(packet_number, mask[1:], strict=False))
    return bytes([head[0] ^ mask[0] & 0x0F]) + head[1:] + hidden + sealed


def scrambled(message: bytes, dcid: bytes, token: bytes, pieces: Sequence[int]) -> list[bytes]:
    """Return two datagrams with a hello in CRYPTO frames cut at `pieces`, the odd ones in the first, last one first."""
    edges = [0, *pieces, len(message)]
    frames = [crypto(a, message[a:b]) for a, b in pairwise(edges)]
    return [
        initial(b"".join(reversed(frames[at::2])), dcid, number=number, token=token) for number, at in enumerate((1, 0))
    ]
