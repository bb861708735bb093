"""The log on disk, under its one writer: batches go in durably and signed, or not at all.

No threads and no queue here: `commit` returns when a batch is on the disk under a head, or raises and leaves
the log as it was. `audit.log` puts the queue in front.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audit import keys
from audit.checkpoint import Head, SigningKey
from audit.disk import Disk, PosixDisk
from audit.entry import EntryHeader
from audit.errors import DiskError, KeyFileError, LockedError
from audit.layout import Layout, Segment
from audit.recovery import Remainder, Tail, examine, print_range
from audit.tree import Range, leaf_hash

HEAD_EVERY = 1024
"""Entries: a batch that is longer gets a head after each so many, all under one sync."""
SEGMENT_BYTES = 64 << 20
_LOCK_TRIES = 25
_LOCK_PAUSE = 0.02


class Store:
    """One log directory, locked."""

    def __init__(
        self, state_dir: Path, *, origin: str = "", segment_bytes: int = SEGMENT_BYTES, disk: Disk | None = None
    ) -> None:
        """Lock the directory, make the key at first use, find the end of the log and cut what is torn.

        `origin` names a new log; an old one keeps its name. Raise LockedError, KeyFileError, BrokenLogError
        or DiskError, each with nothing changed that matters.
        """
        self._layout = Layout(state_dir)
        self._disk = disk or PosixDisk()
        self._segment_bytes = segment_bytes
        self._dirty = False
        self._lock = _lock(self._layout)
        try:
            self.key = self._load_key(origin)
            tail = examine(self._layout, self.key.verifier)
            if tail is None:
                tail = Tail(Segment(self._layout.log, 0), Range(), None, None, Remainder(0), Remainder(0))
            self.recovery: dict[str, Any] = tail.detail()
            self.last: EntryHeader | None = tail.last
            self.head: Head | None = tail.head
            self._tree = tail.tree
            self._open(tail)
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def size(self) -> int:
        """Entries on disk, those that start-up adopted without a head included."""
        return self._tree.size

    def _load_key(self, origin: str) -> SigningKey:
        root = self._layout.root
        if not os.path.lexists(root / keys.PRIVATE_NAME):
            if self._layout.segments():
                raise KeyFileError(
                    f"The log in {root} has entries, but its private key is gone.",
                    hint="Restore the key from its backup, or move the audit folder aside to start a new log.",
                )
            return keys.create(root, origin or keys.default_origin())
        key = keys.load_private(root)
        if keys.load_public(root / keys.PUBLIC_NAME) != key.verifier:
            raise KeyFileError(
                f"{root / keys.PUBLIC_NAME} is not the public half of {root / keys.PRIVATE_NAME}.",
                hint="One of the two was replaced. Compare with the verifier key where you published it.",
            )
        return key

    def _open(self, tail: Tail) -> None:
        self._segment = tail.segment
        try:
            self._lines = self._disk.append_to(tail.segment.lines)
            try:
                self._heads = self._disk.append_to(tail.segment.heads)
                try:
                    self._disk.sync_folder(self._layout.log)
                    self._line_bytes, self._head_bytes = tail.lines.offset, tail.heads.offset
                    if tail.lines.length or tail.heads.length:
                        self._cut_back()
                except BaseException:
                    self._heads.close()
                    raise
            except BaseException:
                self._lines.close()
                raise
        except OSError as error:
            raise _failed(self._layout.log, error) from error

    def _cut_back(self) -> None:
        # Heads before lines, and synced in between: a crash half way must not leave a head whose lines are
        # gone.
        self._heads.truncate(self._head_bytes)
        self._heads.sync()
        self._lines.truncate(self._line_bytes)
        self._lines.sync()
        self._dirty = False

    def commit(self, lines: Sequence[bytes]) -> Head:
        """Make lines durable and sign them; return the head that covers the last of them.

        Raise DiskError: then none of them counts as written, and the same lines have to come first the next
        time.
        """
        try:
            if self._dirty:
                # After a failed fdatasync the kernel may have dropped the dirty pages and call the next one a
                # success: only writing everything again proves anything.
                self._cut_back()
            if self._line_bytes >= self._segment_bytes and self.head is not None and self.head.size == self.size:
                # Not before start-up's adopted lines have a head: a segment begins at a signed size.
                self._rotate()
            tree = self._tree.copy()
            notes = []
            for start in range(0, len(lines), HEAD_EVERY):
                tree.extend(map(leaf_hash, lines[start : start + HEAD_EVERY]))
                head = Head.sign(self.key, tree.size, tree.root())
                notes.append(head.note())
            line_bytes, head_bytes = b"\n".join(lines) + b"\n", b"".join(notes)
            self._dirty = True
            self._lines.write(line_bytes)
            self._lines.sync()
            self._heads.write(head_bytes)
            self._heads.sync()
        except OSError as error:
            raise _failed(self._layout.log, error) from error
        self._dirty = False
        self._line_bytes += len(line_bytes)
        self._head_bytes += len(head_bytes)
        self._tree, self.head = tree, head
        return head

    def _rotate(self) -> None:
        """Begin a new segment. Its lines file comes last: a segment exists when that does."""
        segment = Segment(self._layout.log, self._tree.size)
        self._disk.place(segment.range, print_range(self._tree))
        heads = self._disk.append_to(segment.heads)
        try:
            lines = self._disk.append_to(segment.lines)
        except OSError:
            heads.close()
            raise
        try:
            self._disk.sync_folder(self._layout.log)
        except OSError:
            heads.close()
            lines.close()
            raise
        self._lines.close()
        self._heads.close()
        self._segment, self._lines, self._heads = segment, lines, heads
        self._line_bytes = self._head_bytes = 0

    def close(self) -> None:
        """Close the files and give the directory free. What was not committed is not written."""
        self._lines.close()
        self._heads.close()
        os.close(self._lock)


def _failed(path: Path, error: OSError) -> DiskError:
    return DiskError(
        f"The audit log in {path} cannot be written: {error.strerror}.",
        hint="Free space or mend the disk; the writer tries again by itself.",
    )


def _lock(layout: Layout) -> int:
    """Take the directory. `flock` is given up by the kernel when the process ends, however it ends."""
    try:
        layout.log.mkdir(parents=True, exist_ok=True, mode=0o700)
        layout.root.chmod(0o700)
        descriptor = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DiskError(
            f"The audit folder {layout.root} cannot be used: {error.strerror}.",
            hint="Check its permissions, or choose another place with --state-dir.",
        ) from error
    # A verifier holds it shared for a moment, to see whether there is a writer: hence more than one try.
    for _ in range(_LOCK_TRIES):
        if _try_lock(descriptor):
            return descriptor
        time.sleep(_LOCK_PAUSE)
    os.close(descriptor)
    raise LockedError(
        f"Another process writes the audit log in {layout.root}.",
        hint="Stop the other engine, or give this one its own --state-dir.",
    )


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def writer_active(layout: Layout) -> bool:
    """Tell whether a writer holds the log. False also where there is no lock file, as in a copy."""
    try:
        descriptor = os.open(layout.lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
