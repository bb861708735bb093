"""The tag that the stack takes off a held frame is put back where it was."""

from __future__ import annotations

import struct

from engine.kernel.hold import VNET_BYTES, _tagged
from tests.support import captures as build

PLAIN = build.tcp_frame(b"payload")
VNET = struct.Struct("<BBHHHH")


def test_the_frame_is_what_left_the_gate() -> None:
    frame = _tagged(bytes(VNET_BYTES) + PLAIN, 0x2005, 0x88A8)
    assert frame[VNET_BYTES:] == PLAIN[:12] + b"\x88\xa8\x20\x05" + PLAIN[12:]
    assert frame[:VNET_BYTES] == bytes(VNET_BYTES)


def test_offload_offsets_move_with_the_headers() -> None:
    """A checksum at its old place would be written into the payload's neighbour: the peer drops the packet."""
    offload = VNET.pack(1, 1, 54, 1448, 34, 16)
    assert VNET.unpack_from(_tagged(offload + PLAIN, 5, 0x8100)) == (1, 1, 58, 1448, 38, 16)
