"""A generation: one policy version with its judge, and the kernel entries that were installed for it.

Every entry has a number of its own. The kernel hands that number back with each event and each held packet, so the
engine knows which decision a flow passed by, and for which name, without the kernel having to say it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.abi.numbers import PLANS, SHAPES_MAX, FlowFlag, KernelVerdict, NameClass, OpenedBy, Shape
from engine.abi.records import ConnectKey, InboundFlow, NameKey, Plan, VerdictEntry
from engine.model import net
from engine.model.decision import Decision, Reason
from engine.model.facts import PAYLOAD_FACTS, Name, NameState
from engine.policy.judge import Judge
from engine.policy.prepare import Policy
from engine.ports import Gate, MapFullError
from engine.runtime.entries import FLOW_ONLY, KERNEL_VERDICTS, InboundPlace, OutboundPlace, Reach
from engine.runtime.identity import ExeRecord

_NARROW = 1 << 15
_RESTORED = (Reason("restored", "decided before the engine was restarted"),)


@dataclass(frozen=True, slots=True)
class Installed:
    """What an entry's number stands for. `expires`: CLOCK_MONOTONIC ns, 0 never. `where`: the entry beyond its flow."""

    verdict: KernelVerdict
    reasons: tuple[Reason, ...]
    name: Name
    expires: int = 0
    where: Reach = FLOW_ONLY
    by_name: int = 0


@dataclass
class Numbering:
    """Numbers that are never given twice while a pinned map may hold them."""

    entry: int = 1
    name_class: int = int(NameClass.FIRST_FREE)

    def next_entry(self) -> int:
        self.entry += 1
        return self.entry

    def next_class(self) -> int:
        self.name_class += 1
        return self.name_class


class Force:
    """One generation in force, or about to be. `on_full` hears of each entry that found no room."""

    def __init__(
        self, number: int, policy: Policy, judge: Judge, gate: Gate, numbering: Numbering,
        on_full: Callable[[MapFullError], None],
    ) -> None:  # fmt: skip
        self.number = number
        self.policy = policy
        self.judge = judge
        self.numbering = numbering
        self._gate = gate
        self._on_full = on_full
        self._wide: dict[int, Installed] = {}
        self._narrow: OrderedDict[int, Installed] = OrderedDict()
        """Entries of one flow alone: as many as the kernel may still refer to."""
        self._standing: dict[Reach, int] = {}
        self._classes: dict[ConnectKey, int] = {}
        self._keys: dict[ConnectKey, ConnectKey] = {}
        """Of each class its one key: the entries of a thousand names hold no thousand equal ones."""
        self._connect_shapes: tuple[int, ...] = ()
        self._name_shapes: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self._wide)

    @property
    def judges_inbound(self) -> bool:
        """Does this policy say what is to become of what comes in?"""
        return self.policy.inbound is not None

    def entry(self, number: int) -> Installed | None:
        """Return what an entry's number stands for; None when it is not of this generation, or long gone."""
        return self._wide.get(number) or self._narrow.get(number)

    def begin(self) -> None:
        """Write the plan: before the generation number, so that the gate never meets a number without one."""
        self._gate.set_plan(Plan(self.number, self._connect_shapes, self._name_shapes, self.judges_inbound))

    def install(
        self,
        decision: Decision,
        where: Reach,
        flow: OutboundPlace | InboundPlace,
        name: Name,
        *,
        flow_verdict: KernelVerdict | None = None,
    ) -> int:
        """Put a decision into the kernel: for its flow always, and as far as `where` allows. Return its number.

        `flow_verdict`: what the flow itself is given instead of the decision's verdict.
        """
        number = self.numbering.next_entry()
        expires = 0
        if decision.ttl:
            expires = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + int(decision.ttl * 1e9)
        verdict = KERNEL_VERDICTS[decision.verdict]
        entry = VerdictEntry(verdict, number, expires, int(bool(decision.scope & PAYLOAD_FACTS)))
        # The wide entry first: should the flow's own be evicted at once, the next packet still finds this one.
        if where.key is not None and self._install_wide(where.key, where, entry):
            if where.name:
                where = Reach(self._keys[where.key], where.name)
            self._wide[number] = Installed(verdict, decision.reasons, name, expires, where, entry.by_name)
            self._wide.pop(self._standing.get(where, 0), None)
            self._standing[where] = number
        else:
            self._narrow[number] = Installed(verdict, decision.reasons, name, expires, where, entry.by_name)
            if len(self._narrow) > _NARROW:
                self._narrow.popitem(last=False)
        self._put_flow(flow, entry if flow_verdict is None else entry._replace(verdict=flow_verdict))
        return number

    def repeat(self, number: int, flow: OutboundPlace | InboundPlace) -> None:
        """Write an entry for its flow once more, for the time that it has left."""
        entry = self.entry(number)
        if entry is not None:
            self._put_flow(flow, VerdictEntry(entry.verdict, number, entry.expires, entry.by_name))

    def _put_flow(self, flow: OutboundPlace | InboundPlace, entry: VerdictEntry) -> None:
        try:
            if isinstance(flow, OutboundPlace):
                judged = flow.judged if entry.verdict == KernelVerdict.ALLOW else None
                self._gate.put_flow(flow.key, entry._replace(judged=judged))
                return
            passed = FlowFlag.PAYLOAD_PASSED if entry.verdict == KernelVerdict.ALLOW else FlowFlag(0)
            self._gate.put_inbound(
                flow.tuple,
                InboundFlow(
                    entry.verdict,
                    OpenedBy.OUTSIDE,
                    self.number,
                    entry.id,
                    flow.start,
                    int(passed),
                    entry.expires,
                    entry.by_name,
                    flow.judged,
                ),
            )
        except MapFullError as error:
            self._on_full(error)

    def _install_wide(self, key: ConnectKey, where: Reach, entry: VerdictEntry) -> bool:
        try:
            return self._put_wide(key, where, entry)
        except MapFullError as error:
            # The flow's own entry is written all the same: it is decided, and only those like it will be asked about.
            self._on_full(error)
            return False

    def _put_wide(self, key: ConnectKey, where: Reach, entry: VerdictEntry) -> bool:
        if not self._plan_shape(key.shape, named=bool(where.name)):
            return False
        if not where.name:
            self._gate.put_connect(key, entry)
            return True
        number = self._classes.get(key)
        if number is None:
            number = self.numbering.next_class()
            self._gate.put_class(key, number)
            self._classes[key] = number
            self._keys[key] = key
        self._gate.put_name(NameKey(number, where.name), entry)
        return True

    def _plan_shape(self, shape: int, *, named: bool) -> bool:
        """Make sure that the gate looks this shape up. False when its list is full: the flow alone then.

        The plan is written in place: its shapes only say where to look, and what is found there is right whatever
        half of the list a program reads meanwhile.
        """
        shapes = self._name_shapes if named else self._connect_shapes
        if shape in shapes:
            return True
        if len(shapes) >= SHAPES_MAX:
            return False
        # Narrow first: entries cannot disagree, but the narrow one was decided by more of the facts.
        shapes = tuple(sorted((*shapes, shape), key=lambda bits: -bits.bit_count()))
        if named:
            self._name_shapes = shapes
        else:
            self._connect_shapes = shapes
        self.begin()
        return True

    def restore(self) -> int:
        """Read back what an engine before this one installed for this generation. Return how many entries."""
        plan = self._gate.plan(self.number)
        if plan.generation == self.number:
            self._connect_shapes, self._name_shapes = plan.connect_shapes, plan.name_shapes
        self._classes = {key: number for key, number in self._gate.class_entries() if key.generation == self.number}
        self._keys = {key: key for key in self._classes}
        of_class = {number: key for key, number in self._classes.items()}
        for key, entry in self._gate.connect_entries():
            if key.generation == self.number:
                self._restored(entry, Name(), Reach(key))
        for name_key, entry in self._gate.name_entries():
            if name_key.name_class in of_class:
                value = name_key.reversed_name.rstrip(b"\0")[::-1].decode("ascii", "replace")
                where = Reach(of_class[name_key.name_class], name_key.reversed_name)
                self._restored(entry, Name(value, NameState.COMPLETE), where)
        return len(self._wide)

    def _restored(self, entry: VerdictEntry, name: Name, where: Reach) -> None:
        verdict = KernelVerdict(entry.verdict)
        self._wide[entry.id] = Installed(verdict, _RESTORED, name, entry.expires, where, entry.by_name)
        self._standing[where] = entry.id

    def listing(self, executable: Callable[[int], ExeRecord | None]) -> list[dict[str, Any]]:
        """Return the entries that stand, for a person: verdict, the facts that it is kept under, reasons."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        listed = []
        for number, entry in self._wide.items():
            key = entry.where.key
            if key is None or (entry.expires and entry.expires <= now):
                continue
            facts: dict[str, Any] = {"direction": "ingress"} if key.shape & Shape.INBOUND else {}
            if key.shape & Shape.DEST:
                facts["dest"] = str(net.from_key(key.address))
                facts["port"] = key.port
            if key.shape & Shape.EXE:
                record = executable(key.exe)
                facts["exe"] = record.path if record else f"id {key.exe}"
            if key.shape & Shape.CGROUP:
                facts["cgroup"] = key.cgroup
            if key.shape & Shape.USER:
                facts["uid"] = key.uid
            if entry.where.name:
                facts["name"] = entry.name.value
            listed.append(
                {
                    "kind": "policy", "id": number, "word": entry.verdict.name.lower(), "facts": facts,
                    "seconds_left": round((entry.expires - now) / 1e9, 1) if entry.expires else None,
                    "reasons": [f"{reason.rule}: {reason.message}" for reason in entry.reasons],
                }
            )  # fmt: skip
        return listed

    def sweep(self) -> int:
        """Remove entries that have expired: the gate has not used them since. Return how many."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        gone = [number for number, entry in self._wide.items() if entry.expires and entry.expires <= now]
        for number in gone:
            where = self._wide.pop(number).where
            if self._standing.get(where) == number:
                del self._standing[where]
                self._remove(where)
        return len(gone)

    def withdraw(self) -> int:
        """Remove everything of this generation, which is no longer in force. Return how many entries."""
        removed = len(self._standing)
        for where in self._standing:
            self._remove(where)
        for key in self._classes:
            self._gate.remove_class(key)
        self._standing, self._classes, self._keys = {}, {}, {}
        return removed

    def _remove(self, where: Reach) -> None:
        if where.key is None:
            return
        if not where.name:
            self._gate.remove_connect(where.key)
        elif where.key in self._classes:
            self._gate.remove_name(NameKey(self._classes[where.key], where.name))


def highest_numbers(gate: Gate) -> Numbering:
    """Return numbers above every one that stands in the maps."""
    numbering = Numbering()
    entries = (
        *gate.connect_entries(), *gate.name_entries(), *gate.destination_entries(), *gate.strategy_entries(),
        *gate.source_entries(), *gate.flow_entries(),
    )  # fmt: skip
    numbering.entry = max((entry.id for _, entry in entries), default=numbering.entry)
    numbering.entry = max(numbering.entry, *(flow.verdict_id for _, flow in gate.inbound_entries()), 0)
    numbering.name_class = max((number for _, number in gate.class_entries()), default=numbering.name_class)
    return numbering


def unused_number(gate: Gate) -> int:
    """Return a generation number that no policy has been begun under.

    A generation's plan is its first write, so the plans tell of every one that was begun: also of one whose engine was
    killed half way, or that could not be put in force. What was written for it may still stand under its number, and
    must not count for another policy. Never a number with the slot of the plan in force, which a row of candidates that
    failed would overwrite.
    """
    in_force = gate.generation()
    number = max(in_force, *(gate.plan(slot).generation for slot in range(PLANS))) + 1
    return number + 1 if number % PLANS == in_force % PLANS else number


def purge(gate: Gate, number: int) -> int:
    """Remove what engines before this one installed for other generations than `number`, which is in force: nobody
    else knows of it, and it would fill the maps over the restarts. Return how many entries."""
    classes = {key: name_class for key, name_class in gate.class_entries() if key.generation != number}
    gone = set(classes.values())
    removed = [gate.remove_connect(key) for key, _ in gate.connect_entries() if key.generation != number]
    # By far the longest list: not walked for nothing.
    removed += [gate.remove_name(key) for key, _ in gate.name_entries() if key.name_class in gone] if gone else []
    removed += [gate.remove_class(key) for key in classes]
    return sum(removed)
