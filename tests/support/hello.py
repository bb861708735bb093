"""Builds TLS client hellos, good and bad."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise

SERVER_NAME, GROUPS, SIGNATURES, ALPN, PADDING, VERSIONS, KEY_SHARE, ECH = 0, 10, 13, 16, 21, 43, 51, 0xFE0D
X25519, X25519MLKEM768 = 0x001D, 0x11EC
CIPHERS = (0x1301, 0x1302, 0x1303, 0xC02B, 0xC02F, 0xC02C, 0xC030)
SCHEMES = (0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501)
_POST_QUANTUM = 1_700
"""From this size on a hello gets the key share that makes real ones so large: 1,216 bytes of
X25519MLKEM768."""


def client_hello(
    name: str | bytes | None,
    *,
    alpn: Sequence[str | bytes] = (),
    versions: Sequence[int] = (0x0304, 0x0303),
    size: int | None = None,
    extensions: Sequence[tuple[int, bytes]] = (),
    ciphers: Sequence[int] = CIPHERS,
    ech: bool = False,
    records: int = 1,
) -> bytes:
    """Return the bytes that a client writes to its TCP socket: one hello in `records` TLS records.

    `name` goes out as it is, None leaves server_name out. `extensions` are (type, data), added behind the
    others. `size` is the total length, record headers included, reached with a padding extension; from 1,700
    on with a post-quantum key share too. ValueError when the hello is too large for it.
    """
    room = None if size is None else size - 5 * records
    message = handshake(name, alpn=alpn, versions=versions, size=room, extensions=extensions, ciphers=ciphers, ech=ech)
    return in_records(message, records)


def handshake(
    name: str | bytes | None,
    *,
    alpn: Sequence[str | bytes] = (),
    versions: Sequence[int] = (0x0304, 0x0303),
    size: int | None = None,
    extensions: Sequence[tuple[int, bytes]] = (),
    ciphers: Sequence[int] = CIPHERS,
    ech: bool = False,
) -> bytes:
    """Return the ClientHello message alone, as QUIC carries it; `size` is its total length."""
    listed: list[tuple[int, bytes]] = []
    if name is not None:
        listed.append((SERVER_NAME, server_names(name)))
    listed.append((GROUPS, counted(numbers((X25519,)))))
    listed.append((SIGNATURES, counted(numbers(SCHEMES))))
    if alpn:
        listed.append((ALPN, counted(b"".join(bytes([len(one)]) + one for one in map(_raw, alpn)))))
    if versions:
        listed.append((VERSIONS, bytes([2 * len(versions)]) + numbers(versions)))
    group, length = (X25519MLKEM768, 1216) if size and size >= _POST_QUANTUM else (X25519, 32)
    listed.append((KEY_SHARE, counted(struct.pack("!HH", group, length) + b"\x4b" * length)))
    if ech:
        listed.append((ECH, b"\0" + struct.pack("!HHB", 1, 1, 7) + counted(b"\x0e" * 32) + counted(b"\x0c" * 144)))
    listed.extend(extensions)
    if size is not None:
        spare = size - len(message(listed, ciphers)) - 4
        if spare < 0:
            raise ValueError(f"the hello is {-spare} bytes too large for {size}")
        listed.append((PADDING, bytes(spare)))
    return message(listed, ciphers)


def message(
    extensions: Sequence[tuple[int, bytes]] | None,
    ciphers: Sequence[int] = CIPHERS,
    *,
    version: int = 0x0303,
    session_id: bytes = b"\x5e" * 32,
) -> bytes:
    """Return a ClientHello of exactly these extensions; None leaves the list out, as old clients do."""
    body = struct.pack("!H", version) + b"\x7a" * 32 + bytes([len(session_id)]) + session_id
    body += counted(numbers(ciphers)) + b"\x01\x00"
    if extensions is not None:
        body += counted(b"".join(struct.pack("!H", kind) + counted(data) for kind, data in extensions))
    return b"\x01" + len(body).to_bytes(3, "big") + body


def server_names(*names: str | bytes) -> bytes:
    """Return a server_name list."""
    return counted(b"".join(b"\0" + counted(one) for one in map(_raw, names)))


def in_records(content: bytes, records: int = 1, *, version: int = 0x0301) -> bytes:
    """Cut handshake bytes into this many TLS records, as even as can be."""
    cuts = [len(content) * index // records for index in range(records + 1)]
    return b"".join(record(content[a:b], version=version) for a, b in pairwise(cuts))


def record(content: bytes, *, kind: int = 22, version: int = 0x0301) -> bytes:
    return struct.pack("!BHH", kind, version, len(content)) + content


def counted(data: bytes) -> bytes:
    """Return data behind its length in two bytes."""
    return struct.pack("!H", len(data)) + data


def numbers(values: Sequence[int]) -> bytes:
    return struct.pack(f"!{len(values)}H", *values)


def _raw(text: str | bytes) -> bytes:
    return text.encode("ascii") if isinstance(text, str) else text
