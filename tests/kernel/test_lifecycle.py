"""Loading, replacing, failing and taking down: whole or not at all, and nothing left behind."""

from __future__ import annotations

import ctypes
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.abi.numbers import Counter, Mode
from engine.errors import InterfaceError, KernelError
from engine.kernel import attach, filters, libbpf
from engine.kernel.detach import detach
from engine.kernel.gate import KernelGate
from engine.kernel.netlink import netlink
from engine.kernel.pins import Record
from tests.kernel.lab import (
    ALLOW,
    DENY,
    DEVICE,
    FAR_DEVICE,
    OUTSIDE,
    UDP,
    UNDECIDED,
    Lab,
    Watch,
    await_,
    program_alive,
)
from tests.support.netns import Agent, Wire

BUDGET = 200_000
"""Instructions that the verifier may walk for one program: a fifth of its limit, room for other kernels' verifiers."""


def foreign_program(kind: int, value: int) -> int:
    """Load a program that is not ours; return its fd."""
    code = ctypes.create_string_buffer(
        (b"\xb7\0\0\0" + value.to_bytes(4, "little", signed=True)) + b"\x95" + bytes(7), 16
    )
    library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    fd = int(library.bpf_prog_load(kind, b"foreign", b"GPL", code, ctypes.c_size_t(2), None))
    assert fd >= 0, ctypes.get_errno()
    return fd


def put_filter(index: int, parent: filters.Parent, program: int, name: str, ours: frozenset[int]) -> None:
    with netlink("test") as ip:
        filters.attach_filter(ip, index, parent, program, name, ours)


def take_filter(index: int, parent: filters.Parent, ours: frozenset[int]) -> bool:
    with netlink("test") as ip:
        return filters.detach_filter(ip, index, parent, ours)


def test_every_program_loads_within_the_budget(lab: Lab) -> None:
    loaded = lab.load()
    assert set(loaded.programs) == {pin.name for pin in lab.pins.programs.glob("*")}
    for name, facts in loaded.programs.items():
        assert 0 < facts["verified"] < BUDGET, name
    assert not loaded.taken_over
    record = Record.read(lab.pins.record)
    assert (record.interfaces, record.cgroup, record.netns) == (
        [DEVICE], str(lab.cgroup), lab.inside.path.stat().st_ino,
    )  # fmt: skip


def test_a_fresh_gate_lets_everything_pass_until_it_is_configured(lab: Lab) -> None:
    """Between the attachment and the first configuration nobody may be cut off."""
    lab.load()
    server, client = lab.agent(outside=True), lab.agent()
    server.do(f"l = listening({OUTSIDE!r}, 4900)")
    client.do(f"s = connected({OUTSIDE!r}, 4900); s.sendall(b'x')")
    assert server.do("exactly(accepted(l), 1)") == b"x"


@pytest.mark.parametrize(
    ("what", "changes", "kind", "says"),
    [
        ("interface", {"interfaces": [DEVICE, "missing0"]}, InterfaceError, "missing0"),
        ("interface without a link header", {"interfaces": ["tunnel0"]}, InterfaceError, "no Ethernet header"),
        ("control group", {"cgroup": "/sys/fs/cgroup/is/not/there"}, KernelError, "control group"),
        ("no control group", {"cgroup": "/tmp"}, KernelError, "no cgroup v2 directory"),
        ("map size", {"sizes": {"EVENT_BYTES": 5000}}, KernelError, "did not load"),
    ],
)
def test_a_load_that_fails_leaves_nothing(
    lab: Lab, what: str, changes: dict[str, object], kind: type[Exception], says: str
) -> None:
    if "link header" in what:
        lab.inside.ip("tuntap", "add", "tunnel0", "mode", "tun")
    with pytest.raises(kind, match=says):
        lab.load(**changes)
    assert lab.leftovers() == []


def test_a_foreign_filter_in_our_place_is_left_alone(lab: Lab) -> None:
    fd = foreign_program(3, -1)
    lab.inside.ip("link", "add", "second", "type", "veth", "peer", "name", "second-far")
    index = lab.inside.call(lambda: attach.interface_index("second"))
    number = int(libbpf.program_info(fd).id)
    lab.inside.call(lambda: put_filter(index, filters.Parent.EGRESS, fd, "foreign", frozenset({number})))
    with pytest.raises(InterfaceError, match="of another program"):
        lab.load(interfaces=[DEVICE, "second"])
    assert lab.leftovers() == []
    shown = subprocess.run(
        ["tc", "-n", lab.inside.name, "filter", "show", "dev", "second", "egress"], capture_output=True, text=True,
        check=True,
    ).stdout  # fmt: skip
    assert "foreign" in shown


def test_a_foreign_xdp_program_is_left_alone(lab: Lab) -> None:
    fd = foreign_program(6, 2)
    lab.load()
    index = lab.inside.call(lambda: attach.interface_index(DEVICE))
    lab.inside.call(lambda: attach.attach_xdp(index, fd, "generic"))
    with pytest.raises(InterfaceError, match="not ours"):
        lab.load()
    assert not lab.detach().problems
    assert "prog/xdp" in lab.inside.ip("-details", "link", "show", DEVICE)
    lab.inside.call(lambda: attach.detach_xdp(index, frozenset({int(libbpf.program_info(fd).id)})))


def test_a_replacement_keeps_the_maps_and_leaks_nothing(lab: Lab) -> None:
    lab.load()
    first = set(lab.program_ids)
    watch = Watch(lab)
    watch.reset()
    watch.dest(OUTSIDE, 5600, DENY, UDP)
    client, near = lab.agent(), Wire(lab.inside, DEVICE)
    far = Wire(lab.outside, FAR_DEVICE)
    # A socket without storage: only the gate's own maps stand between it and the wire.
    stranger = lab.agent(known=False)
    stranger.start(
        f"import select; s = udp(); s.connect(({OUTSIDE!r}, 5600)); sent = 0\n"
        "while not select.select([sys.stdin.buffer.raw], [], [], 0)[0]:\n"
        "    s.send(b'leak'); sent += 1\n"
        "sent"
    )
    for _ in range(2):
        assert lab.load().taken_over
    stranger.start("0")
    sent = stranger.result()
    stranger.result()
    assert not any(b"leak" in frame for frame in far.until_mark(near.mark()))
    counted = watch.counted()
    assert counted[Counter.DROPPED_DEST] + counted.get(Counter.DROPPED_FLOW, 0) == sent
    assert watch.gate.generation() == watch.generation
    with pytest.raises(PermissionError):
        client.do(f"udp().connect(({OUTSIDE!r}, 5600))")
    await_(lambda: not any(map(program_alive, first)), lambda: "the programs before are still there")
    for opened in (near, far, watch):
        opened.close()


def test_a_replacement_brings_the_sources_along(lab: Lab) -> None:
    lab.load()
    lab.guard_sources()
    loaded = lab.load()
    assert loaded.xdp == {DEVICE: "generic"}
    assert f"prog/xdp id {loaded.programs['gate_source']['id']}" in lab.inside.ip("-details", "link", "show", DEVICE)


def test_a_replacement_may_move_to_another_control_group(lab: Lab) -> None:
    """Whoever restarts with another --cgroup is guarded there, not where the engine before was told."""
    lab.load()
    below = lab.cgroup / "below"
    below.mkdir()
    lab.load(cgroup=str(below))
    watch = Watch(lab)
    watch.reset()
    inner, outer = Agent(lab.inside, below), lab.agent()
    inner.do(f"udp().sendto(b'inner', ({OUTSIDE!r}, 5601))")
    assert watch.held().note.identity.tgid == inner.pid
    outer.do(f"udp().sendto(b'outer', ({OUTSIDE!r}, 5602))")
    assert watch.held().note.identity.tgid == 0
    inner.close()
    watch.close()
    await_(lambda: _gone(below), lambda: f"{below} is still in use")


def _gone(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def test_a_replacement_that_fails_half_way_can_be_tried_again(lab: Lab) -> None:
    """The programs that are attached must still be known as ours, or the gate could be neither replaced nor removed."""
    lab.load()
    fd = foreign_program(3, -1)
    loaded = lab.loaded
    assert loaded is not None
    number = int(libbpf.program_info(fd).id)
    held = loaded.held_ifindex
    ours = frozenset({loaded.programs["gate_discard"]["id"], number})
    lab.inside.call(lambda: put_filter(held, filters.Parent.INGRESS, fd, "foreign", ours))
    with pytest.raises(InterfaceError):
        lab.load()
    lab.inside.call(lambda: take_filter(held, filters.Parent.INGRESS, frozenset({number})))
    assert lab.load().taken_over


def test_a_replacement_that_fails_half_way_can_be_taken_down(lab: Lab) -> None:
    lab.load()
    fd = foreign_program(3, -1)
    loaded = lab.loaded
    assert loaded is not None
    ours = frozenset({loaded.programs["gate_discard"]["id"], int(libbpf.program_info(fd).id)})
    held = loaded.held_ifindex
    lab.inside.call(lambda: put_filter(held, filters.Parent.INGRESS, fd, "foreign", ours))
    with pytest.raises(InterfaceError):
        lab.load()
    assert not lab.detach().problems
    await_(lambda: not lab.leftovers(), lambda: f"left behind: {lab.leftovers()}")


def test_an_interface_left_out_is_let_go(lab: Lab) -> None:
    lab.inside.ip("link", "add", "second", "type", "veth", "peer", "name", "second-far")
    lab.load(interfaces=[DEVICE, "second"])
    lab.load(interfaces=[DEVICE])
    shown = subprocess.run(
        ["tc", "-n", lab.inside.name, "filter", "show", "dev", "second", "egress"], capture_output=True, text=True,
        check=True,
    ).stdout  # fmt: skip
    assert "gate_egress" not in shown


def test_detach_from_another_namespace(lab: Lab) -> None:
    """`panic` is typed wherever the person happens to be; close() asserts that nothing is left."""
    lab.load()
    lab.guard_sources()
    done = lab.outside.call(lambda: detach(lab.pins))
    assert done.problems == []
    assert done.interfaces == [str(lab.inside.call(lambda: attach.interface_index(DEVICE)))]
    await_(lambda: not lab.leftovers(), lambda: f"left behind: {lab.leftovers()}")


def test_detach_without_the_record_and_twice(lab: Lab) -> None:
    lab.load()
    lab.pins.record.unlink()
    assert lab.inside.call(lambda: detach(lab.pins)).problems == []
    await_(lambda: not lab.leftovers(), lambda: f"left behind: {lab.leftovers()}")
    assert lab.detach().interfaces == []


def test_detach_with_a_damaged_record_says_so_and_goes_on(lab: Lab) -> None:
    lab.load()
    lab.pins.record.write_text(json.dumps({"what": "is this"}))
    problems = lab.inside.call(lambda: detach(lab.pins)).problems
    assert len(problems) == 1
    assert "damaged" in problems[0]
    await_(lambda: not lab.leftovers(), lambda: f"left behind: {lab.leftovers()}")


def test_detach_lets_go_of_what_is_under_way(lab: Lab) -> None:
    lab.load()
    watch = Watch(lab)
    watch.reset()
    client, server = lab.agent(), lab.agent(outside=True)
    server.do(f"l = listening({OUTSIDE!r}, 4901)")
    watch.dest(OUTSIDE, 4901, UNDECIDED)
    client.do(f"s = connected({OUTSIDE!r}, 4901); s.sendall(b'held')")
    watch.held()
    watch.close()
    assert not lab.detach().problems
    assert server.do("exactly(accepted(l), 4)") == b"held"


def test_an_interface_that_is_gone_is_no_problem(lab: Lab) -> None:
    lab.load()
    lab.inside.ip("link", "del", DEVICE)
    done = lab.detach()
    lab.inside.ip("link", "add", DEVICE, "type", "veth", "peer", "name", "again")
    assert not lab.pins.root.exists()
    assert done.problems == [] or all("interface" in problem for problem in done.problems)


@pytest.fixture
def other() -> Iterator[Lab]:
    second = Lab()
    yield second
    second.close()


def test_two_gates_side_by_side(lab: Lab, other: Lab) -> None:
    lab.load()
    other.load()
    first, second = Watch(lab), Watch(other)
    for watch in (first, second):
        watch.reset()
    first.dest(OUTSIDE, 4902, DENY)
    second.dest(OUTSIDE, 4902, ALLOW)
    server = other.agent(outside=True)
    server.do(f"l = listening({OUTSIDE!r}, 4902)")
    with pytest.raises(PermissionError):
        lab.agent().do(f"connected({OUTSIDE!r}, 4902)")
    client = other.agent()
    client.do(f"s = connected({OUTSIDE!r}, 4902)")
    assert (set(first.counted()), set(second.counted())) == ({Counter.REFUSED_CONNECT}, {Counter.HIT_DEST})
    first.close()
    assert not lab.detach().problems
    client.do("s.sendall(b'x')")
    assert server.do("exactly(accepted(l), 1)") == b"x"
    assert KernelGate(other.pins.maps).config().mode == Mode.ENFORCE
    second.close()
