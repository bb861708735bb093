"""Programs that are kept from one start to the next: the same ones, from no one else; what is lost where they fail."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engine.errors import KernelError
from engine.kernel import bpf, cache, libbpf
from engine.kernel.objects import Code, MapLayout, from_json, to_json
from engine.kernel.pins import BPFFS
from engine.kernel.programs import PROGRAMS
from tests.kernel.lab import ALLOW, DENY, LOADED, OUTSIDE, ROOT, Lab, Watch

EXIT = bytes([0x95, 0, 0, 0, 0, 0, 0, 0])
SCHED_CLS = 3


def tags(lab: Lab) -> dict[str, str]:
    """The kernel's digest of each program's instructions, descriptors of maps left out."""
    found = {}
    for pin in lab.pins.programs.iterdir():
        fd = libbpf.obj_get(pin)
        found[pin.name] = bytes(libbpf.program_info(fd).tag).hex()
        os.close(fd)
    return found


_BY_BCC = """
import json, sys
from engine.kernel import compiler, headers, libbpf
from engine.kernel.programs import PROGRAMS, SOCK_OPS, SOURCES
tree = headers.find()
if tree: compiler.os.environ["BCC_KERNEL_SOURCE"] = str(tree)
from bcc import BPF
found, modules = {}, []
compiler._part_from_the_host()
for source in {program.source for program in PROGRAMS}:
    compiler._mount("bpf", str(compiler.BPFFS), "bpf")
    modules.append(BPF(src_file=str(SOURCES / source), cflags=compiler.flags({})))
    for program in PROGRAMS:
        if program.source == source:
            more = {"attach_type": program.attach_type} if program.attach_type and program.type != SOCK_OPS else {}
            fd = modules[-1].load_func(program.name, program.type, **more).fd
            found[program.name] = bytes(libbpf.program_info(fd).tag).hex()
print(json.dumps(found))
"""


def test_kept_programs_are_what_bcc_itself_would_load(lab: Lab) -> None:
    """Compiled in parts, taken apart, kept, read, bound to other maps and loaded by another hand: not one instruction
    may differ from BCC's own way from the whole file to the kernel."""
    before = in_sight()
    assert lab.load(programs="compiled").compiled_because == "nothing is kept yet"
    assert in_sight() == before
    compiled = tags(lab)
    assert not lab.detach().problems
    assert lab.load(programs="kept").compiled_because == ""
    assert tags(lab) == compiled
    done = subprocess.run(
        [sys.executable, "-c", _BY_BCC], cwd=ROOT, capture_output=True, text=True, check=True, timeout=LOADED
    )
    assert json.loads(done.stdout) == compiled
    assert set(compiled) == {program.name for program in PROGRAMS}


def test_kept_programs_guard(lab: Lab) -> None:
    lab.load(programs="compiled")
    assert not lab.detach().problems
    lab.load(programs="kept")
    watch = Watch(lab)
    watch.reset()
    watch.dest(OUTSIDE, 4950, ALLOW)
    watch.dest(OUTSIDE, 4951, DENY)
    server, client = lab.agent(outside=True), lab.agent()
    server.do(f"l = listening({OUTSIDE!r}, 4950)")
    client.do(f"s = connected({OUTSIDE!r}, 4950); s.sendall(b'x')")
    assert server.do("exactly(accepted(l), 1)") == b"x"
    with pytest.raises(PermissionError):
        client.do(f"connected({OUTSIDE!r}, 4951)")
    client.do(f"udp().sendto(b'new', ({OUTSIDE!r}, 4952))")
    assert watch.held().note.identity.tgid == client.pid
    watch.close()


def test_a_start_over_a_standing_gate_needs_no_compiler(lab: Lab, tmp_path: Path) -> None:
    """bcc may be gone by then: it is not even looked for."""
    lab.load(programs="compiled")
    (tmp_path / "bcc.py").write_text("raise ImportError('there is no bcc')\n")
    nobody = {"PYTHONPATH": str(tmp_path)}
    assert lab.load(programs="kept", env=nobody).taken_over
    (lab.state / cache.NAME).unlink()
    with pytest.raises(KernelError, match="module bcc is not available"):
        lab.load(programs="compiled", env=nobody)


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def given_away(file: Path) -> None:
    os.chown(file, 65534, 65534)


def opened_up(file: Path) -> None:
    file.chmod(0o644)


@pytest.mark.parametrize(
    ("harm", "says"),
    [(flipped, "damaged"), (given_away, "belongs to user 65534"), (opened_up, "open to others")],
)  # fmt: skip
def test_a_file_that_cannot_be_trusted_is_replaced_by_one_that_can(
    lab: Lab, harm: Callable[[Path], None], says: str
) -> None:
    lab.load()
    file = lab.state / cache.NAME
    harm(file)
    loaded = lab.load(programs="compiled")
    assert says in loaded.compiled_because
    assert loaded.not_kept_because == ""
    assert (file.stat().st_uid, file.stat().st_mode & 0o777) == (0, 0o600)
    assert lab.load(programs="kept").compiled_because == ""


def test_where_programs_cannot_be_kept_the_start_says_so_and_goes_on(lab: Lab) -> None:
    lab.state.chmod(0o755)
    loaded = lab.load(programs="compiled")
    assert "open to others" in loaded.compiled_because
    assert "open to others" in loaded.not_kept_because
    assert not (lab.state / cache.NAME).exists()


def rewritten(lab: Lab, change: Callable[[Code], Code]) -> None:
    """Change the kept programs as somebody could who can write there, digest and all."""
    file = lab.state / cache.NAME
    document = json.loads(file.read_bytes().partition(b"\n")[2])
    units = tuple(
        replace(unit, programs=tuple(map(change, unit.programs))) for unit in from_json(document["units"].encode())
    )
    rest = json.dumps({**document, "units": to_json(units).decode()}).encode()
    file.write_bytes(b"sallyport kernel programs " + hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest)


def test_kept_programs_that_the_kernel_refuses_are_compiled_again(lab: Lab) -> None:
    """Under the same release there may be another kernel, whose verifier says no: that must not end all starts."""
    lab.load()
    rewritten(lab, lambda code: replace(code, instructions=EXIT, maps=()) if code.name == "gate_discard" else code)
    loaded = lab.load(programs="compiled")
    assert loaded.compiled_because == "the kernel refused what is kept"
    assert loaded.taken_over
    assert lab.load(programs="kept").compiled_because == ""


def test_a_standing_map_of_another_layout_is_refused_by_name(lab: Lab) -> None:
    """BCC would take it over, and the programs would read values of another size."""
    lab.pins.make()
    fd = bpf.create_map(MapLayout("heartbeat", 2, 4, 16, 1, 0, pinned=True))
    libbpf.obj_pin(fd, lab.pins.maps / "heartbeat")
    os.close(fd)
    with pytest.raises(KernelError, match=r"standing map heartbeat has another layout .* value 16 and not 8") as caught:
        lab.load()
    assert "sallyport panic" in caught.value.hint
    assert lab.leftovers() == []


def test_another_bound_takes_effect_after_a_full_stop(lab: Lab) -> None:
    lab.load()
    assert lab.load(programs="compiled", sizes={"FLOW_VERDICTS_MAX": 4096}).taken_over
    assert entries(lab, "flow_verdicts") == 65536
    assert not lab.detach().problems
    lab.load(programs="kept", sizes={"FLOW_VERDICTS_MAX": 4096})
    assert entries(lab, "flow_verdicts") == 4096


def entries(lab: Lab, name: str) -> int:
    fd = libbpf.obj_get(lab.pins.maps / name)
    try:
        return int(libbpf.map_info(fd).max_entries)
    finally:
        os.close(fd)


def test_what_the_verifier_says_is_told() -> None:
    with pytest.raises(bpf.VerifierError, match="broken: Permission denied") as caught:
        bpf.load_program(Code("broken", EXIT, ()), SCHED_CLS, 0, "GPL", {})
    assert "R0 !read_ok" in caught.value.log


def test_whoever_compiles_leaves_nothing_behind(lab: Lab) -> None:
    """Its maps and its mounts go with its namespace, however it ends."""
    before = in_sight()
    process = subprocess.Popen(
        [sys.executable, "-m", "engine.kernel.process", json.dumps({"state_dir": str(lab.state), "sizes": {}})],
        stdin=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.close()  # no order came
    assert process.wait(timeout=60) == 0
    assert in_sight() == before
    assert list(lab.state.iterdir()) == []


def in_sight() -> tuple[list[str], set[str]]:
    """What is mounted where the compiler mounts, and what is pinned where it pins."""
    mounts = [
        line for line in Path("/proc/self/mounts").read_text().splitlines() if "/bpf" in line or "kallsyms" in line
    ]
    return mounts, {path.name for path in BPFFS.iterdir()} - {"sallyport"}
