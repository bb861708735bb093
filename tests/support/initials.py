"""Seals QUIC Initial packets the way a client does (RFC 9001 section 5.3 and 5.4)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from engine.protocols.quic import V1, V2, ClientKeys

DCID = bytes.fromhex("8394c8f03e515708")


def crypto(offset: int, data: bytes) -> bytes:
    return b"\x06" + varint(offset) + varint(len(data)) + data


def varint(value: int) -> bytes:
    if value < 64:
        return bytes([value])
    return (0x4000 | value).to_bytes(2, "big") if value < 16_384 else (0x8000_0000 | value).to_bytes(4, "big")


def initial(
    frames: bytes,
    *,
    version: int = V1,
    dcid: bytes = DCID,
    keys_from: bytes | None = None,
    scid: bytes = b"",
    token: bytes = b"",
    number: int = 0,
    size: int = 1200,
    greased: bool = False,
) -> bytes:
    """Return one sealed Initial packet, padded to `size` bytes. `keys_from` is the connection id that the
    keys come from, where it is not the packet's own (from the client's second flight on). `greased`: without
    the QUIC bit (RFC 9287)."""
    keys = ClientKeys(version, dcid if keys_from is None else keys_from)
    first_byte = (0x81 if greased else 0xC1) | (0x10 if version == V2 else 0)
    head = bytes([first_byte]) + version.to_bytes(4, "big")
    head += bytes([len(dcid)]) + dcid + bytes([len(scid)]) + scid + varint(len(token)) + token
    frames += bytes(max(0, size - len(head) - 4 - 16 - len(frames)))
    head += (0x4000 | (2 + len(frames) + 16)).to_bytes(2, "big")
    packet_number = (number & 0xFFFF).to_bytes(2, "big")
    nonce = bytes(a ^ b for a, b in zip(keys.iv, number.to_bytes(12, "big"), strict=True))
    sealed = AESGCM(keys.key).encrypt(nonce, frames, head + packet_number)
    sample = sealed[2:18]
    mask = Cipher(algorithms.AES(keys.hp), modes.ECB()).encryptor().update(sample)  # noqa: S305
    first = bytes([head[0] ^ mask[0] & 0x0F])
    hidden = bytes(a ^ b for a, b in zip(packet_number, mask[1:], strict=False))
    return first + head[1:] + hidden + sealed


def flight(message: bytes, cuts: Sequence[int] = (), *, version: int = V1, dcid: bytes = DCID) -> list[bytes]:
    """Return a client's datagrams with one hello, cut at these offsets, one datagram a piece."""
    edges = [0, *sorted(cuts), len(message)]
    return [
        initial(crypto(a, message[a:b]), version=version, dcid=dcid, number=index)
        for index, (a, b) in enumerate(pairwise(edges))
    ]
