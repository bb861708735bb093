"""bpf/gate.c's egress program in plain Python, over the simulated maps: what would the kernel do with this packet?

The precedence, step for step as gate.c has it: socket storage, never-deny, a person's word on the destination,
strategy, the flow's own verdict, connect verdicts shape by shape, a person's word on the name, name verdicts, hold.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from engine.abi.numbers import (
    NAME_KEY_BYTES,
    NAME_MAX_KERNEL,
    DestinationClass,
    EventType,
    FlowFlag,
    Hook,
    KernelVerdict,
    Mode,
    NameClass,
    Origin,
    Present,
    Shape,
    StageNumber,
    StrategyKind,
)
from engine.abi.records import (
    VERDICT_EVENT,
    ConnectKey,
    DestinationKey,
    FlowKey,
    Held,
    Identity,
    KeptHello,
    Plan,
    StrategyKey,
    Tuple,
    VerdictEntry,
    VerdictEvent,
)
from engine.model.facts import NameState
from engine.protocols import packet as packets
from engine.protocols.packet import Packet
from engine.protocols.tls import parse_hello
from tests.support.simulator import HELLOS, SimulatedGate

NOBODY = Identity(0, 0, 0, 0, 0, 0)
_WINDOW = 4096
_PASSING = (KernelVerdict.ALLOW, KernelVerdict.IGNORE)
JUDGED_MOST, SEEN_LAST = 1 << 20, 1 << 30
"""How far behind its first byte what a segment brings again may end; how far beyond it a stream has forgotten it."""


class Outcome(Enum):
    PASS = 1
    DROP = 2
    HOLD = 3


@dataclass(frozen=True)
class Judged:
    """`origin` NONE: decided by no entry in this run (socket storage, or nothing to judge)."""

    outcome: Outcome
    origin: Origin = Origin.NONE
    entry: VerdictEntry | None = None


@dataclass
class Socket:
    """A socket with the storage that the connect hook gives it; `stored` False: the gate never saw it connect."""

    cookie: int
    identity: Identity
    stored: bool = True
    verdict: int = KernelVerdict.NONE
    generation: int = 0
    expires: int = 0
    verdict_id: int = 0
    flags: int = 0
    start: int = 0
    connections: int = 1
    peer: bytes = bytes(16)
    peer_port: int = 0
    """Of TCP: to whom what is stored applies; 0: not known yet."""
    local_port: int = 0
    """0: any."""
    orders: int = 0
    judged: int = 0
    """Sequence number behind what was read of the stream; `start`: nothing was."""


@dataclass
class Egress:
    """One guarded interface."""

    gate: SimulatedGate
    ifindex: int = 7
    inside: bool = False
    """An inside interface: what is held there goes on into the stack."""
    told: list[VerdictEvent] = field(default_factory=list)
    """What the ring would carry."""

    def packet(
        self,
        socket: Socket,
        frame: bytes,
        *,
        observed: bool | None = None,
        first: bool = False,
        again: bool | None = None,
    ) -> Judged:
        """Judge an Ethernet frame that leaves through this socket; a held one is noted in the map `held`.

        `observed`: by a word that still stands for the socket. None: as its storage says. `first`: of its connection,
        so that nothing was decided about it before. `again`: it brings what was read of its stream once more. None: as
        its storage says.
        """
        gate = self.gate
        mode, present = gate.config().mode, Present(gate.config().present)
        generation = gate.generation()
        packet = packets.parse(frame)
        assert isinstance(packet, Packet), packet
        tcp = packet.protocol == packets.TCP
        if observed is None:
            observed = tcp and bool(socket.flags & FlowFlag.OBSERVE)
        observe, undecided = mode == Mode.OBSERVE or observed, False
        if mode == Mode.PANIC:
            return Judged(Outcome.PASS)
        length = packet.payload_end - packet.payload_offset
        stale = tcp and socket.stored and not first and socket.orders != gate.config().orders
        if again is None:
            again = tcp and not first and self._again(socket, packet.seq, packet.flags, length)
        if tcp and not stale and not first and (decided := self._by_socket(socket)) is not None:
            if not (again and socket.verdict in _PASSING):
                return decided
            stale = True  # a verdict on the same bytes alone, after a person's word
        undecided = tcp and not stale and self._is_undecided(socket)
        if tcp and socket.stored and opens(packet):
            self._begin(socket, packet.seq)
        flow = Tuple(packet.source_key, packet.dest_key, packet.sport, packet.dport, packet.protocol)
        if tcp and not length:
            if packet.flags & packets.RST:
                return Judged(Outcome.PASS)
            if not socket.stored and (not packet.flags & packets.SYN or packet.flags & packets.ACK):
                return Judged(Outcome.PASS)
        if Present.NEVER_DENY in present and self._destination(DestinationClass.NEVER_DENY, flow):
            if length and tcp:
                socket.flags |= FlowFlag.PAYLOAD_PASSED
            return Judged(Outcome.PASS, Origin.NEVER_DENY)
        who = self._who(socket)
        part = 0 if who is None else socket.connections if tcp else who.exe
        key = FlowKey(flow, generation, part, socket.cookie)
        run = _Run(socket, flow, key, generation, observe, tcp)
        quic = not tcp and quic_long_header(packet.payload)
        if Present.SET_DEST in present and (entry := self._destination(DestinationClass.SET, flow)):
            return self._apply(run, entry, Origin.SET)
        known = gate.standing(gate.flows.get(key))
        if known is not None and known.by_name and tcp and not socket.stored and opens(packet):
            known = None  # what one stream carried says nothing of the next one with its ports
        if known is not None and known.judged is not None and tcp:
            if is_far_beyond(known.judged, packet.seq):
                known = known._replace(judged=None)
                gate.flows.put(key, known)
            else:
                again = again or begins_before(known.judged, packet.seq, packet.flags, length)
        run.observe = mode == Mode.OBSERVE
        if tcp:
            socket.flags &= ~FlowFlag.OBSERVE
        if present & (Present.STRATEGY_DEST | Present.STRATEGY_ID):
            entry = self._strategy(present, who, flow)
            if entry is not None and entry.verdict == KernelVerdict.IGNORE:
                again = known is not None and known.verdict == KernelVerdict.IGNORE
                return self._apply(run, entry, Origin.FLOW if again else Origin.STRATEGY)
            if entry is not None and entry.verdict == KernelVerdict.OBSERVE:
                run.observe = True
                socket.flags |= FlowFlag.OBSERVE if socket.stored and tcp else 0
        if stale:
            # Nobody has said anything about this flow: what was decided holds.
            socket.orders = gate.config().orders
            if (decided := self._by_socket(socket)) is not None:
                asked = again and socket.verdict in _PASSING
                return self._hold(run, StageNumber.AGAIN, length) if asked else decided
            undecided = self._is_undecided(socket)
        if known is not None:
            if known.verdict == KernelVerdict.UNDECIDED:
                undecided = True
            elif quic and (known.by_name or Present.SET_NAME in present):
                return self._hold(run, StageNumber.PAYLOAD, length)
            elif again and known.verdict == KernelVerdict.ALLOW:
                return self._hold(run, StageNumber.AGAIN, length)
            else:
                run.judged = known.judged if tcp else None
                return self._apply(run, known, Origin.FLOW)
        plan = gate.plan(generation)
        if plan.generation != generation:
            return self._hold(run, StageNumber.CONNECT, length)
        allowed: VerdictEntry | None = None
        if not undecided:
            entry = self._connect(plan, who, flow)
            if entry is None:
                return self._hold(run, StageNumber.CONNECT, length)
            if entry.verdict == KernelVerdict.ALLOW and Present.SET_NAME in present:
                allowed = entry
            elif entry.verdict != KernelVerdict.UNDECIDED:
                return self._apply(run, entry, Origin.DEST)
        if not tcp:
            if allowed is not None and not quic:
                return self._apply(run, allowed, Origin.DEST)
            return self._hold(run, StageNumber.PAYLOAD, length)
        if socket.stored and not run.observe and socket.flags & FlowFlag.COPIED:
            socket.flags |= FlowFlag.PAYLOAD_PASSED
        passed = bool(socket.stored and socket.flags & FlowFlag.PAYLOAD_PASSED)
        if socket.stored and allowed is None and not passed:
            socket.verdict, socket.generation, socket.expires = KernelVerdict.UNDECIDED, generation, 0
            socket.orders = gate.config().orders
        if passed:
            return self._hold(run, StageNumber.PAYLOAD, length)
        if not length:
            return Judged(Outcome.PASS) if socket.stored else self._hold(run, StageNumber.CONNECT, length)
        first = (packet.seq + bool(packet.flags & packets.SYN)) & 0xFFFFFFFF
        started = socket.flags & FlowFlag.STARTED and first == socket.start
        if not socket.stored or socket.flags & FlowFlag.HOLDING or not started:
            return self._hold(run, StageNumber.PAYLOAD, length)
        if packet.flags & packets.URG:
            return self._hold(run, StageNumber.PAYLOAD, length)
        return self._first_payload(run, plan, who, packet.payload, allowed, present)

    def refuses(self, who: Identity, flow: Tuple) -> bool:
        """Would connect() be refused with EPERM at once?"""
        gate, present = self.gate, Present(self.gate.config().present)
        if Present.NEVER_DENY in present and self._destination(DestinationClass.NEVER_DENY, flow):
            return False
        entry = self._destination(DestinationClass.SET, flow) if Present.SET_DEST in present else None
        if entry is None:
            strategy = self._strategy(present, who, flow)
            if strategy is not None and strategy.verdict != KernelVerdict.ENFORCE:
                return False
            plan = gate.plan(gate.generation())
            entry = self._connect(plan, who, flow) if plan.generation == gate.generation() else None
        return entry is not None and entry.verdict in (KernelVerdict.DENY, KernelVerdict.REJECT)

    # ---- what was read of a stream

    @staticmethod
    def _begin(socket: Socket, seq: int) -> None:
        """A SYN: with the number of the one before it is that one, which may have carried what was judged."""
        start = (seq + 1) & 0xFFFFFFFF
        if socket.start != start:
            socket.judged = start
        socket.start = start
        socket.flags |= FlowFlag.STARTED

    @staticmethod
    def _again(socket: Socket, seq: int, flags: int, length: int) -> bool:
        """Does a segment of this socket bring again what was read of its stream? Far beyond it, that is forgotten."""
        if not socket.stored or socket.judged == socket.start:
            return False
        if is_far_beyond(socket.judged, seq):
            socket.judged = socket.start
            return False
        return begins_before(socket.judged, seq, flags, length)

    # ---- look-ups

    def _stands(self, socket: Socket) -> bool:
        return socket.stored and socket.generation == self.gate.generation() and self._unexpired(socket.expires)

    def _is_undecided(self, socket: Socket) -> bool:
        return self._stands(socket) and socket.verdict == KernelVerdict.UNDECIDED

    def _by_socket(self, socket: Socket) -> Judged | None:
        """What socket storage says of a packet of its flow; None: nothing that decides."""
        if not self._stands(socket) or socket.verdict in (KernelVerdict.NONE, KernelVerdict.UNDECIDED):
            return None
        observe = self.gate.config().mode == Mode.OBSERVE or socket.flags & FlowFlag.OBSERVE
        return Judged(Outcome.PASS if socket.verdict in _PASSING or observe else Outcome.DROP)

    def _unexpired(self, expires: int) -> bool:
        return not expires or self.gate.clock() < expires

    def _who(self, socket: Socket) -> Identity | None:
        if not socket.stored:
            return None
        process = self.gate.process(socket.identity.tgid)
        if not socket.identity.exe and process and process.exec_stamp == socket.identity.exec_stamp:
            socket.identity = socket.identity._replace(exe=process.exe)
        return socket.identity

    def _destination(self, kind: DestinationClass, flow: Tuple) -> VerdictEntry | None:
        for transport, port in ((flow.transport, flow.dport), (flow.transport, 0), (0, 0)):
            found = self.gate.longest_destination(DestinationKey(kind, transport, port, flow.dst))
            if entry := self.gate.standing(found):
                return entry
        return None

    def _strategy(self, present: Present, who: Identity | None, flow: Tuple) -> VerdictEntry | None:
        if Present.STRATEGY_ID in present and who is not None:
            kinds = ((StrategyKind.EXE, who.exe), (StrategyKind.CGROUP, who.cgroup), (StrategyKind.USER, who.uid))
            for kind, value in kinds:
                found = (
                    self.gate.strategies.get(StrategyKey(kind, value)) if value or kind != StrategyKind.EXE else None
                )
                if entry := self.gate.standing(found):
                    return entry
        return self._destination(DestinationClass.STRATEGY, flow) if Present.STRATEGY_DEST in present else None

    def _connect(self, plan: Plan, who: Identity | None, flow: Tuple) -> VerdictEntry | None:
        for key in _keys(plan.connect_shapes, plan, who, flow):
            if entry := self.gate.standing(self.gate.connects.get(key)):
                return entry
        return None

    def candidates(self, who: Identity | None, flow: Tuple, name: bytes = b"") -> list[VerdictEntry]:
        """Every standing entry of the generation in force that matches, not only the first one."""
        plan = self.gate.plan(self.gate.generation())
        found = [self.gate.connects.get(key) for key in _keys(plan.connect_shapes, plan, who, flow)]
        for key in _keys(plan.name_shapes, plan, who, flow) if name else ():
            number = self.gate.classes.get(key)
            found.append(None if number is None else self.gate.longest_name(number, name))
        return [entry for one in found if (entry := self.gate.standing(one))]

    def _first_payload(
        self,
        run: _Run,
        plan: Plan,
        who: Identity | None,
        payload: bytes,
        allowed: VerdictEntry | None,
        present: Present,
    ) -> Judged:
        name = kernel_name(payload)
        if not name:
            return self._hold(run, StageNumber.PAYLOAD, len(payload))
        if Present.SET_NAME in present:
            entry = self.gate.standing(self.gate.longest_name(NameClass.SET, name))
            if entry:
                return self._apply_read(run, payload, entry, Origin.SET, name[:-1][::-1])
        if allowed is not None:
            return self._apply_read(run, payload, allowed, Origin.DEST)
        for key in _keys(plan.name_shapes, plan, who, run.flow):
            number = self.gate.classes.get(key)
            if number is not None and (entry := self.gate.standing(self.gate.longest_name(number, name))):
                return self._apply_read(run, payload, entry, Origin.NAME, name[:-1][::-1])
        return self._hold(run, StageNumber.PAYLOAD, len(payload))

    # ---- what becomes of it

    def _apply_read(self, run: _Run, payload: bytes, entry: VerdictEntry, origin: Origin, name: bytes = b"") -> Judged:
        """Of a hello: its one record is kept where the engine finds it, and all that is behind it was not read."""
        if entry.verdict == KernelVerdict.ALLOW:
            start, hello = run.socket.start, payload[: 5 + int.from_bytes(payload[3:5], "big")]
            run.judged = (start + len(hello)) & 0xFFFFFFFF
            self.gate.hellos[run.socket.cookie % HELLOS] = KeptHello(run.flow, start, hello)
        return self._apply(run, entry, origin, name)

    def _apply(self, run: _Run, entry: VerdictEntry, origin: Origin, name: bytes = b"") -> Judged:
        socket, passes = run.socket, entry.verdict in _PASSING
        if socket.stored and run.tcp:
            socket.verdict, socket.verdict_id = entry.verdict, entry.id
            socket.generation, socket.expires = run.generation, entry.expires
            socket.orders = self.gate.config().orders
            socket.flags &= ~FlowFlag.HOLDING
            if passes or run.observe:
                socket.flags |= FlowFlag.PAYLOAD_PASSED
            if run.judged is not None:
                socket.judged = run.judged
        elif origin != Origin.FLOW:
            self.gate.flows.put(run.key, entry)
        if origin != Origin.FLOW:
            flags = _flags(run)
            self.told.append(
                VerdictEvent(
                    self.gate.clock(), EventType.VERDICT_NAME if name else EventType.VERDICT,
                    socket.identity if socket.stored else NOBODY, run.flow, self.ifindex, run.generation, socket.cookie,
                    entry.id, entry.verdict, origin, StageNumber.PAYLOAD if name else StageNumber.CONNECT,
                    int(flags | (FlowFlag.OBSERVE if run.observe else 0)), run.key.part, name,
                )
            )  # fmt: skip
        return Judged(Outcome.PASS if passes or run.observe else Outcome.DROP, origin, entry)

    def _hold(self, run: _Run, stage: StageNumber, length: int) -> Judged:
        socket = run.socket
        flags, stream = _flags(run), socket.stored and run.tcp
        if run.observe:
            flags |= FlowFlag.CLONED | FlowFlag.OBSERVE
        who = socket.identity if socket.stored else NOBODY
        note = Held(
            who, socket.cookie, self.gate.clock(), self.ifindex, run.generation,
            socket.verdict_id if stream else 0, run.key.part, socket.start if stream else 0, stage, flags,
            Hook.INGRESS if self.inside else Hook.EGRESS, 0, socket.judged if stream else 0,
            self.gate.redirected,
        )  # fmt: skip
        if stream and length and stage is not StageNumber.AGAIN:
            socket.flags |= FlowFlag.HOLDING | (FlowFlag.COPIED if run.observe else 0)
        self.gate.notes.put(run.flow, note)
        self.gate.redirected += 1
        return Judged(Outcome.HOLD)


@dataclass
class _Run:
    socket: Socket
    flow: Tuple
    key: FlowKey
    generation: int
    observe: bool
    tcp: bool
    judged: int | None = None
    """Behind what was read of the stream, where that decides it."""


def _flags(run: _Run) -> int:
    """What storage knows of a packet's connection; of a datagram it knows no more than its sender."""
    if not run.socket.stored:
        return int(FlowFlag.NO_STORAGE)
    return run.socket.flags if run.tcp else 0


def begins_before(judged: int, seq: int, flags: int, length: int) -> bool:
    """Does a segment with payload begin before `judged`, as far as anything is read of a stream?"""
    return bool(length) and 0 < (judged - seq - bool(flags & packets.SYN)) & 0xFFFFFFFF <= JUDGED_MOST


def is_far_beyond(judged: int, seq: int) -> bool:
    """Has a stream come so far that its numbers may come round?"""
    return SEEN_LAST <= (seq - judged) & 0xFFFFFFFF < 2 * SEEN_LAST


def key_of(shape: int, generation: int, who: Identity | None, flow: Tuple) -> ConnectKey | None:
    """Return the key of a shape, None when a fact of it is not known."""
    if shape & ~Shape.DEST and (who is None or (shape & Shape.EXE and not who.exe)):
        return None
    dest = bool(shape & Shape.DEST)
    return ConnectKey(
        generation,
        shape,
        flow.transport if dest else 0,
        flow.dport if dest else 0,
        flow.dst if dest else bytes(16),
        who.cgroup if who and shape & Shape.CGROUP else 0,
        who.exe if who and shape & Shape.EXE else 0,
        who.uid if who and shape & Shape.USER else 0,
    )


def _keys(shapes: tuple[int, ...], plan: Plan, who: Identity | None, flow: Tuple) -> list[ConnectKey]:
    # What is said of what comes in is no word on what leaves.
    keys = (key_of(shape, plan.generation, who, flow) for shape in shapes if not shape & Shape.INBOUND)
    return [key for key in keys if key is not None]


def kernel_name(payload: bytes) -> bytes:
    """Return the key of the name that the kernel reads from a first payload: reversed, with its NUL; empty where it
    leaves the hello to the engine. (tests/host_c holds tls_hello.h itself to the engine's parser.)"""
    whole = len(payload) > 9 and payload[:2] == b"\x16\x03" and payload[5] == 1 and len(payload) <= _WINDOW
    record, size = int.from_bytes(payload[3:5], "big"), int.from_bytes(payload[6:9], "big") + 4
    if not whole or record != size or record + 5 > len(payload):
        return b""
    name = parse_hello(payload[5 : 5 + size]).name
    value = name.value.encode()
    if name.state is not NameState.COMPLETE or name.ech or len(value) > NAME_MAX_KERNEL:
        return b""
    # A trailing dot is the engine's.
    return b"" if value + b"." in payload.lower() else value[::-1] + b"\0"


def quic_long_header(payload: bytes) -> bool:
    return len(payload) >= 1200 and bool(payload[0] & 0x80)


def opens(packet: Packet) -> bool:
    return bool(packet.flags & packets.SYN) and not packet.flags & packets.ACK


def record(event: VerdictEvent) -> bytes:
    """Return an event as the ring carries it."""
    head = VERDICT_EVENT.pack(event.time, event.type, *event.identity, *event.tuple, *event[4:13])
    if event.type != EventType.VERDICT_NAME:
        return head
    reversed_name = event.name[::-1]
    return head + len(reversed_name).to_bytes(4, "little") + reversed_name.ljust(NAME_KEY_BYTES, b"\0") + bytes(4)
