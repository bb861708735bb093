"""Where the parts of a log are: names of files and folders, reading them in pieces. FORMAT.md section 1."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from audit.checkpoint import HEAD_LINES
from audit.errors import DiskError

_NAME = re.compile(r"(\d{20})\.jsonl")
_PIECE = 1 << 20
LONGEST_LINE = 1 << 20
"""Bytes of a line without its newline: bounds the memory of every reader, whatever was put into the file."""


@dataclass(frozen=True)
class Segment:
    """One segment by its folder and the sequence number of its first entry."""

    folder: Path
    first: int

    @property
    def lines(self) -> Path:
        return self.folder / f"{self.first:020d}.jsonl"

    @property
    def heads(self) -> Path:
        return self.folder / f"{self.first:020d}.heads"

    @property
    def range(self) -> Path:
        return self.folder / f"{self.first:020d}.range"


@dataclass(frozen=True)
class Layout:
    """The paths of one log. `state_dir` is the engine's state directory."""

    state_dir: Path

    @property
    def root(self) -> Path:
        return self.state_dir / "audit"

    @property
    def log(self) -> Path:
        return self.root / "log"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    def require(self) -> None:
        """Raise DiskError when there is no log here, or none that this user may look at."""
        try:
            self.log.stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DiskError(
                f"There is no audit log in {self.root}.", hint="Give the engine's state directory with --state-dir."
            ) from error
        except OSError as error:
            raise _unreadable(self.root, error) from error

    def segments(self) -> list[Segment]:
        """Return the segments, oldest first; none if the folder is not there. Raise DiskError."""
        try:
            names = [_NAME.fullmatch(path.name) for path in self.log.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _unreadable(self.log, error) from error
        return [Segment(self.log, first) for first in sorted(int(name[1]) for name in names if name)]


def _unreadable(path: Path, error: OSError) -> DiskError:
    return DiskError(
        f"{path} cannot be read: {error.strerror}.",
        hint="Run as the user who owns the log, or check the disk.",
    )


def file_size(path: Path) -> int:
    """Return a file's length in bytes, 0 if it is not there. Raise DiskError."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise _unreadable(path, error) from error


def read_pieces(path: Path, limit: int | None = None, *, offset: int = 0) -> Iterator[bytes]:
    """Yield a file's bytes from `offset` on, at most `limit` of them, in pieces of bounded size. Raise
    DiskError."""
    rest = file_size(path) - offset if limit is None else limit
    try:
        with path.open("rb") as file:
            file.seek(offset)
            while rest > 0:
                piece = file.read(min(_PIECE, rest))
                if not piece:
                    return
                rest -= len(piece)
                yield piece
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unreadable(path, error) from error


def read_lines(path: Path, limit: int | None = None, *, offset: int = 0) -> Iterator[tuple[bytes, bool]]:
    """Yield (line without its newline, whether it had one): only the last one may be without.

    A line over `LONGEST_LINE` comes cut one byte beyond it, so that it cannot pass for a good one.
    """
    rest = b""
    for piece in read_pieces(path, limit, offset=offset):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line[: LONGEST_LINE + 1], True
        rest = rest[: LONGEST_LINE + 1]
    if rest:
        yield rest, False


def read_notes(path: Path, limit: int | None = None) -> Iterator[tuple[bytes, bool]]:
    """Yield (a head's bytes, whether it has all its lines): only the last one may lack some."""
    note: list[bytes] = []
    for line, whole in read_lines(path, limit):
        note.append(line + b"\n" if whole else line)
        if whole and len(note) == HEAD_LINES:
            yield b"".join(note), True
            note = []
    if note:
        yield b"".join(note), False
