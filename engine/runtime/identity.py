"""Who is it: executables as small numbers that kernel keys can hold.

An id stands for one (path, device, inode, mtime, ctime) for as long as the engine's maps may hold it, and
is never given to anything else: a verdict that was decided for one executable must not be found by another.
The ctime is part of it because an owner can write into a file and set its mtime back (utimensat), and
cannot set the ctime.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field

from engine.runtime import procfs
from engine.runtime.procfs import Image

UNKNOWN = 0
LAST_ID = 0xFFFFFFFF
CAPACITY = 65536
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class ExeRecord:
    """One executable. `id` is 1 or more, a u32; the times are nanoseconds since 1970, from the file's
    inode."""

    id: int = field(compare=False)
    path: str
    dev: int
    inode: int
    mtime_ns: int
    ctime_ns: int


class Identities:
    """The executables seen in this run, at most `capacity`; the least recently used is forgotten first.

    `base` is the highest id that may still stand in pinned maps (0 on a fresh start): ids begin above it. A
    forgotten executable that comes back gets a new id. Not thread-safe: it belongs to the event loop's
    thread; only hashing leaves it.
    """

    def __init__(self, *, base: int = UNKNOWN, capacity: int = CAPACITY, proc: str = "/proc") -> None:
        self._proc = proc
        self._capacity = capacity
        self._last = base
        # Insertion order is order of use. The record is its own key, because its id does not take part in
        # equality.
        self._records: dict[ExeRecord, ExeRecord] = {}
        self._by_id: dict[int, ExeRecord] = {}
        self._hashes: dict[int, str] = {}
        self._hashing: dict[tuple[int, int], asyncio.Task[str]] = {}

    @property
    def last_id(self) -> int:
        """The highest id given so far: the `base` of the next run."""
        return self._last

    def __len__(self) -> int:
        return len(self._records)

    def records(self) -> list[ExeRecord]:
        """Return what is known, the least recently used first: `restore` of the next run takes it."""
        return list(self._records)

    def restore(self, records: list[ExeRecord]) -> None:
        """Take over the ids of an earlier run of the same boot, which pinned maps still hold."""
        for record in records:
            self._records[record] = record
            self._by_id[record.id] = record
            self._last = max(self._last, record.id)

    def resolve(
        self, pid: int, tid: int, *, expected: int, exec_stamp: Callable[[int], int | None]
    ) -> ExeRecord | None:
        """Return the executable that thread `tid` of process `pid` ran when the kernel noted `expected` for
        it.

        `exec_stamp(pid)` reads what the kernel notes now; it must change when the process executes another
        image, when it exits and when its number is given to another process. None: unknown, on any doubt.

        1. Path and inode are read from /proc (of the thread, where the first thread has ended before the
        others). 2. The image must be loaded: sched_process_exec, which changes the stamp, fires only after
        load_elf_binary has put the new memory in place, so for a moment /proc shows the new image under the
        old stamp. The new memory starts with zeros, and `end_code` and `start_stack` are the last that
        load_elf_binary sets in it. 3. The stamp, read last, must be the one that was expected.

        What remains of that window is the few instructions between the end of 2 and the tracepoint.
        """
        found: Image | None = None
        for folder in (f"{self._proc}/{pid}", f"{self._proc}/{pid}/task/{tid}"):
            found = procfs.image(folder)
            if found is not None:
                status = procfs.stat(folder)
                if status is None or status.endcode == 0 or status.startstack == 0:
                    return None
                break
        if found is None or exec_stamp(pid) != expected:
            return None
        return self._intern(found)

    def record(self, exe_id: int) -> ExeRecord | None:
        """Return what an id stands for; None for 0, for an id of an earlier run and for a forgotten one."""
        record = self._by_id.get(exe_id)
        if record is not None:
            self._touch(record)
        return record

    async def sha256(self, exe_id: int, pid: int = 0, *, runs: Callable[[], bool] | None = None) -> str:
        """Return the SHA-256 of the file in hex, empty when it cannot be had.

        Read through /proc/PID/exe while that process lives, else by path; either way only from the very
        inode of the record, unchanged before and after. Computed once, in a thread.

        A program may touch its own file before it is asked about (chmod, a link more, no name left), and so may
        an upgrade: the times of the record are then gone. Where the kernel lets nobody write to what runs, the
        inode still has the bytes that were executed, while `runs` says, after they were read, that the process
        is the one that the kernel named.
        """
        record = self.record(exe_id)
        if record is None:
            return ""
        known = self._hashes.get(exe_id)
        if known is not None:
            return known
        link = f"{self._proc}/{pid}/exe"
        digest = await self._hashed((exe_id, 0), _digest, record, link)
        if not digest and runs is not None and is_protected_while_it_runs():
            digest = await self._hashed((exe_id, pid), _digest_of_running, record, link)
            digest = digest if runs() else ""
        if digest and exe_id in self._by_id:
            self._hashes[exe_id] = digest
        return digest

    async def _hashed(
        self, key: tuple[int, int], digest: Callable[[ExeRecord, str], str], record: ExeRecord, link: str
    ) -> str:
        task = self._hashing.get(key)
        if task is None:
            task = asyncio.ensure_future(asyncio.to_thread(digest, record, link))
            self._hashing[key] = task
            task.add_done_callback(lambda _: self._hashing.pop(key, None))
        # Shielded: one flow that gives up waiting must not take the answer from the others.
        return await asyncio.shield(task)

    def _intern(self, image: Image) -> ExeRecord | None:
        wanted = ExeRecord(self._last + 1, image.path, image.dev, image.inode, image.mtime_ns, image.ctime_ns)
        known = self._records.get(wanted)
        if known is not None:
            self._touch(known)
            return known
        if wanted.id > LAST_ID:
            return None
        self._last = wanted.id
        self._records[wanted] = wanted
        self._by_id[wanted.id] = wanted
        if len(self._records) > self._capacity:
            oldest = next(iter(self._records))
            del self._records[oldest], self._by_id[oldest.id]
            self._hashes.pop(oldest.id, None)
        return wanted

    def _touch(self, record: ExeRecord) -> None:
        del self._records[record]
        self._records[record] = record


@functools.cache
def is_protected_while_it_runs() -> bool:
    """Say whether this kernel refuses to write into the file of a running program. Linux 6.11 gave that up (commit
    2a010c412853), for some releases."""
    try:
        os.close(os.open("/proc/self/exe", os.O_WRONLY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.ETXTBSY
    return False


def _digest(record: ExeRecord, link: str) -> str:
    for path in (link, record.path):
        digest = _digest_of(path, lambda status: _same(record, status))
        if digest:
            return digest
    return ""


def _digest_of_running(record: ExeRecord, link: str) -> str:
    return _digest_of(link, lambda status: (status.st_dev, status.st_ino) == (record.dev, record.inode))


def _digest_of(path: str, wanted: Callable[[os.stat_result], bool]) -> str:
    try:
        # First without opening it for real: the path may name anything by now, and opening a pipe would
        # wait, and opening a device act.
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            before = os.fstat(place)
            if not stat.S_ISREG(before.st_mode) or not wanted(before):
                return ""
            file = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(place)
        try:
            digest = hashlib.sha256()
            while chunk := os.read(file, _CHUNK):
                digest.update(chunk)
            return digest.hexdigest() if _state(os.fstat(file)) == _state(before) else ""
        finally:
            os.close(file)
    except (OSError, ValueError):  # ValueError: a path with a NUL cannot be opened
        return ""


def _state(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def _same(record: ExeRecord, status: os.stat_result) -> bool:
    return _state(status) == (record.dev, record.inode, record.mtime_ns, record.ctime_ns)
