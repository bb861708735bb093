"""The first payload of a flow, as its held frames bring it: read, or more of it awaited. No IO."""

from __future__ import annotations

import struct
from collections import OrderedDict

from engine.config import Hold as HoldBounds
from engine.model.facts import NameState
from engine.protocols import packet as packets
from engine.protocols.http import HttpAssembler, Unread
from engine.protocols.packet import Packet
from engine.protocols.quic import InitialAssembler, version_of
from engine.protocols.records import HelloAssembler
from engine.protocols.stream import Outcome, StreamAssembler
from engine.protocols.tls import HelloReading, stated
from engine.runtime.flows import Flow, FlowId, Frame

_HANDSHAKES = 1024
"""QUIC connections whose later Initial packets are still recognised: a few round trips each."""
# struct virtio_net_hdr: gso_type and gso_size (linux/virtio_net.h).
_SEGMENTS = struct.Struct("<xBxxH")
_GSO_UDP, _ECN = 5, 0x80


class FirstPayload:
    """Puts what waits of each flow together. A reading is final; None: more of it is needed."""

    def __init__(self, bounds: HoldBounds) -> None:
        self._bounds = bounds
        self._handshakes: OrderedDict[FlowId, InitialAssembler] = OrderedDict()

    def segment(self, flow: Flow, packet: Packet, *, requests: bool) -> HelloReading | Outcome | None:
        """Take in a TCP segment; Outcome.DUPLICATE: it is there already. `requests`: the policy asks what an
        HTTP request says."""
        waiting = flow.waiting
        if waiting.stream is None or waiting.hello is None:
            waiting.stream = StreamAssembler(self._bounds.bytes, start=flow.start)
            waiting.hello = HelloAssembler(self._bounds.bytes)
        if packet.flags & packets.URG:
            # The server need not read an urgent byte where it stands (RFC 9293 section 3.8.5): a hello of two readings.
            return stated(NameState.MALFORMED, "urgent data in the first payload")
        # More than the bound can be no hello's: cut, so that what is none is still called so.
        payload = packet.payload[: self._bounds.bytes]
        push = waiting.stream.push(packet.seq, payload, syn=bool(packet.flags & packets.SYN))
        if push.outcome is Outcome.DUPLICATE:
            return push.outcome
        if push.outcome is Outcome.CONFLICT:
            return stated(NameState.MALFORMED, waiting.stream.reason)
        if push.outcome is Outcome.FULL:
            return stated(NameState.PARTIAL, waiting.stream.reason)
        reading: HelloReading | None = waiting.hello.feed(push.data)
        taken = waiting.hello.taken
        if requests and reading is not None and reading.name.state is NameState.NOT_TLS:
            # Its first bytes may have come before anybody knew that it is no hello.
            reading = self._request(flow, push.data if waiting.http else waiting.stream.content, reading)
            taken = waiting.http.taken if waiting.http is not None else taken
        began = waiting.stream.began
        flow.judged = None if began is None else (began + taken) & 0xFFFFFFFF
        return reading

    @staticmethod
    def _request(flow: Flow, data: bytes, otherwise: HelloReading) -> HelloReading | None:
        waiting = flow.waiting
        if waiting.http is None:
            waiting.http = HttpAssembler()
        request = waiting.http.feed(data)
        if isinstance(request, Unread):
            return stated(NameState.PARTIAL if request.partial else NameState.MALFORMED, request.why)
        flow.http = request
        return None if request is None else otherwise

    @staticmethod
    def read(flow: Flow) -> bytes:
        """Return the bytes of a stream before `flow.judged`."""
        stream = flow.waiting.stream
        if stream is None or stream.began is None or flow.judged is None:
            return b""
        return stream.content[: (flow.judged - stream.began) & 0xFFFFFFFF]

    def datagram(self, flow: Flow, frame: Frame, packet: Packet) -> HelloReading | None:
        """Take in the datagrams of a UDP packet."""
        waiting = flow.waiting
        if waiting.quic is None:
            waiting.quic = InitialAssembler(self._bounds.bytes)
        reading = None
        for datagram in datagrams(frame, packet):
            if reading is None:
                reading = waiting.quic.feed(datagram)
            elif not waiting.quic.continues(datagram):
                return stated(NameState.MALFORMED, "another QUIC connection begins behind the first, in one send")
        return reading

    @staticmethod
    def so_far(flow: Flow, why: str) -> HelloReading:
        """End the wait: what there is has to do."""
        waiting = flow.waiting
        reader = None if waiting.http else waiting.hello or waiting.quic
        return reader.give_up(why) if reader else stated(NameState.PARTIAL, why)

    def settle(self, flow: Flow) -> None:
        """Remember the QUIC connection that was read: its next Initial packets are to be told from another's."""
        if flow.waiting.quic is not None:
            self._handshakes[flow.id] = flow.waiting.quic
            if len(self._handshakes) > _HANDSHAKES:
                self._handshakes.popitem(last=False)

    def continues(self, flow: Flow, frame: Frame, packet: Packet) -> bool:
        """Say whether a UDP packet belongs to the connection by whose name its flow was decided."""
        handshake = self._handshakes.get(flow.id)
        return handshake is not None and all(map(handshake.continues, datagrams(frame, packet)))


def begins_nothing(frame: Frame, packet: Packet) -> bool:
    """Say whether no datagram of a UDP packet can begin a QUIC connection."""
    return all(version_of(datagram) is None for datagram in datagrams(frame, packet))


def datagrams(frame: Frame, packet: Packet) -> list[bytes]:
    """Return the UDP payloads of a packet: segmentation offload leaves several in one (udp(7), UDP_SEGMENT)."""
    kind, size = _SEGMENTS.unpack_from(frame.data)
    payload = packet.payload
    if kind & ~_ECN != _GSO_UDP or not size:
        return [payload]
    return [payload[at : at + size] for at in range(0, len(payload), size)]
