"""A clock that is set by hand, disks that fail or remember, and a small log to be damaged."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from audit.disk import AppendFile, PosixAppendFile, PosixDisk
from audit.entry import note
from audit.layout import Layout
from audit.log import AuditLog, Limits

SECOND = 1_000_000_000
DAY = 86_400 * SECOND


@dataclass
class HandClock:
    """Both clocks move by 1 ms a reading, and by hand."""

    boot: str = "11111111-2222-3333-4444-555555555555"
    wall: int = 1_800_000_000 * SECOND
    mono: int = 5_000 * SECOND

    def read(self) -> tuple[int, int]:
        self.wall += SECOND // 1000
        self.mono += SECOND // 1000
        return self.wall, self.mono


@dataclass
class Trouble:
    """What goes wrong: `space` bytes are left (None: plenty); `refuse` says which (operation, file ending) fails."""

    space: int | None = None
    refuse: set[tuple[str, str]] = field(default_factory=set)
    done: list[tuple[str, str, bytes]] = field(default_factory=list)

    def check(self, operation: str, path: Path) -> None:
        if (operation, path.suffix) in self.refuse:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


class TroubledFile:
    def __init__(self, path: Path, inner: AppendFile, trouble: Trouble) -> None:
        self._path, self._inner, self._trouble = path, inner, trouble

    def write(self, data: bytes) -> None:
        self._trouble.check("write", self._path)
        space = self._trouble.space
        if space is None or len(data) <= space:
            self._inner.write(data)
            self._trouble.done.append(("write", self._path.suffix, data))
            if space is not None:
                self._trouble.space = space - len(data)
            return
        self._inner.write(data[:space])  # a full disk takes what still fits
        self._trouble.space = 0
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sync(self) -> None:
        self._trouble.check("sync", self._path)
        self._inner.sync()
        self._trouble.done.append(("sync", self._path.suffix, b""))

    def truncate(self, size: int) -> None:
        self._trouble.check("truncate", self._path)
        self._inner.truncate(size)
        self._trouble.done.append(("truncate", self._path.suffix, b""))

    def close(self) -> None:
        self._inner.close()


class TroubledDisk(PosixDisk):
    def __init__(self, trouble: Trouble) -> None:
        self._trouble = trouble

    def append_to(self, path: Path) -> AppendFile:
        self._trouble.check("open", path)
        return TroubledFile(path, super().append_to(path), self._trouble)


class QuickFile(PosixAppendFile):
    def sync(self) -> None:
        """Nothing: where a thousand logs are opened, the disk is not what is tested."""


class QuickDisk(PosixDisk):
    def append_to(self, path: Path) -> AppendFile:
        return QuickFile(path)

    def sync_folder(self, path: Path) -> None:
        """Nothing, as above."""


@pytest.fixture
def quick_disk() -> QuickDisk:
    return QuickDisk()


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def trouble() -> Trouble:
    return Trouble()


Opener = Callable[..., AuditLog]


@pytest.fixture
def open_log(tmp_path: Path, clock: HandClock, trouble: Trouble) -> Opener:
    """Open the log in tmp_path, driven by hand, on the troubled disk."""

    def opened(**limits: float) -> AuditLog:
        return AuditLog.open(
            tmp_path,
            origin="sallyport/test",
            clock=clock,
            disk=TroubledDisk(trouble),
            thread=False,
            limits=Limits(**limits),  # type: ignore[arg-type]
        )

    return opened


@dataclass(frozen=True)
class SmallLog:
    """A finished log of 8 entries under 4 heads in one segment; `copy` gives a fresh one to be damaged."""

    state_dir: Path
    scratch: Path

    def copy(self) -> Path:
        shutil.rmtree(self.scratch, ignore_errors=True)
        shutil.copytree(self.state_dir, self.scratch)
        return self.scratch

    @property
    def lines(self) -> bytes:
        return Layout(self.state_dir).segments()[0].lines.read_bytes()

    @property
    def heads(self) -> bytes:
        return Layout(self.state_dir).segments()[0].heads.read_bytes()

    @property
    def notes(self) -> list[bytes]:
        lines = self.heads.splitlines(keepends=True)
        return [b"".join(lines[at : at + 5]) for at in range(0, len(lines), 5)]


def write_small_log(state_dir: Path, clock: HandClock) -> None:
    log = AuditLog.open(state_dir, origin="sallyport/test", clock=clock, thread=False)
    for batch in range(2):
        for number in range(3):
            log.append(note("command", number=3 * batch + number))
        assert log.commit()
    log.close()


@pytest.fixture
def small_log(tmp_path: Path, clock: HandClock) -> SmallLog:
    state_dir = tmp_path / "state"
    write_small_log(state_dir, clock)
    return SmallLog(state_dir, tmp_path / "scratch")
