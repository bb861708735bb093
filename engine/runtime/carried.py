"""What streams carried when they were judged by it: whatever TCP sends again must be the same bytes.

The kernel sends from memory that a program may still write to (sendfile(2), splice(2), MSG_ZEROCOPY), and a machine
behind this host sends what it likes. A first copy that is lost on purpose must not be the one that is judged.
"""

from __future__ import annotations

from collections import OrderedDict

from engine.ports import Gate
from engine.protocols import packet as packets
from engine.protocols.packet import Packet
from engine.protocols.stream import distance
from engine.runtime.flows import Flow, FlowId, first_byte

KEPT_BYTES = 1 << 20
"""Of all flows together: two thousand hellos. Who judges more than that within the time in which a lost packet is sent
again is refused what is lost."""


class Carried:
    """What the engine judged by it keeps itself, the newest; what the gate judged by is in the gate's own map."""

    def __init__(self, gate: Gate, limit: int = KEPT_BYTES) -> None:
        self._gate = gate
        self._limit = limit
        self._kept: OrderedDict[FlowId, tuple[int, bytes]] = OrderedDict()
        self._bytes = 0

    def keep(self, flow: Flow, content: bytes) -> None:
        """Keep the bytes before `flow.judged`."""
        if flow.judged is None:
            return
        self.forget(flow)
        self._kept[flow.id] = ((flow.judged - len(content)) & 0xFFFFFFFF, content)
        self._bytes += len(content)
        while self._bytes > self._limit and len(self._kept) > 1:
            self._drop(next(iter(self._kept)))

    def forget(self, flow: Flow) -> None:
        self._drop(flow.id)

    def _drop(self, identity: FlowId) -> None:
        _, content = self._kept.pop(identity, (0, b""))
        self._bytes -= len(content)

    def contradiction(self, flow: Flow, packet: Packet) -> str:
        """Return what is wrong with a segment that brings again what its flow was judged by; empty: nothing."""
        kept = self._kept.get(flow.id) or self._of_gate(flow)
        if kept is None:
            return "what the verdict was read from is sent again, and is not known here any more"
        start, content = kept
        at = distance(first_byte(packet), start)
        payload = packet.payload
        first, end = max(at, 0), min(at + len(payload), len(content))
        if first < end and content[first:end] != payload[first - at : end - at]:
            return "what is sent again is not what the verdict was read from"
        if packet.flags & packets.URG:
            # The server need not read an urgent byte where it stands (RFC 9293 section 3.8.5).
            return "what the verdict was read from is sent again with urgent data"
        return ""

    def _of_gate(self, flow: Flow) -> tuple[int, bytes] | None:
        kept = self._gate.kept_hello(flow.held.cookie)
        if kept is None or kept.tuple != flow.tuple or kept.start != flow.start:
            return None
        return kept.start, kept.content
