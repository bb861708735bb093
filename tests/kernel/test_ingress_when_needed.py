"""The program at ingress is there while what comes in is judged, from before such a policy is in force until after it;
otherwise no packet that comes in calls anything."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.abi.numbers import Present
from engine.kernel import attach, filters, libbpf
from engine.kernel.filters import GUARDS, Parent
from engine.kernel.gate import KernelGate
from engine.kernel.keeper import Keeper
from engine.kernel.links import Known, What
from engine.kernel.netlink import netlink
from engine.kernel.programs import SCHED_CLS
from engine.runtime.control import ask
from tests.kernel.host import Host, awaited
from tests.kernel.lab import DEVICE, FAR_DEVICE, INSIDE, OUTSIDE, Lab
from tests.kernel.load import Loop
from tests.kernel.test_lifecycle import foreign_program
from tests.kernel.test_step_the_swap import stepping
from tests.support.netns import Namespace, join

SERVED, REJECTED, FIRST_PORT = 7500, 7501, 10000
OUTWARD = ["gate_egress"]
BOTH = sorted(GUARDS)
POLICY = {
    "sallyport.rego": 'package sallyport\n\ndefault_verdict := "allow"\n',
    "rules/rejected/rejected.rego": (
        "package sallyport.rules.rejected\n\n"
        'scope := {"dest"}\n\n'
        f'reject contains "not there" if input.dest.port == {REJECTED}\n'
    ),
}
INBOUND = {"sallyport.rego": f'{POLICY["sallyport.rego"]}\ninbound_verdict := "deny"\n'}
READS_NAMES = {
    "rules/rejected/rejected.rego": (
        "package sallyport.rules.rejected\n\n"
        'scope := {"dest_names"}\n\n'
        'deny contains "not this name" if "bad.example" in input.dest_names\n'
    )
}
# From a port of its own and with its number in it: what arrives tells when it was sent.
_COMING = f"""
import select
u = udp()
while going():
    s = tcp()
    s.bind(({OUTSIDE!r}, {FIRST_PORT} + n))
    s.setblocking(False)
    try:
        s.connect(({INSIDE!r}, {SERVED}))
    except BlockingIOError:
        select.select([], [s], [], 0.005)
    except OSError:
        pass
    s.close()
    u.sendto(struct.pack("=Q", n), ({INSIDE!r}, {SERVED}))
"""
_TAKE = f"""
import select
l, u = listening({INSIDE!r}, {SERVED}), bound({INSIDE!r}, {SERVED})
arrived = set()
going = True
while going:
    for s in select.select([sys.stdin.buffer.raw, l, u], [], [])[0]:
        if s is sys.stdin.buffer.raw:
            going = False
        elif s is l:
            s, (_, port) = l.accept()
            s.close()
            arrived.add(("tcp", port - {FIRST_PORT}))
        else:
            arrived.add(("udp", struct.unpack("=Q", u.recv(8))[0]))
"""
_SOL_PACKET, _PACKET_STATISTICS, _SO_ATTACH_FILTER = 263, 6, 26


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host(POLICY)
    try:
        yield host
    finally:
        host.close()


class Stream:
    """Connections and datagrams that keep coming from outside, numbered."""

    def __init__(self, host: Host) -> None:
        self._server = host.agent()
        self._server.start(_TAKE)
        self._loop = Loop(host.agent(outside=True), _COMING, 0, host.work / "coming")
        self.more = self._loop.more
        self.number = self._loop.rounds

    def arrived(self) -> dict[str, set[int]]:
        """End it; return the numbers of what arrived."""
        self._loop.stop()
        self._server.start("0")
        for _ in range(2):
            self._server.result()
        seen = {(kind, number) for kind, number in self._server.do("arrived")}
        return {kind: {number for each, number in seen if each == kind} for kind in ("tcp", "udp")}


def reloaded(host: Host, files: dict[str, str]) -> dict[str, Any]:
    """Have other files judged by; return what the engine answers, and its status."""
    host.write(files)
    answer = ask(host.state, {"command": "reload"})
    return {**answer, "status": host.engine.status()}


def stands(host: Host, wanted: list[str], device: str = DEVICE) -> None:
    awaited(lambda: sorted(host.filters(device)) == wanted, lambda: (host.filters(device), host.engine.told()))


def comes_in(host: Host) -> bool:
    """Does a datagram from outside arrive?"""
    server, client = host.agent(), host.agent(outside=True)
    server.do(f"u = bound({INSIDE!r}, 7000); u.settimeout(1)")
    client.do(f"udp().sendto(b'x', ({INSIDE!r}, 7000))")
    try:
        return bool(server.do("u.recv(1)"))
    except OSError:
        return False
    finally:
        server.do("u.close()")


@contextmanager
def run_counts() -> Iterator[None]:
    """Have the kernel count how often programs run."""
    descriptor = int(ctypes.CDLL("libbpf.so.1").bpf_enable_stats(0))
    assert descriptor >= 0
    try:
        yield
    finally:
        os.close(descriptor)


def ran(pin: Path) -> int:
    descriptor = libbpf.obj_get(pin)
    try:
        text = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
    finally:
        os.close(descriptor)
    return int(dict(line.split(":\t", 1) for line in text.splitlines())["run_cnt"])


def test_what_comes_in_calls_nothing_where_nothing_judges_it(host: Host) -> None:
    host.start()
    stands(host, OUTWARD)
    with run_counts():
        before = [ran(host.pins.programs / name) for name in BOTH]
        assert comes_in(host)
        client, server = host.agent(), host.agent(outside=True)
        server.do(f"l = listening({OUTSIDE!r}, 7100)")
        client.do(f"s = connected({OUTSIDE!r}, 7100)")
        server.do("p = accepted(l)")
        for _ in range(50):
            client.do("s.sendall(bytes(1448))")
            server.do("exactly(p, 1448); p.sendall(b'x')")
            client.do("exactly(s, 1)")
        assert [ran(host.pins.programs / name) for name in BOTH][1] == before[1]
        assert ran(host.pins.programs / BOTH[0]) >= before[0] + 50
    assert host.engine.status()["features"]["what comes in"]["why"].startswith("judged by source alone")


def test_nothing_comes_in_once_a_policy_that_denies_it_is_in_force(host: Host) -> None:
    """A stream across the reload: of what was sent after the answer, nothing arrives, however long the child that
    attaches takes."""
    host.start((DEVICE, "never*"))
    stands(host, OUTWARD)
    stream = Stream(host)
    child = host.engine.child("engine.kernel.keeper")
    os.kill(child, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as aside:
        asked = aside.submit(lambda: (reloaded(host, INBOUND), stream.number()))
        stream.more(10_000)  # far longer than the reload takes, if it does not wait
        os.kill(child, signal.SIGCONT)
        done, last = asked.result()
    stream.more(200)
    arrived = stream.arrived()
    for kind in ("tcp", "udp"):
        assert len(arrived[kind]) >= 30, "the stream proves nothing"
        assert max(arrived[kind]) <= last, kind
    assert "error" not in done, done
    assert sorted(host.filters(DEVICE)) == BOTH
    assert done["status"]["features"]["what comes in"] == {"state": "active", "why": "judged by the policy's rules"}
    # Back again, and once more: what was taken away comes back in time each time.
    reloaded(host, POLICY)
    assert comes_in(host)
    stands(host, OUTWARD)
    reloaded(host, INBOUND)
    assert not comes_in(host)
    assert sorted(host.filters(DEVICE)) == BOTH
    assert not host.engine.lines("CRITICAL", "filter of the gate taken off")


def test_a_policy_that_reads_names_has_it_too(host: Host) -> None:
    host.start(config='[dns]\nfrom_resolv_conf = false\nresolvers = ["192.0.2.53"]\n')
    stands(host, OUTWARD)
    reloaded(host, READS_NAMES)
    assert sorted(host.filters(DEVICE)) == BOTH
    reloaded(host, POLICY)
    stands(host, OUTWARD)


def occupy(host: Host, device: str) -> Callable[[], bool]:
    """Put somebody else's program into our place at ingress; return what takes it off again."""
    program = foreign_program(SCHED_CLS, -1)
    theirs = int(libbpf.program_info(program).id)

    def put() -> None:
        with netlink("test") as ip:
            index = attach.interface_index(device)
            filters.attach_filter(ip, index, Parent.INGRESS, program, "foreign", frozenset({theirs}))

    def take() -> bool:
        with netlink("test") as ip:
            return filters.detach_filter(ip, attach.interface_index(device), Parent.INGRESS, frozenset({theirs}))

    host.inside.call(put)
    os.close(program)
    return lambda: host.inside.call(take)


def test_a_reload_is_refused_where_it_cannot_be_attached(host: Host) -> None:
    """One of two interfaces is in somebody else's hands: the policy before goes on everywhere."""
    join(host.inside, host.outside, "late0", "late0-far", 78)
    host.start((DEVICE, "late*"))
    for device in (DEVICE, "late0"):
        stands(host, OUTWARD, device)
    free = occupy(host, "late0")
    before = host.engine.status()["generation"]
    done = reloaded(host, INBOUND)
    assert done["applied"] is False
    assert "What comes in by late0 cannot be judged" in done["error"]
    assert "TC filter 'foreign' of another program" in done["error"]
    assert "tc filter show dev late0 ingress" in done["error"]
    assert done["status"]["generation"] == before
    assert any("generation 1 stays" in problem for problem in done["status"]["problems"]), done["status"]["problems"]
    assert done["status"]["features"]["what comes in"]["why"].startswith("judged by source alone")
    assert comes_in(host)
    stands(host, OUTWARD)
    assert sorted(host.filters("late0")) == ["foreign", *OUTWARD]
    notes = awaited(lambda: [note for note in host.notes("policy") if note.get("refused")], host.engine.told)
    assert all("What comes in by late0 cannot be judged" in json.dumps(note["error"]) for note in notes)
    assert free()
    assert "error" not in reloaded(host, INBOUND)
    assert host.engine.status()["problems"] == []
    for device in (DEVICE, "late0"):
        assert sorted(host.filters(device)) == BOTH
    assert not comes_in(host)
    assert not host.engine.lines("is not guarded")
    assert not host.engine.lines("filter of the gate taken off")


def test_a_reload_is_refused_where_nobody_can_attach_it(host: Host) -> None:
    """The child that looks after interfaces does not get as far."""
    host.start((DEVICE, "never*"))
    stands(host, OUTWARD)
    elsewhere = host.pins.root / "elsewhere"
    host.pins.programs.rename(elsewhere)
    done = reloaded(host, INBOUND)
    assert done["applied"] is False
    assert f"What comes in by {DEVICE} cannot be judged" in done["error"]
    assert comes_in(host)
    # Not before: the engine sees by itself, too, that the folder has changed.
    elsewhere.rename(host.pins.programs)
    assert "error" not in reloaded(host, INBOUND)
    assert not comes_in(host)


def test_an_interface_that_is_gone_lets_nothing_in(host: Host) -> None:
    """It is no reason to refuse a policy, and has the program when it is back."""
    host.start()
    stands(host, OUTWARD)
    host.inside.ip("link", "del", DEVICE)
    assert "error" not in reloaded(host, INBOUND)
    join(host.inside, host.outside, DEVICE, FAR_DEVICE)
    host.engine.tells(f"interface {DEVICE} is guarded")
    assert sorted(host.filters(DEVICE)) == BOTH
    assert not comes_in(host)


def test_one_that_appears_has_what_is_wanted_at_that_moment(host: Host) -> None:
    host.start((DEVICE, "late*"))
    stands(host, OUTWARD)
    join(host.inside, host.outside, "late1", "late1-far", 79)
    host.engine.tells("interface late1 is guarded")
    assert sorted(host.filters("late1")) == OUTWARD
    reloaded(host, INBOUND)
    assert sorted(host.filters("late1")) == BOTH
    join(host.inside, host.outside, "late2", "late2-far", 80)
    host.engine.tells("interface late2 is guarded")
    assert sorted(host.filters("late2")) == BOTH
    # Taken off by somebody while it is needed: put back, and told.
    subprocess.run(["tc", "-n", host.inside.name, "filter", "del", "dev", "late2", "ingress"], check=True)
    host.engine.tells("CRITICAL", "interface late2 had a filter of the gate taken off", "without gate_ingress")
    stands(host, BOTH, "late2")


STEPS = ("set_config", "set_plan", "set_generation", "after")


@pytest.mark.parametrize("step", STEPS)
def test_an_engine_killed_at_a_step_leaves_the_old_policy_or_the_new_one(host: Host, step: str) -> None:
    steps_path = str(host.work / "steps")
    host.start(module=("tests.kernel.stepping", steps_path))
    stands(host, OUTWARD)
    writes: list[str] = []
    with stepping(host) as steps:
        host.write(INBOUND)
        for write in steps:
            if write == step or (step == "after" and "set_generation" in writes):
                host.engine.kill()
                break
            writes.append(write)
    assert comes_in(host) is ("set_generation" not in writes)
    assert sorted(host.filters(DEVICE)) == BOTH
    stream = Stream(host) if "set_generation" in writes else None
    host.start()
    if stream is not None:
        stream.more(100)
        assert stream.arrived() == {"tcp": set(), "udp": set()}
    assert not comes_in(host)


def test_a_dead_engine_that_judges_what_comes_in_keeps_its_filter(host: Host) -> None:
    host.write(INBOUND)
    host.start()
    stream = Stream(host)
    stream.more(50)
    host.engine.kill()
    stream.more(50)
    assert sorted(host.filters(DEVICE)) == BOTH
    host.start()
    stream.more(50)
    assert stream.arrived() == {"tcp": set(), "udp": set()}


def test_what_a_dead_engine_asked_for_is_not_done(host: Host) -> None:
    """Its child would take the program away, and is slower than the next engine."""
    host.start((DEVICE, "never*"))
    stands(host, OUTWARD)
    child = host.engine.child("engine.kernel.keeper")
    os.kill(child, signal.SIGSTOP)
    host.engine.kill()
    awaited(lambda: not Path(f"/proc/{child}").exists() or zombie(child), lambda: "the child lives on")


def zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in ("Z", "X")
    except OSError:
        return True


def test_it_is_not_taken_from_under_the_gate(lab: Lab) -> None:
    """Whatever was asked for: while the gate's own word is that what comes in is its business, the program stays."""
    lab.load()
    gate = KernelGate(lab.pins.maps)
    index = lab.inside.call(lambda: attach.interface_index(DEVICE))
    known = Known([DEVICE], [], {index: DEVICE})

    def look(*, ingress: bool) -> list[What]:
        return lab.inside.call(lambda: [news.what for news in Keeper(lab.pins, known, ingress=ingress).look()])

    def standing() -> list[str]:
        with netlink("test") as ip:
            return filters.missing(ip, index, frozenset(lab.program_ids))

    for bit in (Present.INBOUND, Present.DNS):
        gate.set_config(gate.config()._replace(present=int(bit)))
        assert look(ingress=False) == []
        assert lab.inside.call(standing) == []
    gate.set_config(gate.config()._replace(present=int(Present.SET_DEST)))
    assert look(ingress=False) == []
    assert lab.inside.call(standing) == ["gate_ingress"]
    assert look(ingress=True) == []
    assert lab.inside.call(standing) == []
    gate.close()


def marked(space: Namespace) -> socket.socket:
    """Every frame that comes to the guarded device with a mark, before any program at its ingress sees it."""
    # struct sock_filter: the mark (SKF_AD_MARK), and whether there is one.
    program = ((0x20, 0, 0, 0xFFFFF014), (0x15, 0, 1, 0), (0x06, 0, 0, 0), (0x06, 0, 0, 0x40000))
    code = b"".join(struct.pack("=HBBI", *each) for each in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    opened = space.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
    filter_ = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_)
    opened.bind((DEVICE, 3))
    opened.setblocking(False)
    return opened


@pytest.mark.parametrize("judged", [False, True])
def test_a_refusal_reaches_the_program_and_leaves_no_mark(host: Host, *, judged: bool) -> None:
    """The engine's answers come in through the gate: what marks them is taken off on the way, wherever it ends."""
    host.start()
    stands(host, OUTWARD)
    if judged:
        reloaded(host, INBOUND)
    tap = marked(host.inside)
    client = host.agent()
    with pytest.raises(OSError, match="refused"):
        client.do(f"connected({OUTSIDE!r}, {REJECTED})")
    seen = struct.unpack("=II", tap.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[0]
    tap.close()
    # Where gate_ingress stands it takes the mark off, behind the tap: the tap does see marks.
    assert bool(seen) is judged
    assert host.engine.status()["counters"]["passed_released"] >= 1
