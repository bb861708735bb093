"""What the ring and the process map tell: processes, sockets from open to close, and what was lost."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from engine.abi.numbers import Counter, EventType, FlowFlag
from engine.abi.records import Process
from tests.kernel.lab import ALLOW, DENY, INSIDE, INSIDE6, OUTSIDE, OUTSIDE6, UDP, Lab, Watch, cgroup_id, key
from tests.support.netns import Agent


@pytest.mark.parametrize(("mine", "theirs"), [(INSIDE, OUTSIDE), (INSIDE6, OUTSIDE6)])
@pytest.mark.parametrize("first", ["client", "server"])
def test_a_connection_from_open_to_close(
    watch: Watch, client: Agent, server: Agent, mine: str, theirs: str, first: str
) -> None:
    watch.dest(theirs, 4600, ALLOW)
    server.do(f"l = listening({theirs!r}, 4600)")
    client.do(f"s = connected({theirs!r}, 4600); s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(8))")
    server.do("c = accepted(l); c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(8))")
    client.do("s.sendall(bytes(3000))")
    server.do("exactly(c, 3000); c.sendall(bytes(50000))")
    client.do("exactly(s, 50000)")
    one, other = ("s", "c") if first == "client" else ("c", "s")
    agents = {"s": client, "c": server}
    agents[one].do(f"{one}.close()")
    agents[other].do(f"{other}.recv(1)")
    agents[other].do(f"{other}.close()")

    opened = watch.socket_event(EventType.OPEN, 4600)
    closed = watch.socket_event(EventType.CLOSE, 4600)
    assert opened.cookie == closed.cookie
    for event in (opened, closed):
        assert (event.tuple.src, event.tuple.dst, event.tuple.dport) == (key(mine), key(theirs), 4600)
        assert event.tuple.sport
        assert event.identity.tgid == client.pid
        assert event.identity.cgroup == cgroup_id(watch.lab.cgroup)
    assert closed.opened == opened.opened
    assert opened.opened <= opened.time <= closed.time
    assert closed.bytes_sent() == 3000
    assert closed.bytes_received in {50000, 50001}
    assert closed.segments_out >= 3
    assert closed.segments_in >= 3
    assert not closed.flags & FlowFlag.INBOUND


def test_an_inbound_connection_is_told_as_one(watch: Watch, client: Agent, server: Agent) -> None:
    client.do(f"l = listening({INSIDE!r}, 4601)")
    server.do(f"s = tcp(); s.bind(({OUTSIDE!r}, 4602)); s.connect(({INSIDE!r}, 4601)); s.sendall(bytes(700))")
    client.do("c = accepted(l); exactly(c, 700)")
    opened = watch.socket_event(EventType.OPEN, 4602)
    assert opened.flags & FlowFlag.INBOUND
    assert (opened.tuple.src, opened.tuple.sport, opened.tuple.dst) == (key(INSIDE), 4601, key(OUTSIDE))
    client.do("c.close()")
    closed = watch.socket_event(EventType.CLOSE, 4602)
    assert closed.cookie == opened.cookie
    assert closed.bytes_received == 700


def test_a_refused_connection_opens_and_closes(watch: Watch, client: Agent) -> None:
    watch.dest(OUTSIDE, 4603, ALLOW)
    with pytest.raises(ConnectionRefusedError):
        client.do(f"connected({OUTSIDE!r}, 4603)")
    opened = watch.socket_event(EventType.OPEN, 4603)
    closed = watch.socket_event(EventType.CLOSE, 4603)
    assert closed.cookie == opened.cookie
    assert closed.bytes_sent() == closed.bytes_received == 0


def test_a_mapped_address_is_told_as_what_it_is_on_the_wire(watch: Watch, client: Agent, server: Agent) -> None:
    server.do(f"l = listening({OUTSIDE!r}, 4604)")
    watch.dest(OUTSIDE, 4604, ALLOW)
    client.do(f"s = connected('::ffff:{OUTSIDE}', 4604)")
    event = watch.socket_event(EventType.OPEN, 4604)
    assert (event.tuple.src, event.tuple.dst) == (key(INSIDE), key(OUTSIDE))


def test_a_new_image_is_unknown_again(watch: Watch, client: Agent) -> None:
    """The allow-list by executable must never serve what a program turned itself into."""
    watch.introduce(client, 7)
    before = watch.gate.process(client.pid)
    assert before is not None
    assert before.exe == 7
    watch.forget()  # how the agent itself came to be
    argv = [sys.executable, "-I", "-S", "-c", "import sys; print(('value', 1), flush=True); sys.stdin.read()"]
    client.start(f"os.execv({sys.executable!r}, {argv!r})")
    event = watch.process_event(EventType.EXEC, client.pid)
    after = watch.gate.process(client.pid)
    assert after is not None
    assert after.exe == 0
    assert after.exec_stamp == event.identity.exec_stamp == event.time
    assert after.exec_stamp > before.exec_stamp
    assert event.identity.cgroup == cgroup_id(watch.lab.cgroup)
    client.result()


def test_a_socket_opened_before_the_new_image_keeps_its_opener(watch: Watch, client: Agent, server: Agent) -> None:
    """A stamp, not the process id, says whether the executable looked up since is the one that opened it."""
    client.start(f"s = connected({OUTSIDE!r}, 4605)")
    syn = watch.held()
    assert syn.note.identity.exe == 0
    assert watch.gate.process(client.pid) == Process(syn.note.identity.exec_stamp, 0)
    watch.gate.put_process(client.pid, Process(syn.note.identity.exec_stamp + 1, 9))
    assert watch.held().note.identity.exe == 0, "the SYN again, and the image is another one"
    watch.gate.put_process(client.pid, Process(syn.note.identity.exec_stamp, 7))
    assert watch.held().note.identity.exe == 7


def test_a_process_that_ends_is_forgotten(watch: Watch, client: Agent) -> None:
    watch.introduce(client, 7)
    pid = client.pid
    client.do("0")
    client.close()
    watch.process_event(EventType.EXIT, pid)
    assert watch.gate.process(pid) is None


def test_a_child_is_unknown_until_it_is_looked_up(watch: Watch, client: Agent) -> None:
    watch.introduce(client, 7)
    child = client.do(
        "child = os.fork()\n"
        "if child == 0:\n"
        f"    try: udp().sendto(b'child', ({OUTSIDE!r}, 5500))\n"
        "    finally: os._exit(0)\n"
        "child"
    )
    frame = watch.held()
    assert frame.note.identity.tgid == child
    assert frame.note.identity.exe == 0
    client.do("os.waitpid(child, 0)[1]")
    watch.process_event(EventType.EXIT, child)
    assert watch.gate.process(child) is None


def test_a_thread_is_its_process(watch: Watch, client: Agent) -> None:
    watch.introduce(client, 7)
    client.do(
        f"import threading; t = threading.Thread(target=lambda: udp().sendto(b'x', ({OUTSIDE!r}, 5501)))\n"
        "t.start(); t.join()"
    )
    identity = watch.held().note.identity
    assert identity.tgid == client.pid
    assert identity.tid != client.pid
    assert identity.exe == 7


def test_the_end_of_a_thread_is_no_end_of_the_process(watch: Watch, client: Agent) -> None:
    client.do("import threading; t = threading.Thread(target=lambda: None)\nt.start(); t.join()")
    client.close()
    exits = [watch.process_event(EventType.EXIT, client.pid)]
    assert exits[0].identity.tid == client.pid
    assert not any(
        getattr(event, "identity", None) and event.identity.tgid == client.pid and event.type == EventType.EXIT
        for event in watch.events()
    )


@pytest.fixture(scope="module")
def small() -> Iterator[Watch]:
    """A gate whose ring holds one page of events."""
    lab = Lab()
    try:
        lab.load(sizes={"EVENT_BYTES": 4096})
        watch = Watch(lab)
        yield watch
        watch.close()
    finally:
        lab.close()


def test_what_a_full_ring_loses_is_counted(small: Watch) -> None:
    small.reset()
    client = small.lab.agent()
    for index in range(40):
        small.dest(OUTSIDE, 4700 + index, DENY)
    client.do(
        f"for port in range(4700, 4740):\n    try: connected({OUTSIDE!r}, port)\n    except PermissionError: pass"
    )
    counted = small.counted()
    assert counted[Counter.REFUSED_CONNECT] == 40
    kept = [event for event in small.events() if event.type == EventType.REFUSED]
    assert 0 < len(kept) < 40
    # Other processes of this machine start and end meanwhile: their events are lost to the same counter.
    assert counted[Counter.LOST_EVENT] >= 40 - len(kept)
    small.lab.dismiss()


def test_after_a_loss_the_ring_goes_on(small: Watch) -> None:
    small.reset()
    client = small.lab.agent()
    small.dest(OUTSIDE, 4750, DENY)
    with pytest.raises(PermissionError):
        client.do(f"connected({OUTSIDE!r}, 4750)")
    assert small.verdict_event(EventType.REFUSED).tuple.dport == 4750
    small.lab.dismiss()


def test_what_is_told_while_the_ring_is_read_waits_for_the_next_reading(watch: Watch, client: Agent) -> None:
    """Else who reads beside a program that never rests would never be done."""
    watch.dest(OUTSIDE, 4609, DENY, UDP)
    watch.forget()
    told: list[bytes] = []

    def refused_again(record: bytes) -> None:
        if int.from_bytes(record[8:12], "little") != EventType.REFUSED:
            return  # of another process of this machine
        told.append(record)
        assert len(told) < 10
        with pytest.raises(PermissionError):
            client.do(f"udp().sendto(b'x', ({OUTSIDE!r}, 4609))")

    with pytest.raises(PermissionError):
        client.do(f"udp().sendto(b'x', ({OUTSIDE!r}, 4609))")
    for readings in (1, 2, 3):
        watch.ring.drain(refused_again, watch.ring.most)
        assert len(told) == readings
