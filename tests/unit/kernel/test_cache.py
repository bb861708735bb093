"""Kept programs: used when they are what would be compiled now and nobody else can have written them, else not."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.abi import numbers
from engine.kernel import cache
from engine.kernel.objects import Code, MapLayout, Unit
from engine.kernel.programs import PROGRAMS, SOURCES

UNITS = tuple(
    Unit(
        source, "GPL", (MapLayout("table", 1, 4, 8, 100, 1, pinned=True),),
        tuple(Code(each.name, bytes(16), ((0, "table"),)) for each in PROGRAMS if each.source == source),
    )
    for source in sorted({program.source for program in PROGRAMS})
)  # fmt: skip


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "headers"
    for name in ("include/uapi/linux/bpf.h", "include/generated/utsrelease.h"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def tool(tmp_path: Path) -> Path:
    path = tmp_path / "libbcc.so.0.26.0"
    path.write_bytes(b"a compiler")
    return path


@pytest.fixture
def kept(state: Path, tree: Path, tool: Path) -> dict[str, str]:
    """Keep UNITS for this very machine; return what they are for."""
    made_for = cache.purpose({"HELD_MAX": 7}, tree)
    cache.store(state, made_for, [str(tool)], UNITS)
    return made_for


def test_what_was_kept_is_found_again(state: Path, kept: dict[str, str], tree: Path) -> None:
    assert cache.load(state, cache.purpose({"HELD_MAX": 7}, tree)) == UNITS
    facts = (state / cache.NAME).stat()
    assert (facts.st_mode & 0o777, facts.st_uid) == (0o600, os.geteuid())
    assert [path.name for path in state.iterdir()] == [cache.NAME]


def test_nothing_is_kept_yet(state: Path) -> None:
    with pytest.raises(cache.NotUsableError, match="nothing is kept yet"):
        cache.load(state, {})


def test_there_is_no_state_directory_yet(state: Path) -> None:
    with pytest.raises(cache.NotUsableError, match="no state directory yet"):
        cache.load(state / "missing", {})


# ---- made for something else


def other_kernel(patch: pytest.MonkeyPatch, sources: Path, tree: Path) -> None:
    patch.setattr(platform, "release", lambda: "6.99.0-other")


def other_machine(patch: pytest.MonkeyPatch, sources: Path, tree: Path) -> None:
    patch.setattr(platform, "machine", lambda: "riscv64")


def other_layout(patch: pytest.MonkeyPatch, sources: Path, tree: Path) -> None:
    patch.setattr(cache, "ABI", numbers.ABI + 1)


def other_form(patch: pytest.MonkeyPatch, sources: Path, tree: Path) -> None:
    patch.setattr(cache, "FORMAT", cache.FORMAT + 1)


def changed_header(patch: pytest.MonkeyPatch, sources: Path, tree: Path) -> None:
    with (sources / "include" / "packet.h").open("a") as header:
        header.write("\n")


def changed_program(patch: pytest.MonkeyPatch, sources: Path, tree: Path) -> None:
    with (sources / "gate.c").open("a") as file:
        file.write("\n")


def added_header(patch: pytest.MonkeyPatch, sources: Path, tree: Path) -> None:
    (sources / "include" / "new.h").touch()


def changed_kernel_header(patch: pytest.MonkeyPatch, sources: Path, tree: Path) -> None:
    (tree / "include/uapi/linux/bpf.h").write_text("newer")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (other_kernel, "another kernel"), (other_machine, "another architecture"), (other_layout, "another map layout"),
        (other_form, "another form"), (changed_header, "another C sources"), (changed_program, "another C sources"),
        (added_header, "another C sources"), (changed_kernel_header, "another kernel headers"),
    ],
)  # fmt: skip
def test_what_was_made_for_something_else_is_not_used(
    state: Path, tree: Path, tool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pytest.MonkeyPatch, Path, Path], None], says: str,
) -> None:  # fmt: skip
    sources = tmp_path / "bpf"
    shutil.copytree(SOURCES, sources)
    monkeypatch.setattr(cache, "SOURCES", sources)
    cache.store(state, cache.purpose({}, tree), [str(tool)], UNITS)
    assert cache.load(state, cache.purpose({}, tree)) == UNITS
    change(monkeypatch, sources, tree)
    with pytest.raises(cache.NotUsableError, match=says):
        cache.load(state, cache.purpose({}, tree))


def test_other_sizes_are_another_purpose(state: Path, kept: dict[str, str], tree: Path) -> None:
    with pytest.raises(cache.NotUsableError, match="another compiler flags"):
        cache.load(state, cache.purpose({"HELD_MAX": 8}, tree))


def test_another_version_of_the_compiler_is_noticed(state: Path, kept: dict[str, str], tool: Path) -> None:
    before = tool.stat()
    tool.write_bytes(b"z compiler")
    os.utime(tool, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(cache.NotUsableError, match="another compiler"):
        cache.load(state, kept)


def test_a_compiler_beside_the_one_before_is_noticed(state: Path, kept: dict[str, str], tool: Path) -> None:
    (tool.parent / "libbcc.so.0.30.0").touch()
    with pytest.raises(cache.NotUsableError, match="another compiler"):
        cache.load(state, kept)


def test_a_compiler_that_is_gone_is_noticed(state: Path, kept: dict[str, str], tool: Path) -> None:
    tool.unlink()
    with pytest.raises(cache.NotUsableError, match="another compiler"):
        cache.load(state, kept)


def test_programs_that_the_table_does_not_know_are_not_used(state: Path, tree: Path, tool: Path) -> None:
    made_for = cache.purpose({}, tree)
    cache.store(state, made_for, [str(tool)], UNITS[1:])
    with pytest.raises(cache.NotUsableError, match="other programs"):
        cache.load(state, made_for)


# ---- somebody else's hand, or the disk's


def test_a_directory_that_others_may_read_is_not_trusted(state: Path, kept: dict[str, str], tool: Path) -> None:
    state.chmod(0o750)
    with pytest.raises(cache.NotUsableError, match=r"open to others \(mode 0750\): chmod"):
        cache.load(state, kept)
    with pytest.raises(cache.NotUsableError, match="open to others"):
        cache.store(state, kept, [str(tool)], UNITS)


@pytest.mark.parametrize("mode", [0o660, 0o604, 0o602])
def test_a_file_that_others_may_touch_is_not_trusted(state: Path, kept: dict[str, str], mode: int) -> None:
    (state / cache.NAME).chmod(mode)
    with pytest.raises(cache.NotUsableError, match="kernel-programs is open to others"):
        cache.load(state, kept)


def test_a_file_of_another_user_is_not_trusted(
    state: Path, kept: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(cache.NotUsableError, match=f"belongs to user {owner}"):
        cache.load(state, kept)


def test_a_link_is_not_followed(state: Path, kept: dict[str, str], tmp_path: Path) -> None:
    (state / cache.NAME).rename(tmp_path / "elsewhere")
    (state / cache.NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(cache.NotUsableError, match="cannot be opened"):
        cache.load(state, kept)


def test_a_pipe_holds_nobody_up(state: Path, kept: dict[str, str]) -> None:
    (state / cache.NAME).unlink()
    os.mkfifo(state / cache.NAME, 0o600)
    with pytest.raises(cache.NotUsableError, match="is no file"):
        cache.load(state, kept)


def test_a_link_in_the_place_of_the_new_file_is_not_written_through(
    state: Path, kept: dict[str, str], tool: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (state / f"{cache.NAME}.new").symlink_to(victim)
    cache.store(state, kept, [str(tool)], UNITS)
    assert victim.read_text() == "precious"
    assert cache.load(state, kept) == UNITS


@given(st.data())
def test_any_damage_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    state = tmp_path_factory.mktemp("state")
    state.chmod(0o700)
    made_for = {"kernel": "this one"}
    cache.store(state, made_for, [], UNITS)
    whole = (state / cache.NAME).read_bytes()
    kind = data.draw(st.sampled_from(["flip", "cut", "add", "other"]))
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = {
        "flip": whole[:at] + bytes([whole[at] ^ (1 << data.draw(st.integers(0, 7)))]) + whole[at + 1 :],
        "cut": whole[:at],
        "add": whole + b"x",
        "other": data.draw(st.binary(max_size=200)),
    }[kind]
    (state / cache.NAME).write_bytes(damaged)
    with pytest.raises(cache.NotUsableError, match="damaged"):
        cache.load(state, made_for)


@pytest.mark.parametrize(
    "document",
    [
        b"", b"[]", b"7", b"{}", b'{"purpose":{},"tools":[7],"units":"[]"}', b'{"purpose":7,"tools":{},"units":"[]"}',
        b'{"purpose":{},"tools":{},"units":0}', b'{"purpose":{},"tools":{},"units":"[7]"}',
    ],
)  # fmt: skip
def test_a_whole_file_of_another_form_is_not_used(state: Path, document: bytes) -> None:
    head = b"sallyport kernel programs " + hashlib.sha256(document).hexdigest().encode()
    file = os.open(state / cache.NAME, os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(file, head + b"\n" + document)
    os.close(file)
    with pytest.raises(cache.NotUsableError):
        cache.load(state, {"kernel": "this one"})


# ---- ended while it writes

_ENDED = """
import resource, signal, sys
from pathlib import Path
from engine.kernel import cache
from tests.unit.kernel.test_cache import UNITS
if sys.argv[2] == "in the middle":
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
else:
    import os
    os.rename = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
cache.store(Path(sys.argv[1]), {"kernel": "a newer one"}, [], UNITS)
"""


@pytest.mark.parametrize(
    ("when", "number"), [("in the middle", signal.SIGXFSZ), ("before the name", signal.SIGKILL)]
)  # fmt: skip
def test_whoever_is_ended_while_writing_leaves_what_was_kept(
    state: Path, kept: dict[str, str], tool: Path, when: str, number: int
) -> None:
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", _ENDED, str(state), when], cwd=root, env={"PYTHONPATH": str(root)}, check=False,
        capture_output=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == -number, done.stderr
    assert cache.load(state, kept) == UNITS
    cache.store(state, kept, [str(tool)], UNITS)
    assert [path.name for path in state.iterdir()] == [cache.NAME]
