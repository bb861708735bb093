"""Identities on the real /proc and on a made one: right, or unknown, and never an id for two things."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model.facts import Process
from engine.runtime import identity, procfs
from engine.runtime.identity import LAST_ID, ExeRecord, Identities

STAT = "{pid} ({comm}) S {ppid} 1 1 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0 100 0 0 0 {start} {end} {stack} 0 0 0 0\n"


class FakeProc:
    """A folder that looks like /proc."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(
        self,
        pid: int,
        exe: Path | None,
        *,
        under: str = "",
        ppid: int = 0,
        comm: str = "x",
        args: bytes = b"",
        end: int = 2,
        stack: int = 3,
    ) -> None:
        place = self.folder / (under or str(pid))
        place.mkdir(parents=True)
        if exe is not None:
            (place / "exe").symlink_to(exe)
        (place / "stat").write_text(STAT.format(pid=pid, comm=comm, ppid=ppid, start=1, end=end, stack=stack))
        (place / "cmdline").write_bytes(args)


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    folder = tmp_path / "proc"
    folder.mkdir()
    return FakeProc(folder)


def program(tmp_path: Path, name: str, content: bytes = b"program") -> Path:
    file = tmp_path / name
    file.write_bytes(content)
    return file


def stamp(value: int) -> Callable[[int], int]:
    return lambda _pid: value


def resolve(identities: Identities, pid: int, tid: int = 0) -> ExeRecord:
    record = identities.resolve(pid, tid or pid, expected=1, exec_stamp=stamp(1))
    assert record is not None
    return record


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Callable[[Path], subprocess.Popen[bytes]]]:
    """Start a program that waits for its standard input to end, and wait until it runs."""
    children: list[subprocess.Popen[bytes]] = []

    def start(path: Path) -> subprocess.Popen[bytes]:
        child = subprocess.Popen([str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        children.append(child)
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"\n")
        child.stdin.flush()
        assert child.stdout.readline() == b"\n"
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


def cat(tmp_path: Path, name: str) -> Path:
    copy = tmp_path / name
    shutil.copy(shutil.which("cat") or "/bin/cat", copy)
    return copy


def test_this_very_process_is_its_interpreter() -> None:
    record = resolve(Identities(), os.getpid())
    status = Path("/proc/self/exe").stat()
    assert record.path == str(Path("/proc/self/exe").readlink())
    assert (record.dev, record.inode, record.mtime_ns) == (status.st_dev, status.st_ino, status.st_mtime_ns)
    assert record.id == 1


def test_the_same_executable_is_the_same_id_and_a_hard_link_of_it_another(
    tmp_path: Path, sleeper: Callable[[Path], subprocess.Popen[bytes]]
) -> None:
    one = cat(tmp_path, "one")
    os.link(one, tmp_path / "two")
    first, again, linked = sleeper(one), sleeper(one), sleeper(tmp_path / "two")
    identities = Identities()
    assert resolve(identities, first.pid) is resolve(identities, again.pid)
    other = resolve(identities, linked.pid)
    assert other.inode == resolve(identities, first.pid).inode
    assert (other.path, other.id) == (str(tmp_path / "two"), 2)


def test_a_file_changed_in_place_with_its_mtime_set_back_is_another_executable(tmp_path: Path, proc: FakeProc) -> None:
    file = program(tmp_path, "tool", b"good")
    proc.add(7, file)
    identities = Identities(proc=str(proc.folder))
    before, status = resolve(identities, 7), file.stat()
    file.write_bytes(b"evil")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = resolve(identities, 7)
    assert (after.path, after.inode, after.mtime_ns) == (before.path, before.inode, before.mtime_ns)
    assert after.id != before.id


def test_a_deleted_executable_keeps_the_path_it_had_and_can_still_be_hashed(
    tmp_path: Path, sleeper: Callable[[Path], subprocess.Popen[bytes]]
) -> None:
    file = cat(tmp_path, "tool")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    child = sleeper(file)
    file.unlink()
    identities = Identities()
    record = resolve(identities, child.pid)
    assert record.path == str(tmp_path / "tool")
    assert asyncio.run(identities.sha256(record.id, child.pid)) == digest


def test_who_names_his_file_deleted_does_not_pass_for_the_file_beside_it(
    tmp_path: Path, sleeper: Callable[[Path], subprocess.Popen[bytes]]
) -> None:
    child = sleeper(cat(tmp_path, "tool (deleted)"))
    assert resolve(Identities(), child.pid).path == str(tmp_path / "tool (deleted)")


def test_a_path_that_is_no_utf_8_is_shown_by_its_bytes(
    tmp_path: Path, sleeper: Callable[[Path], subprocess.Popen[bytes]]
) -> None:
    child = sleeper(cat(tmp_path, os.fsdecode(b"to\xffol")))
    assert resolve(Identities(), child.pid).path == f"{tmp_path}/to\\xffol"


def test_a_child_that_executes_something_else_is_unknown_under_the_stamp_of_before(tmp_path: Path) -> None:
    script = "import os, sys; print('ready', flush=True); os.read(0, 1); os.execv(sys.argv[1], sys.argv[1:])"
    copy = cat(tmp_path, "tool")
    child = subprocess.Popen([sys.executable, "-c", script, str(copy)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdout.readline()
        identities = Identities()
        before = resolve(identities, child.pid)
        child.stdin.write(b"\nhello\n")
        child.stdin.flush()
        assert child.stdout.readline() == b"hello\n"
        assert identities.resolve(child.pid, child.pid, expected=1, exec_stamp=stamp(2)) is None
        after = identities.resolve(child.pid, child.pid, expected=2, exec_stamp=stamp(2))
        assert after is not None
        assert (after.path, after.id) == (str(copy), before.id + 1)
    finally:
        child.kill()
        child.communicate()


def test_the_stamp_is_read_after_the_image_so_an_exec_between_them_is_seen(tmp_path: Path, proc: FakeProc) -> None:
    proc.add(7, program(tmp_path, "allowed"))
    link = proc.folder / "7" / "exe"
    stamps = iter([2])

    def execs_at_the_last_moment(_pid: int) -> int:
        link.unlink()
        link.symlink_to(program(tmp_path, "denied"))
        return next(stamps)

    identities = Identities(proc=str(proc.folder))
    assert identities.resolve(7, 7, expected=1, exec_stamp=execs_at_the_last_moment) is None
    assert len(identities) == 0


@pytest.mark.parametrize(("end", "stack"), [(0, 3), (2, 0), (0, 0)])
def test_an_image_that_is_not_loaded_yet_is_unknown(tmp_path: Path, proc: FakeProc, end: int, stack: int) -> None:
    proc.add(7, program(tmp_path, "tool"), end=end, stack=stack)
    assert Identities(proc=str(proc.folder)).resolve(7, 7, expected=1, exec_stamp=stamp(1)) is None


def test_a_running_image_has_what_the_check_for_a_loaded_one_wants() -> None:
    status = procfs.stat("/proc/self")
    assert status is not None
    assert status.endcode > 0
    assert status.startstack > 0


def test_a_process_whose_first_thread_has_ended_is_known_by_the_thread_that_asks(
    tmp_path: Path, proc: FakeProc
) -> None:
    file = program(tmp_path, "tool")
    proc.add(7, None)
    proc.add(9, file, under="7/task/9")
    assert resolve(Identities(proc=str(proc.folder)), 7, 9).path == str(file)


def test_nobody_a_kernel_thread_and_a_process_without_a_stamp_are_unknown(tmp_path: Path, proc: FakeProc) -> None:
    identities = Identities(proc=str(proc.folder))
    assert identities.resolve(7, 7, expected=1, exec_stamp=stamp(1)) is None
    proc.add(8, None)
    assert identities.resolve(8, 8, expected=1, exec_stamp=stamp(1)) is None
    proc.add(9, program(tmp_path, "tool"))
    assert identities.resolve(9, 9, expected=1, exec_stamp=lambda _pid: None) is None


def test_a_forgotten_executable_comes_back_with_a_new_id_and_use_keeps_one(tmp_path: Path, proc: FakeProc) -> None:
    for pid in range(1, 5):
        proc.add(pid, program(tmp_path, f"tool{pid}"))
    identities = Identities(proc=str(proc.folder), capacity=3, base=100)
    first, second, third = (resolve(identities, pid) for pid in (1, 2, 3))
    assert [record.id for record in (first, second, third)] == [101, 102, 103]
    assert identities.record(101) is first
    fourth = resolve(identities, 4)
    assert identities.record(102) is None
    assert identities.record(101) is first
    assert resolve(identities, 2).id == 105
    assert (len(identities), identities.last_id, fourth.id) == (3, 105, 104)
    assert identities.record(0) is None


def test_when_the_numbers_are_used_up_newcomers_are_unknown(tmp_path: Path, proc: FakeProc) -> None:
    proc.add(1, program(tmp_path, "one"))
    proc.add(2, program(tmp_path, "two"))
    identities = Identities(proc=str(proc.folder), base=LAST_ID - 1)
    assert resolve(identities, 1).id == LAST_ID
    assert identities.resolve(2, 2, expected=1, exec_stamp=stamp(1)) is None
    assert resolve(identities, 1).id == LAST_ID


def test_the_hash_is_of_the_recorded_file_or_there_is_none(tmp_path: Path, proc: FakeProc) -> None:
    async def main() -> None:
        file = program(tmp_path, "tool", b"x" * 3_000_000)
        proc.add(7, file)
        identities = Identities(proc=str(proc.folder))
        record = resolve(identities, 7)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        (proc.folder / "7" / "exe").unlink()
        assert await asyncio.gather(*(identities.sha256(record.id, 7) for _ in range(5))) == [digest] * 5
        file.unlink()
        assert await identities.sha256(record.id, 7) == digest
        assert await identities.sha256(99) == ""

        replaced = program(tmp_path, "other")
        proc.add(8, replaced)
        other = resolve(identities, 8)
        replaced.unlink()
        program(tmp_path, "other", b"evil")
        assert await identities.sha256(other.id, 8) == ""

    asyncio.run(main())


TOUCHES: dict[str, Callable[[Path], object]] = {
    "mode": lambda file: file.chmod(0o700),
    "times": lambda file: os.utime(file, ns=(1, 1)),
    "a link more": lambda file: os.link(file, file.with_name("more")),
    "another name": lambda file: file.rename(file.with_name("more")),
    "no name": Path.unlink,
}


@pytest.mark.parametrize("how", TOUCHES)
def test_a_program_that_touches_its_file_keeps_its_digest(
    tmp_path: Path, sleeper: Callable[[Path], subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(identity, "is_protected_while_it_runs", lambda: True)
    file = cat(tmp_path, "tool")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    child = sleeper(file)
    identities = Identities()
    record = resolve(identities, child.pid)
    TOUCHES[how](file)
    assert asyncio.run(identities.sha256(record.id, child.pid, runs=lambda: False)) == ""
    assert asyncio.run(identities.sha256(record.id, child.pid, runs=lambda: True)) == digest
    # Kept: whatever becomes of the process, that is what was executed.
    assert asyncio.run(identities.sha256(record.id)) == digest


def test_a_touched_file_has_no_digest_where_it_can_be_written_to_while_it_runs(
    tmp_path: Path, sleeper: Callable[[Path], subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = cat(tmp_path, "tool")
    child = sleeper(file)
    identities = Identities()
    record = resolve(identities, child.pid)
    file.chmod(0o700)
    monkeypatch.setattr(identity, "is_protected_while_it_runs", lambda: False)
    assert asyncio.run(identities.sha256(record.id, child.pid, runs=lambda: True)) == ""


@pytest.mark.parametrize(
    ("answer", "protected"), [(errno.ETXTBSY, True), (errno.EROFS, False), (errno.EACCES, False), (0, False)]
)
def test_a_kernel_protects_what_runs_only_if_it_says_so(
    monkeypatch: pytest.MonkeyPatch, answer: int, *, protected: bool
) -> None:
    def opened(path: str, flags: int) -> int:
        assert (path, flags & os.O_ACCMODE) == ("/proc/self/exe", os.O_WRONLY)
        if answer:
            raise OSError(answer, "")
        return os.dup(0)

    monkeypatch.setattr(os, "open", opened)
    assert identity.is_protected_while_it_runs.__wrapped__() is protected


def test_another_file_is_not_hashed_for_a_running_program(tmp_path: Path, proc: FakeProc) -> None:
    file = program(tmp_path, "tool")
    proc.add(7, file)
    identities = Identities(proc=str(proc.folder))
    record = resolve(identities, 7)
    file.rename(tmp_path / "old")
    program(tmp_path, "tool", b"allowed")
    assert asyncio.run(identities.sha256(record.id, 7, runs=lambda: True)) == ""


def test_a_thread_of_the_kernel_is_told_by_its_flags(tmp_path: Path, proc: FakeProc) -> None:
    proc.add(7, None)
    assert not procfs.is_kernel_thread(str(proc.folder), 7)
    stat = proc.folder / "7" / "stat"
    stat.write_text(stat.read_text().replace(" 4194304 ", f" {0x00208040} "))
    assert procfs.is_kernel_thread(str(proc.folder), 7)
    assert not procfs.is_kernel_thread(str(proc.folder), 8)


def test_hashing_does_not_open_what_stands_at_the_path_now(tmp_path: Path, proc: FakeProc) -> None:
    file = program(tmp_path, "tool")
    proc.add(7, file)
    identities = Identities(proc=str(proc.folder))
    record = resolve(identities, 7)
    file.unlink()
    os.mkfifo(file)
    assert asyncio.run(identities.sha256(record.id, 7)) == ""


def test_the_facts_of_a_process_are_bounded_and_readable(tmp_path: Path, proc: FakeProc) -> None:
    for pid in range(1, 13):
        proc.add(pid, program(tmp_path, f"p{pid}"), ppid=pid - 1)
    words = [b"curl", b"\xff\x1b[31m", b"a" * 1000, *[b"x"] * 100]
    proc.add(20, program(tmp_path, "curl"), ppid=12, comm="a) b (c", args=b"\0".join(words) + b"\0")
    found = procfs.process(str(proc.folder), 20)
    assert (found.pid, found.comm, len(found.args)) == (20, "a) b (c", procfs.MOST_ARGS)
    assert found.args[:3] == ("curl", "\\xff\x1b[31m", "a" * procfs.MOST_ARG_BYTES)
    assert found.parents == tuple(str(tmp_path / f"p{pid}") for pid in range(12, 4, -1))
    assert procfs.process(str(proc.folder), 99) == Process()


def test_parents_that_go_round_end(tmp_path: Path, proc: FakeProc) -> None:
    proc.add(1, program(tmp_path, "a"), ppid=2)
    proc.add(2, None, ppid=1)
    assert procfs.process(str(proc.folder), 1).parents == ("",)


def test_a_real_child_knows_its_parent() -> None:
    child = subprocess.Popen(["sleep", "1000"])
    try:
        found = procfs.process("/proc", child.pid)
        assert found.parents[0] == str(Path("/proc/self/exe").readlink())
        assert len(found.parents) <= procfs.MOST_PARENTS
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()


@given(st.binary(max_size=200))
def test_any_bytes_are_a_stat_line_or_none(data: bytes) -> None:
    assert procfs.parse_stat(data) is None or data.count(b")") > 0


@given(st.binary(max_size=15).filter(lambda comm: b"\n" not in comm), st.integers(0, 2**22), st.integers(0, 2**64 - 1))
def test_a_command_of_any_bytes_does_not_shift_the_fields(comm: bytes, ppid: int, end: int) -> None:
    line = STAT.format(pid=7, comm="@", ppid=ppid, start=1, end=end, stack=3).encode().replace(b"@", comm)
    parsed = procfs.parse_stat(line)
    assert parsed is not None
    assert (parsed.ppid, parsed.endcode, parsed.startstack) == (ppid, end, 3)


def test_an_idle_socket_is_no_process() -> None:
    with socket.socket() as idle:
        assert procfs.image(f"/proc/self/fd/{idle.fileno()}") is None
