"""A gate in namespaces of its own, and the smallest engine that can serve it: the test itself."""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from engine.abi.numbers import Counter, EventType, KernelVerdict, Mode, Shape
from engine.abi.records import (
    Config,
    ConnectKey,
    Event,
    FlowKey,
    Held,
    NameKey,
    Plan,
    Process,
    ProcessEvent,
    SocketEvent,
    Tuple,
    VerdictEntry,
    VerdictEvent,
)
from engine.kernel import attach, cache, libbpf
from engine.kernel.detach import detach
from engine.kernel.gate import KernelGate
from engine.kernel.hold import VNET_BYTES, Hold
from engine.kernel.order import Detached, Loaded, reply
from engine.kernel.pins import Pins
from engine.kernel.ring import open_ring
from engine.model.net import to_key
from engine.protocols.packet import Packet, parse
from tests.support.netns import DEADLINE, Agent, Namespace, cgroup2, join, unique

ROOT = Path(__file__).parents[2]
INSIDE, OUTSIDE = "10.77.0.1", "10.77.0.2"
INSIDE6, OUTSIDE6 = "fd00:77::1", "fd00:77::2"
DEVICE, FAR_DEVICE = "guarded", "far"
TCP, UDP = 6, 17
ALLOW = VerdictEntry(KernelVerdict.ALLOW, 1)
DENY = VerdictEntry(KernelVerdict.DENY, 2)
UNDECIDED = VerdictEntry(KernelVerdict.UNDECIDED, 3)
MINUTE = 60 * 10**9
LOADED = 600
"""Seconds after which a loader counts as hanging: emulated, compiling alone takes two minutes."""
NOISE = frozenset({Counter.PASSED_NOT_IP, Counter.PASSED_LINK_CONTROL})
"""ARP and neighbour discovery: the kernel's own talk, which comes when it likes."""


_KEPT: list[bytes] = []
"""The programs that the first lab compiled, for those after it."""


def key(address: str) -> bytes:
    return to_key(ipaddress.ip_address(address))


def exact(name: str) -> bytes:
    return name.encode()[::-1] + b"\0"


@dataclass
class HeldFrame:
    raw: bytes
    packet: Packet
    note: Held

    @property
    def flow(self) -> Tuple:
        at = self.packet
        return Tuple(at.source_key, at.dest_key, at.sport, at.dport, at.protocol)


class Lab:
    """Two joined namespaces, a control group and a state directory; load() puts a gate onto the inner device.

    close() detaches it and asserts that nothing is left behind.
    """

    def __init__(self) -> None:
        self.inside = Namespace("spk")
        self.outside = Namespace("spk")
        join(self.inside, self.outside, DEVICE, FAR_DEVICE)
        self.cgroup = cgroup2() / unique("spk")
        self.cgroup.mkdir()
        self.state = Path(tempfile.mkdtemp(prefix="sallyport-test-"))
        self.pins = Pins.of(self.state)
        self.loaded: Loaded | None = None
        self.program_ids: set[int] = set()
        self._agents: list[Agent] = []

    def order(self, **changes: object) -> dict[str, object]:
        return {
            "state_dir": str(self.state), "interfaces": [DEVICE], "cgroup": str(self.cgroup), "mode": "enforce",
            "pid": os.getpid(), **changes,
        }  # fmt: skip

    def load(
        self, *, programs: Literal["kept", "compiled", ""] = "", env: Mapping[str, str] | None = None, **changes: object
    ) -> Loaded:
        """Run the loader as the engine does. Raises what it answers.

        `programs`: where they must have come from. "": they are compiled once in a run of the tests, and every other
        lab has what the first one kept.
        """
        if not programs and not (self.state / cache.NAME).exists() and _KEPT:
            (self.state / cache.NAME).write_bytes(_KEPT[0])
            (self.state / cache.NAME).chmod(0o600)
        done = subprocess.run(
            self.inside.command(sys.executable, "-m", "engine.kernel.process"), env={**os.environ, **(env or {})},
            input=json.dumps(self.order(**changes)), capture_output=True, text=True, check=False, cwd=ROOT,
            timeout=LOADED,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        self.loaded = reply(done.stdout)
        self.program_ids |= {program["id"] for program in self.loaded.programs.values()}
        if programs:
            assert ("compiled" if self.loaded.compiled_because else "kept") == programs, self.loaded
        elif not changes and self.loaded.compiled_because and not self.loaded.not_kept_because:
            _KEPT[:] = [(self.state / cache.NAME).read_bytes()]
        return self.loaded

    def guard_sources(self, mode: str = "auto") -> str:
        """Attach the program of the sources, which the loader leaves to whoever denies the first source."""
        assert self.loaded is not None
        index = self.loaded.interfaces[DEVICE]
        program = libbpf.obj_get(self.pins.programs / "gate_source")
        try:
            return self.inside.call(lambda: attach.attach_xdp(index, program, mode))
        finally:
            os.close(program)

    def agent(self, *, outside: bool = False, known: bool = True) -> Agent:
        """Start a process inside the control group; `known=False`: outside of it, so that nobody knows who it is."""
        agent = Agent(self.outside) if outside else Agent(self.inside, self.cgroup if known else None)
        self._agents.append(agent)
        return agent

    def dismiss(self) -> None:
        """End every agent."""
        while self._agents:
            self._agents.pop().close()

    def detach(self) -> Detached:
        return detach(self.pins)

    def leftovers(self) -> list[str]:
        """Say what of the gate is still there."""
        found = [str(path) for path in (self.pins.root, self.pins.record) if path.exists()]
        links = self.inside.ip("-details", "link", "show")
        found += [word for word in ("hold-", "held-", "prog/xdp") if word in links]
        filters = subprocess.run(
            ["tc", "-n", self.inside.name, "qdisc", "show", "dev", DEVICE], capture_output=True, text=True, check=True
        ).stdout
        found += ["clsact"] if "clsact" in filters else []
        found += [f"program {number}" for number in sorted(self.program_ids) if program_alive(number)]
        return found

    def close(self) -> None:
        self.dismiss()
        try:
            done = self.detach()
            assert not done.problems, done.problems
            await_(lambda: not self.leftovers(), lambda: f"left behind: {self.leftovers()}")
        finally:
            for space in (self.inside, self.outside):
                space.close()
            await_(lambda: _removed(self.cgroup), lambda: f"{self.cgroup} is still in use")
            shutil.rmtree(self.state)


def _removed(cgroup: Path) -> bool:
    with contextlib.suppress(OSError):
        cgroup.rmdir()
    return not cgroup.exists()


def await_(condition: Callable[[], bool], otherwise: Callable[[], str]) -> None:
    """Ask until it holds, for what the kernel does in its own time and tells nobody: freeing programs."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, otherwise()
        os.sched_yield()


def program_alive(number: int) -> bool:
    library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    fd = library.bpf_prog_get_fd_by_id(number)
    if fd < 0:
        return False
    os.close(fd)
    return True


@dataclass
class Watch:
    """The engine in miniature: what it would write, written by the test."""

    lab: Lab
    generation: int = 100
    gate: KernelGate = field(init=False)
    hold: Hold = field(init=False)
    _taken: int = field(init=False)

    def __post_init__(self) -> None:
        pins = self.lab.pins
        self.gate = KernelGate(pins.maps)
        self.ring = open_ring(pins.maps / "events")
        self.hold = self.lab.inside.call(lambda: Hold(pins.held_device, 16 << 20))
        self._taken = self.gate.hold_queue()[1]
        self._before = self.gate.counters()
        self._events: list[Event] = []

    def close(self) -> None:
        self.hold.close()
        self.ring.close()
        self.gate.close()

    # ---- what stands

    def reset(self, connect: Sequence[int] = (Shape.DEST,), names: Sequence[int] = (0,)) -> None:
        """A new generation over empty maps, enforcing, with every posture closed and a heart that beats."""
        gate = self.gate
        self.configure(mode=Mode.OBSERVE)
        for entries, remove in (
            (gate.connect_entries, gate.remove_connect), (gate.class_entries, gate.remove_class),
            (gate.name_entries, gate.remove_name), (gate.destination_entries, gate.remove_destination),
            (gate.strategy_entries, gate.remove_strategy), (gate.source_entries, gate.remove_source),
            (gate.flow_entries, gate.remove_flow),
        ):  # fmt: skip
            for entry, _ in entries():  # type: ignore[operator]
                remove(entry)  # type: ignore[operator]
        self.flip(connect, names)
        gate.beat()
        while self.hold.receive() is not None:
            pass
        redirected, _ = gate.hold_queue()
        self._taken = redirected
        gate.take(redirected)
        self.configure()
        self._before = gate.counters()
        self.ring.drain(lambda _: None, 1 << 20)
        self._events.clear()

    def configure(self, **changes: int) -> None:
        loaded = self.lab.loaded
        assert loaded is not None
        standard = Config(Mode.ENFORCE, loaded.hold_ifindex, 0, 0, 1024, MINUTE)
        self.gate.set_config(standard._replace(**changes))

    def flip(self, connect: Sequence[int] = (Shape.DEST,), names: Sequence[int] = (0,)) -> int:
        """Put the next generation in force."""
        self.generation += 1
        self.gate.set_plan(Plan(self.generation, tuple(connect), tuple(names)))
        self.gate.set_generation(self.generation)
        return self.generation

    def dest(self, address: str, port: int, entry: VerdictEntry, transport: int = TCP) -> None:
        """A verdict for a destination, of the generation in force."""
        self.gate.put_connect(ConnectKey(self.generation, Shape.DEST, transport, port, key(address)), entry)

    def name(self, name: str | bytes, entry: VerdictEntry, number: int = 16, **facts: int) -> None:
        """A verdict for a name, in the class of these facts (none: the class of every flow)."""
        shape = facts.pop("shape", 0)
        self.gate.put_class(ConnectKey(self.generation, shape, **facts), number)  # type: ignore[arg-type]
        reversed_name = exact(name) if isinstance(name, str) else name
        self.gate.put_name(NameKey(number, reversed_name), entry)

    def introduce(self, agent: Agent, exe: int) -> None:
        """Say which executable a process runs, as the engine does after looking it up."""
        known = self.gate.process(agent.pid)
        self.gate.put_process(agent.pid, Process(known.exec_stamp if known else 1, exe))

    # ---- what happens

    def held(self) -> HeldFrame:
        """Wait for the next held frame."""
        end = time.monotonic() + DEADLINE
        while True:
            raw = self.hold.receive()
            if raw is not None:
                break
            left = end - time.monotonic()
            assert left > 0, f"nothing is held; counted: {self.counted()}"
            select.select([self.hold], [], [], left)
        self._taken += 1
        self.gate.take(self._taken)
        packet = parse(raw[VNET_BYTES:])
        assert isinstance(packet, Packet), packet
        flow = Tuple(packet.source_key, packet.dest_key, packet.sport, packet.dport, packet.protocol)
        note = self.gate.held(flow)
        assert note is not None, "no note of the held frame"
        return HeldFrame(raw, packet, note)

    def release(self, frame: HeldFrame) -> None:
        assert self.lab.inside.call(lambda: self.hold.release(DEVICE, frame.raw))

    def decide(self, frame: HeldFrame, entry: VerdictEntry) -> None:
        """Write the verdict for this flow, under the key that the note asks for."""
        self.gate.put_flow(FlowKey(frame.flow, self.generation, frame.note.part, frame.note.cookie), entry)

    def nothing_held(self) -> bool:
        return self.hold.receive() is None

    def counted(self) -> dict[Counter, int]:
        """What the gate counted since reset(), without zeros and noise."""
        now = self.gate.counters()
        return {which: now[which] - self._before[which] for which in now if now[which] != self._before[which]
                and which not in NOISE}  # fmt: skip

    def events(self) -> list[Event]:
        """Take what the ring has."""
        found: list[Event] = []
        self.ring.drain(lambda data: found.append(decoded(data)), 1 << 20)
        self._events += found
        return found

    def forget(self) -> None:
        """Let go of the events so far."""
        self.events()
        self._events.clear()

    def event(self, wanted: Callable[[Event], bool]) -> Event:
        """Wait for an event."""
        end = time.monotonic() + DEADLINE
        while True:
            self.events()
            for index, event in enumerate(self._events):
                if wanted(event):
                    return self._events.pop(index)
            left = end - time.monotonic()
            assert left > 0, f"no such event among {self._events}"
            select.select([self.ring.fd], [], [], left)

    def verdict_event(self, kind: EventType = EventType.VERDICT, *, transport: int = TCP) -> VerdictEvent:
        found = self.event(
            lambda event: isinstance(event, VerdictEvent) and event.type == kind and event.tuple.transport == transport
        )
        assert isinstance(found, VerdictEvent)
        return found

    def socket_event(self, kind: EventType, port: int) -> SocketEvent:
        """Wait for a TCP socket's event by the peer's port."""
        found = self.event(
            lambda event: isinstance(event, SocketEvent) and event.type == kind and event.tuple.dport == port
        )
        assert isinstance(found, SocketEvent)
        return found

    def process_event(self, kind: EventType, pid: int) -> ProcessEvent:
        found = self.event(
            lambda event: isinstance(event, ProcessEvent) and event.type == kind and event.identity.tgid == pid
        )
        assert isinstance(found, ProcessEvent)
        return found


def decoded(data: bytes) -> Event:
    kind = EventType(int.from_bytes(data[8:12], "little"))
    if kind in {EventType.EXEC, EventType.EXIT}:
        return ProcessEvent.unpack(data)
    if kind is EventType.VERDICT_NAME:
        return VerdictEvent.unpack_named(data)
    if kind in {EventType.VERDICT, EventType.REFUSED}:
        return VerdictEvent.unpack(data)
    return SocketEvent.unpack(data)


def cgroup_id(path: Path) -> int:
    """The number that bpf_get_current_cgroup_id() gives: the inode of the directory."""
    return path.stat().st_ino
