"""The writer's view of the file system: a port so small that a failing or recording one can stand in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol


class AppendFile(Protocol):
    """A file that only grows, and can be cut back after an error. Every method raises OSError."""

    def write(self, data: bytes) -> None:
        """Append all of `data`; on an error any part of it may be in the file."""

    def sync(self) -> None:
        """Return when everything written is on the disk, the file's length included."""

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes; the next write begins there."""

    def close(self) -> None: ...


class Disk(Protocol):
    """Where the writer's files are. Every method raises OSError."""

    def append_to(self, path: Path) -> AppendFile:
        """Open a file for appending, made with mode 0600 if it is not there."""

    def place(self, path: Path, data: bytes) -> None:
        """Make a whole small file, replacing what is there, durable on return."""

    def sync_folder(self, path: Path) -> None:
        """Return when the names in the folder are on the disk."""


class PosixAppendFile:
    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o600)

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def sync(self) -> None:
        os.fdatasync(self._descriptor)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)

    def close(self) -> None:
        os.close(self._descriptor)


class PosixDisk:
    """The real one."""

    def append_to(self, path: Path) -> AppendFile:
        return PosixAppendFile(path)

    def place(self, path: Path, data: bytes) -> None:
        partial = path.with_name(f".{path.name}")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        partial.replace(path)
        self.sync_folder(path.parent)

    def sync_folder(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
