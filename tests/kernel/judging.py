"""The gate's two programs by BPF_PROG_TEST_RUN in one common state, with sockets that a test chooses."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections import Counter as Tally
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.abi.numbers import EventType
from engine.abi.records import KEPT_HELLO, Held, Identity, KeptHello, Tuple, VerdictEvent
from engine.kernel.maps import Map
from tests.kernel.lab import DEVICE, ROOT, Lab, Watch
from tests.support.egress import Outcome, Socket
from tests.support.oracle import SENT_HERE, Way
from tests.support.testrun import PASS, REDIRECT, SHOT, Run, TestRun

ACTIONS = {Outcome.PASS: PASS, Outcome.DROP: SHOT, Outcome.HOLD: REDIRECT}
STATE = struct.Struct("<QQIIIIQQIIBBBBIIHH16sII")
"""struct socket_state, which no map carries to the engine: identity, opened, expires, generation, verdict_id, verdict,
stage, flags, origin, start, connections, peer_port, local_port, peer, orders, judged."""
SLOTS = (*range(8), 2048, 2049)
"""Of `hellos`: those of the cookies that tests choose."""
_SEAM = struct.Struct("<QIIIIII")
"""struct seam of tests/support/seam.py: cookie, socket, stored, came_by, found, accepted, pad."""
_MAPS = ("seam_before", "seam_after", "seam_run", "interfaces", "inbound_flows", "hellos")


class Bench:
    """A loaded gate that no packet but the test's reaches. `source`: the gate.c to judge by."""

    def __init__(self, lab: Lab, source: Path = ROOT / "bpf/gate.c") -> None:
        self.lab = lab
        maps, programs = lab.pins.maps, lab.pins.programs
        subprocess.run([sys.executable, "-m", "tests.support.seam", source, maps, programs], check=True, cwd=ROOT)
        lab.inside.ip("link", "set", DEVICE, "down")
        self.watch = Watch(lab)
        self.gate = self.watch.gate
        self._egress, self._ingress, self.shipped = (
            TestRun(programs / name) for name in ("seamed_gate_egress", "seamed_gate_ingress", "gate_egress")
        )
        self._maps = {name: Map(maps / name) for name in _MAPS}
        assert self._maps["seam_before"].value_size == STATE.size
        assert self._maps["seam_run"].value_size == _SEAM.size
        self._interfaces: set[int] = set()
        self._first = 0
        self.seen: Tally[str] = Tally()

    def leaves(self, socket: Socket, frame: bytes, way: Way = SENT_HERE) -> Run:
        """Judge a packet by gate_egress; `socket` becomes what its storage was left as. Cookie 0: without a socket."""
        self._maps["seam_before"].put(bytes(4), packed(socket))
        run = _SEAM.pack(socket.cookie, bool(socket.cookie), socket.stored, way.came_by, 0, 0, 0)
        self._maps["seam_run"].put(bytes(4), run)
        done = self._egress(frame, way.mark)
        assert done.frame == frame, "the gate changed a packet"
        if socket.stored:
            unpack(socket, self._maps["seam_after"].get(bytes(4)) or b"")
        return done

    def comes_in(self, frame: bytes, *, found: int = 0, accepted: bool = False, mark: int = 0) -> Run:
        """Judge a packet by gate_ingress. `found`, `accepted`: the state of the socket that it comes in for (0: none),
        and whether its connection was opened from outside."""
        self._maps["seam_run"].put(bytes(4), _SEAM.pack(0, 0, 0, 0, found, accepted, 0))
        done = self._ingress(frame, mark)
        assert done.frame == frame, "the gate changed a packet"
        return done

    def interface(self, number: int, kind: int) -> None:
        self._maps["interfaces"].put(number.to_bytes(4, "little"), kind.to_bytes(4, "little"))
        self._interfaces.add(number)

    def told(self) -> list[VerdictEvent]:
        """Take the verdicts that the ring has."""
        kinds = (EventType.VERDICT, EventType.VERDICT_NAME)
        told = [event for event in self.watch.events() if isinstance(event, VerdictEvent) and event.type in kinds]
        self.watch.forget()
        return [event._replace(time=0) for event in told]

    def held(self, flow: Tuple) -> Held | None:
        """The note of a held frame, counted from the last clear()."""
        note = self.gate.held(flow)
        return None if note is None else note._replace(time=0, number=note.number - self._first)

    def kept(self) -> dict[int, KeptHello]:
        """What stands in SLOTS."""
        slots = {slot: self.gate.kept_hello(slot) for slot in SLOTS}
        return {slot: hello for slot, hello in slots.items() if hello is not None}

    def forget_inbound(self, flow: Tuple) -> None:
        self._maps["inbound_flows"].remove(flow.pack())

    def clear(self) -> None:
        """Empty maps, no interface told of, a heart that beats, and nothing held."""
        self.watch.reset()
        for index in range(3):
            self.gate.remove_process((1 << 30) + index)
        for flow, _ in self.gate.inbound_entries():
            self.forget_inbound(flow)
        for slot in SLOTS:
            if self.gate.kept_hello(slot) is not None:
                self._maps["hellos"].put(slot.to_bytes(4, "little"), bytes(KEPT_HELLO.size))
        while self._interfaces:
            self._maps["interfaces"].remove(self._interfaces.pop().to_bytes(4, "little"))
        self.gate.beat()
        self._first = self.gate.hold_queue()[0]
        self.gate.take(self._first)
        self.told()

    def close(self) -> None:
        for map_ in self._maps.values():
            map_.close()
        for program in (self._egress, self._ingress, self.shipped):
            program.close()
        self.watch.close()


@contextmanager
def opened(source: Path = ROOT / "bpf/gate.c") -> Iterator[Bench]:
    lab = Lab()
    bench = None
    try:
        lab.load()
        bench = Bench(lab, source)
        yield bench
    finally:
        if bench is not None:
            bench.close()
        lab.close()


def packed(socket: Socket) -> bytes:
    return STATE.pack(
        *socket.identity, 0, socket.expires, socket.generation, socket.verdict_id, socket.verdict, 0, socket.flags, 0,
        socket.start, socket.connections, socket.peer_port, socket.local_port, socket.peer, socket.orders,
        socket.judged,
    )  # fmt: skip


def unpack(socket: Socket, data: bytes) -> None:
    fields = STATE.unpack(data)
    socket.identity = Identity._make(fields[:6])
    socket.expires, socket.generation, socket.verdict_id, socket.verdict = fields[7:11]
    socket.flags, socket.start, socket.connections = fields[12], fields[14], fields[15]
    socket.peer_port, socket.local_port, socket.peer, socket.orders, socket.judged = fields[16:21]
