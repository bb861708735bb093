"""A generation: one policy version with its judge, and the kernel entries that were installed for it.

Every entry has a number of its own. The kernel hands that number back with each event and each held packet, so the
engine knows which decision a flow passed by, and for which name, without the kernel having to say it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from engine.abi.numbers import SHAPES_MAX, KernelVerdict, NameClass
from engine.abi.records import ConnectKey, FlowKey, NameKey, Plan, VerdictEntry
from engine.model.decision import Decision, Reason
from engine.model.facts import Name, NameState
from engine.policy.judge import Judge
from engine.policy.prepare import Policy
from engine.ports import Gate, MapFullError
from engine.runtime.entries import KERNEL_VERDICTS, Reach

_RESTORED = (Reason("restored", "decided before the engine was restarted"),)


@dataclass(frozen=True)
class Installed:
    """What an entry's number stands for. `expires`: CLOCK_MONOTONIC ns, 0 never."""

    verdict: KernelVerdict
    reasons: tuple[Reason, ...]
    name: Name
    expires: int = 0


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


@dataclass
class Force:
    """One generation in force, or about to be."""

    number: int
    policy: Policy
    judge: Judge
    gate: Gate
    numbering: Numbering
    on_full: Callable[[MapFullError], None]
    installed: dict[int, Installed] = field(default_factory=dict)
    _classes: dict[ConnectKey, int] = field(default_factory=dict)
    _connect_shapes: tuple[int, ...] = ()
    _name_shapes: tuple[int, ...] = ()

    def begin(self) -> None:
        """Write the plan: before the generation number, so that the gate never meets a number without one."""
        self.gate.set_plan(Plan(self.number, self._connect_shapes, self._name_shapes))

    def install(self, decision: Decision, where: Reach, flow: FlowKey, name: Name) -> int:
        """Put a decision into the kernel: for its flow always, and as far as `where` allows. Return its number."""
        number = self.numbering.next_entry()
        expires = 0
        if decision.ttl:
            expires = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + int(decision.ttl * 1e9)
        verdict = KERNEL_VERDICTS[decision.verdict]
        by_name = int("name" in decision.scope)
        entry = VerdictEntry(verdict, number, expires, by_name)
        self.installed[number] = Installed(verdict, decision.reasons, name, expires)
        try:
            # The wide entry first: should the flow's own be evicted at once, the next packet still finds this one.
            if where.key is not None:
                self._install_wide(where, entry)
            self.gate.put_flow(flow, entry)
        except MapFullError as error:
            self.on_full(error)
        return number

    def _install_wide(self, where: Reach, entry: VerdictEntry) -> None:
        key = where.key
        if key is None:
            return
        if not where.name:
            if self._plan_shape(key.shape, named=False):
                self.gate.put_connect(key, entry)
            return
        if not self._plan_shape(key.shape, named=True):
            return
        number = self._classes.get(key)
        if number is None:
            number = self.numbering.next_class()
            self.gate.put_class(key, number)
            self._classes[key] = number
        self.gate.put_name(NameKey(number, where.name), entry)

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
        plan = self.gate.plan(self.number)
        if plan.generation == self.number:
            self._connect_shapes, self._name_shapes = plan.connect_shapes, plan.name_shapes
        classes = {key: number for key, number in self.gate.class_entries() if key.generation == self.number}
        self._classes = dict(classes)
        ours = frozenset(classes.values())
        for key, entry in self.gate.connect_entries():
            if key.generation == self.number:
                self._restored(entry, Name())
        for name_key, entry in self.gate.name_entries():
            if name_key.name_class in ours:
                value = name_key.reversed_name.rstrip(b"\0")[::-1].decode("ascii", "replace")
                self._restored(entry, Name(value, NameState.COMPLETE))
        return len(self.installed)

    def _restored(self, entry: VerdictEntry, name: Name) -> None:
        self.installed[entry.id] = Installed(KernelVerdict(entry.verdict), _RESTORED, name, entry.expires)

    def withdraw(self) -> int:
        """Remove the entries of this generation, which is no longer in force. Return how many."""
        removed = 0
        ours = frozenset(self._classes.values())
        for key, _ in self.gate.connect_entries():
            if key.generation == self.number:
                removed += self.gate.remove_connect(key)
        for name_key, _ in self.gate.name_entries():
            if name_key.name_class in ours:
                removed += self.gate.remove_name(name_key)
        for key in self._classes:
            self.gate.remove_class(key)
        for source_key, _ in self.gate.source_entries():
            if source_key.generation == self.number:
                removed += self.gate.remove_source(source_key)
        return removed


def highest_numbers(gate: Gate) -> Numbering:
    """Return numbers above every one that stands in the maps."""
    numbering = Numbering()
    entries = (
        *gate.connect_entries(), *gate.name_entries(), *gate.destination_entries(), *gate.strategy_entries(),
        *gate.source_entries(), *gate.flow_entries(),
    )  # fmt: skip
    numbering.entry = max((entry.id for _, entry in entries), default=numbering.entry)
    numbering.name_class = max((number for _, number in gate.class_entries()), default=numbering.name_class)
    return numbering
