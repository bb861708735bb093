"""IP reassembly for captures (RFC 791 section 3.2, RFC 8200 section 4.5).

The hold path does not use it: a fragment there is a stated reason of its own. Overlapping fragments are
refused as a whole for both versions (RFC 5722; RFC 1858 shows what the overlap is for).
"""

from __future__ import annotations

from collections import OrderedDict

from engine.protocols.packet import Fragment, Parsed, Refusal, reassembled

_MAX_LENGTH = 65_535
_Key = tuple[int, bytes, bytes, int, int]


class _Pieces:
    __slots__ = ("bad", "first", "have", "parts", "total")

    def __init__(self) -> None:
        self.parts: dict[int, bytes] = {}
        self.have = 0
        self.total = -1
        self.first: Fragment | None = None
        self.bad = False


class Defragmenter:
    """Puts fragments of one capture together. At most `capacity` packets are under way; the oldest goes
    first."""

    def __init__(self, capacity: int = 1024) -> None:
        self._capacity = capacity
        self._pending: OrderedDict[_Key, _Pieces] = OrderedDict()
        self.refused = 0
        """Packets given up: overlaps, lengths that contradict each other, or no room."""

    def add(self, fragment: Fragment, *, tunnels: bool = False) -> Parsed | None:
        """Take a fragment; return the whole packet once it is there, None before, a Refusal for a bad one."""
        # RFC 8200 leaves the protocol out of the key; IPv4 has it in.
        protocol = fragment.protocol if fragment.version == 4 else 0
        key = (fragment.version, fragment.source_key, fragment.dest_key, fragment.ident, protocol)
        pieces = self._pending.get(key)
        if pieces is None:
            if len(self._pending) >= self._capacity:
                self._pending.popitem(last=False)
                self.refused += 1
            pieces = self._pending[key] = _Pieces()
        if pieces.bad:
            return Refusal.MALFORMED
        if not _place(pieces, fragment):
            # The entry stays, marked: pieces that follow may not start the packet afresh.
            pieces.bad = True
            pieces.parts.clear()
            self.refused += 1
            return Refusal.MALFORMED
        if pieces.have != pieces.total or pieces.first is None:
            return None
        del self._pending[key]
        data = b"".join(pieces.parts[offset] for offset in sorted(pieces.parts))
        return reassembled(pieces.first, data, tunnels=tunnels)


def _place(pieces: _Pieces, fragment: Fragment) -> bool:
    offset, data = fragment.offset, fragment.data
    end = offset + len(data)
    if end > _MAX_LENGTH or not data or (fragment.more and len(data) % 8):
        return False
    if pieces.parts.get(offset) == data:
        return True  # a plain duplicate: the capture saw the packet on two interfaces
    if any(offset < start + len(part) and start < end for start, part in pieces.parts.items()):
        return False
    if not fragment.more:
        if pieces.total >= 0:
            return False
        pieces.total = end
    if 0 <= pieces.total < end or (pieces.total >= 0 and any(start >= pieces.total for start in pieces.parts)):
        return False
    if offset == 0:
        pieces.first = fragment
    pieces.parts[offset] = data
    pieces.have += len(data)
    return True
