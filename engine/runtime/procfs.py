"""What /proc says about a process: its executable, its state, its place among its parents.

Every function takes the folder (`/proc/PID`, or `/proc/PID/task/TID`) and answers None or an empty value
when the process is gone, is a kernel thread, or may not be looked at (that takes CAP_SYS_PTRACE for other
users' processes). Text in /proc is bytes that the process chose; what is no UTF-8 in it is written as
\\xNN.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from engine.model.facts import Process

MOST_PARENTS = 8
MOST_ARGS = 64
MOST_ARG_BYTES = 256
_DELETED = b" (deleted)"
_PF_KTHREAD = 0x00200000


@dataclass(frozen=True)
class Image:
    """The file that a process runs: `path` as the mount namespace of that file shows it, the rest from its
    inode."""

    path: str
    dev: int
    inode: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True)
class Stat:
    """The fields of proc_pid_stat(5) that are used here: 2, 4, 9, 27 and 28."""

    comm: str
    ppid: int
    flags: int
    endcode: int
    startstack: int


def text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


def image(folder: str) -> Image | None:
    """Return what the process runs. Path and inode are read through one descriptor, so they belong
    together."""
    try:
        descriptor = os.open(f"{folder}/exe", os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        path = os.readlink(f"/proc/self/fd/{descriptor}".encode())  # noqa: PTH115 - bytes
    except OSError:
        return None
    finally:
        os.close(descriptor)
    # The kernel marks a path whose name is gone. Only a file without any name left is certain to be such a
    # one: who may write beside /opt/tool could else make "/opt/tool (deleted)" and pass for /opt/tool.
    if path.endswith(_DELETED) and status.st_nlink == 0:
        path = path[: -len(_DELETED)]
    return Image(text(path), status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)


def parse_stat(data: bytes) -> Stat | None:
    """Read the line of /proc/PID/stat. The command may hold spaces and parentheses: it ends at the last
    one."""
    head, closing, tail = data.rpartition(b")")
    _, opening, comm = head.partition(b"(")
    fields = tail.split()
    if not closing or not opening or len(fields) < 26:
        return None
    try:
        return Stat(text(comm), int(fields[1]), int(fields[6]), int(fields[24]), int(fields[25]))
    except ValueError:
        return None


def stat(folder: str) -> Stat | None:
    data = _read(f"{folder}/stat", 4096)
    return None if data is None else parse_stat(data)


def is_kernel_thread(proc: str, pid: int) -> bool:
    """Say whether this is a thread of the kernel (an NFS mount's, say): it never had an executable."""
    status = stat(f"{proc}/{pid}")
    return status is not None and bool(status.flags & _PF_KTHREAD)


def comm(proc: str, pid: int) -> str:
    """Return the command name of a process, empty when it is gone."""
    return text((_read(f"{proc}/{pid}/comm", 64) or b"").removesuffix(b"\n"))


def process(proc: str, pid: int) -> Process:
    """Return the facts of a process: command, arguments (bounded), executables of its parents, nearest
    first."""
    status = stat(f"{proc}/{pid}")
    if status is None:
        return Process()
    line = _read(f"{proc}/{pid}/cmdline", MOST_ARGS * MOST_ARG_BYTES) or b""
    words = line.removesuffix(b"\0").split(b"\0") if line else []
    args = tuple(text(word[:MOST_ARG_BYTES]) for word in words[:MOST_ARGS])
    return Process(pid, status.comm, args, _parents(proc, pid, status.ppid))


def _parents(proc: str, pid: int, parent: int) -> tuple[str, ...]:
    found: list[str] = []
    seen = {0, pid}
    # A parent may exit between two reads and its number be given away: `seen` keeps such a chain from going
    # round.
    while parent not in seen and len(found) < MOST_PARENTS:
        seen.add(parent)
        ran = image(f"{proc}/{parent}")
        found.append(ran.path if ran is not None else "")
        status = stat(f"{proc}/{parent}")
        parent = status.ppid if status is not None else 0
    return tuple(found)


def _read(path: str, most: int) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(descriptor, most)
    except OSError:  # ESRCH: it exited between the two calls
        return None
    finally:
        os.close(descriptor)
