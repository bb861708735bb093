"""How far a decision may reach in the kernel: from its scope to map keys. No IO.

A verdict never reaches further than the facts it was decided from. Every fact of the scope must be held by the key one
to one; a scope that does not fit a key becomes the flow's alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from engine.abi.numbers import NAME_MAX_KERNEL, KernelVerdict, Shape
from engine.abi.records import ConnectKey, Tuple
from engine.model.decision import Decision, Stage, Verdict
from engine.model.facts import FLOW_FACTS, Event, Facts, NameState
from engine.model.name import reversed_key

KERNEL_VERDICTS = {
    Verdict.ALLOW: KernelVerdict.ALLOW,
    Verdict.DENY: KernelVerdict.DENY,
    Verdict.REJECT: KernelVerdict.REJECT,
    Verdict.UNDECIDED: KernelVerdict.UNDECIDED,
}
_SHAPES = {"dest": Shape.DEST, "exe": Shape.EXE, "cgroup": Shape.CGROUP, "user": Shape.USER}


@dataclass(frozen=True)
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
    sequence number of a TCP stream's first byte."""

    tuple: Tuple
    start: int


@dataclass(frozen=True)
class Reach:
    """Where a decision may stand besides the flow itself.

    `key`: the facts of a connect verdict or of a name's class; None: the flow alone. `name`: reversed name key with
    its terminator for a name verdict, empty for a connect verdict.
    """

    key: ConnectKey | None
    name: bytes = b""


FLOW_ONLY = Reach(None)


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
    shape = Shape(0)
    for fact, bit in _SHAPES.items():
        if fact in scope:
            shape |= bit
    if shape & ~Shape.DEST and not numbers.known:
        return FLOW_ONLY
    # What could not be looked up was judged as unknown: once it is known, the policy may say otherwise.
    if shape & Shape.EXE and (not numbers.exe or not facts.exe.path):
        return FLOW_ONLY
    if shape & Shape.CGROUP and not facts.cgroup.path:
        return FLOW_ONLY
    key = ConnectKey(
        generation,
        int(shape | (Shape.INBOUND if numbers.inbound else Shape(0))),
        transport=numbers.flow.transport if shape & Shape.DEST else 0,
        port=numbers.flow.dport if shape & Shape.DEST else 0,
        address=numbers.flow.dst if shape & Shape.DEST else bytes(16),
        cgroup=numbers.cgroup if shape & Shape.CGROUP else 0,
        exe=numbers.exe if shape & Shape.EXE else 0,
        uid=numbers.uid if shape & Shape.USER else 0,
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
