"""How far a decision may reach in the kernel: from its scope to map keys. No IO.

A verdict never reaches further than the facts it was decided from. Every fact of the scope must be held by the key one
to one; a scope that does not fit a key becomes the flow's alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from engine.abi.numbers import NAME_MAX_KERNEL, FlowFlag, KernelVerdict, Shape
from engine.abi.records import ConnectKey, FlowKey, Tuple
from engine.model.decision import Decision, Stage, Verdict
from engine.model.facts import FLOW_FACTS, Event, Facts, NameState
from engine.model.name import reversed_key
from engine.protocols import packet as packets
from engine.runtime.flows import Flow

KERNEL_VERDICTS = {
    Verdict.ALLOW: KernelVerdict.ALLOW,
    Verdict.DENY: KernelVerdict.DENY,
    Verdict.REJECT: KernelVerdict.REJECT,
    Verdict.UNDECIDED: KernelVerdict.UNDECIDED,
}
# Plain numbers: arithmetic on enumerations is Python code, and a held packet waits for it.
_DEST, _EXE, _CGROUP, _USER = int(Shape.DEST), int(Shape.EXE), int(Shape.CGROUP), int(Shape.USER)
_INBOUND = int(Shape.INBOUND)
_NO_STORAGE = int(FlowFlag.NO_STORAGE)
_NO_ADDRESS = bytes(16)
_SHAPES = (("dest", _DEST), ("exe", _EXE), ("cgroup", _CGROUP), ("user", _USER))


@dataclass(frozen=True, slots=True)
class Numbers:
    """A flow's facts as kernel keys hold them. `exe` 0: unknown; `known`: the socket has storage."""

    flow: Tuple
    cgroup: int
    exe: int
    uid: int
    known: bool
    inbound: bool = False
    """Opened from outside: `flow` is the tuple of what comes in."""


class InboundPlace(NamedTuple):
    """Where the verdict of a flow stands that was opened from outside. `tuple`: of the packets that come in; `start`:
    sequence number of a TCP stream's first byte; `judged`: behind what was read of it, where that decided it."""

    tuple: Tuple
    start: int
    judged: int


class OutboundPlace(NamedTuple):
    """Where the verdict of a flow stands that was opened from here. `judged`: sequence number behind what was read of a
    TCP stream, where that decided it."""

    key: FlowKey
    judged: int | None = None


@dataclass(frozen=True, slots=True)
class Reach:
    """Where a decision may stand besides the flow itself.

    `key`: the facts of a connect verdict or of a name's class; None: the flow alone. `name`: reversed name key with
    its terminator for a name verdict, empty for a connect verdict.
    """

    key: ConnectKey | None
    name: bytes = b""


FLOW_ONLY = Reach(None)


def numbers(flow: Flow) -> Numbers:
    """Return a flow's facts as kernel keys hold them."""
    identity = flow.held.identity
    if flow.inbound:
        # The gate does not know who listens: a verdict that depends on it is the flow's alone.
        return Numbers(flow.tuple, 0, 0, 0, known=False, inbound=True)
    return Numbers(flow.tuple, identity.cgroup, flow.exe, identity.uid, identity.tgid != 0)


def place(flow: Flow, generation: int) -> OutboundPlace | InboundPlace:
    """Return where the gate looks a flow's own verdict up.

    For datagrams with the executable that is known by now, not with the one that the gate knew when it held: under 0
    the verdict would serve every other program on a shared socket that nobody has looked up yet.
    """
    if flow.inbound:
        start = flow.start or 0
        return InboundPlace(flow.tuple, start, start if flow.judged is None or not flow.by_payload else flow.judged)
    part = flow.held.part if flow.tuple.transport == packets.TCP else flow.exe or flow.held.part
    key = FlowKey(flow.tuple, generation, part, flow.held.cookie)
    # A socket's storage remembers from one generation to the next how far its stream was read. Of a stream without,
    # nobody knows then how far it has come, and its numbers may have come round.
    known = flow.by_payload and (flow.generation == generation or not flow.held.flags & _NO_STORAGE)
    return OutboundPlace(key, flow.judged if known else None)


def reach(decision: Decision, facts: Facts, stage: Stage, numbers: Numbers, generation: int) -> Reach:
    """Return how far the decision may be kept."""
    scope = set(decision.scope)
    if decision.failed or decision.ttl == 0 or scope & FLOW_FACTS or facts.event is Event.LATE:
        return FLOW_ONLY
    if "event" in scope:
        # Which event it is, is a function of the transport.
        scope.add("dest")
    if stage is Stage.CONNECT and decision.verdict is Verdict.REJECT:
        # Datagrams are judged with their payload at once, and there a deny may come before this reject.
        scope.add("dest")
    shape = 0
    for fact, bit in _SHAPES:
        if fact in scope:
            shape |= bit
    if shape & ~_DEST and not numbers.known:
        return FLOW_ONLY
    # What could not be looked up was judged as unknown: once it is known, the policy may say otherwise.
    if shape & _EXE and (not numbers.exe or not facts.exe.path):
        return FLOW_ONLY
    if shape & _CGROUP and not facts.cgroup.path:
        return FLOW_ONLY
    key = ConnectKey(
        generation,
        shape | _INBOUND if numbers.inbound else shape,
        transport=numbers.flow.transport if shape & _DEST else 0,
        port=numbers.flow.dport if shape & _DEST else 0,
        address=numbers.flow.dst if shape & _DEST else _NO_ADDRESS,
        cgroup=numbers.cgroup if shape & _CGROUP else 0,
        exe=numbers.exe if shape & _EXE else 0,
        uid=numbers.uid if shape & _USER else 0,
    )
    if "name" not in scope:
        if stage is Stage.PAYLOAD and "event" in decision.scope and facts.event is Event.PAYLOAD:
            # At connect the same rules see another event.
            return FLOW_ONLY
        return Reach(key)
    name = facts.name
    if numbers.inbound:
        return FLOW_ONLY  # the gate reads no names in what comes in
    if facts.event is not Event.PAYLOAD or name.state is not NameState.COMPLETE or name.ech:
        return FLOW_ONLY
    if len(name.value) > NAME_MAX_KERNEL:
        return FLOW_ONLY
    return Reach(key, reversed_key(name.value) + b"\0")
