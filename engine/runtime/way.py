"""The way on for held frames: released to where they were going, or answered with a refusal."""

from __future__ import annotations

import time

from engine.abi.numbers import FlowFlag, Hook, IcmpKind, KernelVerdict, OpenedBy
from engine.abi.records import InboundFlow
from engine.ports import Cutter, Gate, Releaser
from engine.protocols import packet as packets
from engine.protocols.packet import Packet
from engine.protocols.refusal import abort, refuse
from engine.runtime.flows import Flow, Frame
from engine.runtime.identify import Identifier

VNET_BYTES = 10
_NO_OFFLOAD = bytes(VNET_BYTES)
_ICMP = frozenset({1, 58})
_QUERIES = {1: (b"\x08", b"\x0d"), 58: (b"\x80",)}
_ANSWER_NS = 180 * 10**9
"""ANSWER_NS of bpf/gate.c: how long what comes in is taken for the answer to a datagram."""


class Way:
    """`judges_inbound` of the generation in force decides whether answers must be told from first packets."""

    def __init__(self, gate: Gate, releaser: Releaser, cutter: Cutter, identifier: Identifier) -> None:
        self._gate = gate
        self._releaser = releaser
        self._cutter = cutter
        self._identifier = identifier

    def release(self, flow: Flow, frame: Frame) -> None:
        if flow.held.flags & FlowFlag.CLONED:
            return  # the original has passed
        if frame.hook == Hook.INGRESS:
            self._releaser.deliver(frame.ifindex, frame.data)
        else:
            self._releaser.release(self._identifier.interface(frame.ifindex), frame.data)

    def expect_answers(self, flow: Flow, frames: list[Frame]) -> None:
        """Let the gate know that this flow's datagrams leave from here: what comes back is their answer."""
        until = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + _ANSWER_NS
        key = flow.tuple.reversed()
        if key.transport in _ICMP:
            if not any(map(_asks, frames)):
                return
            key = key._replace(dport=IcmpKind.ANSWER_IN)
        self._gate.put_inbound(key, InboundFlow(KernelVerdict.NONE, OpenedBy.HERE, expires=until))

    def refuse(self, frame: Frame) -> bool:
        """Tell the sender of a frame at once that it is refused: by a reset, or an ICMP error. False where nobody may
        be told."""
        packet = packets.parse(frame.data[VNET_BYTES:])
        answer = refuse(packet) if isinstance(packet, Packet) else None
        if answer is None:
            return False
        return self._back(frame, answer)

    def _back(self, frame: Frame, answer: bytes) -> bool:
        """Send a frame where the held one came from."""
        if frame.hook == Hook.EGRESS:
            return self._releaser.deliver(frame.ifindex, _NO_OFFLOAD + answer)
        return self._releaser.release(self._identifier.interface(frame.ifindex), _NO_OFFLOAD + answer)

    def cut(self, flow: Flow, frames: list[Frame]) -> bool:
        """End a refused flow in progress, so that both ends hear of it: by its socket where that is to be had, else by
        resets to both ends of one of its segments."""
        if flow.inbound:
            if flow.tuple.transport == packets.TCP and self._cutter.destroy_peer(flow.tuple):
                return True
        elif self._cutter.destroy(flow.tuple, flow.held.cookie, flow.held.identity.tgid):
            return True
        return bool(frames) and self._reset(frames[-1])

    def _reset(self, frame: Frame) -> bool:
        packet = packets.parse(frame.data[VNET_BYTES:])
        if not isinstance(packet, Packet) or packet.protocol != packets.TCP or not packet.flags & packets.ACK:
            return False
        onward = abort(packet)
        if onward is not None:
            hook = Hook.EGRESS if frame.hook == Hook.INGRESS else Hook.INGRESS
            self._back(frame._replace(hook=hook), onward)
        return self.refuse(frame)


def _asks(frame: Frame) -> bool:
    """Is it an ICMP query (RFC 792, RFC 4443 section 4.1)? Only those are answered."""
    packet = packets.parse(frame.data[VNET_BYTES:])
    return isinstance(packet, Packet) and packet.payload[:1] in _QUERIES[packet.protocol]
