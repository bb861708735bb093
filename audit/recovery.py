"""What a writer finds at start: where the log goes on, and what an unclean end left behind. FORMAT.md section
7.

Reads only. `audit.store` acts on the answer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from audit.checkpoint import Head, VerifierKey, decode_base64, decode_decimal, encode_base64
from audit.entry import EntryHeader, decode_header
from audit.errors import BrokenLogError, FormatError
from audit.layout import LONGEST_LINE, Layout, Segment, file_size, read_lines, read_notes, read_pieces
from audit.tree import Range, leaf_hash


@dataclass(frozen=True)
class Remainder:
    """What is left of a torn write: `offset` where it begins in its file, `length` 0 when nothing is torn."""

    offset: int
    length: int = 0
    digest: str = ""


@dataclass(frozen=True)
class Tail:
    """Where a log goes on.

    `tree` covers every line that stays; `adopted` of them, at the end, have no head yet. `head` is the last
    one, `last` the last line's header.
    """

    segment: Segment
    tree: Range
    head: Head | None
    last: EntryHeader | None
    lines: Remainder
    heads: Remainder
    adopted: int = 0

    def detail(self) -> dict[str, Any]:
        """Return what the `recovery` entry says, empty after an orderly end."""
        said: dict[str, Any] = {}
        if self.adopted:
            said |= {"adopted_from": self.tree.size - self.adopted, "adopted": self.adopted}
        if self.lines.length:
            said |= {"cut_bytes": self.lines.length, "cut_sha256": self.lines.digest}
        if self.heads.length:
            said |= {"cut_head_bytes": self.heads.length, "cut_head_sha256": self.heads.digest}
        return said


def print_range(tree: Range) -> bytes:
    """Return the bytes of a `.range` file."""
    return "".join(f"{line}\n" for line in (tree.size, *map(encode_base64, tree.nodes))).encode()


def parse_range(data: bytes) -> Range:
    """Read a `.range` file. Raise FormatError."""
    try:
        first, *nodes, last = data.decode().split("\n")
    except ValueError as error:
        raise FormatError("This is no compact range.") from error
    if last:
        raise FormatError("The compact range is cut short.")
    return Range(decode_decimal(first), [decode_base64(node) for node in nodes])


def examine(layout: Layout, key: VerifierKey) -> Tail | None:
    """Find where the log goes on; None when there is none yet.

    Raise BrokenLogError when it contradicts its own heads: a new signature would then cover the damage.
    """
    segments = layout.segments()
    if not segments:
        return None
    segment = segments[-1]
    head, tree = _before(segments, key)
    found, heads = _last_head(segment, key, head)
    tail = _walk(segment, tree, found, heads)
    if tail.last is None and len(segments) > 1:
        return replace(tail, last=_last_line(segments[-2]))
    return tail


def _broken(what: str) -> BrokenLogError:
    return BrokenLogError(
        f"The audit log is damaged: {what}",
        hint="`sallyport audit verify` lists everything. To start anew, move the audit folder aside; keep it.",
    )


def _before(segments: list[Segment], key: VerifierKey) -> tuple[Head | None, Range]:
    """Return the head and the tree at the beginning of the last segment."""
    first = segments[-1].first
    if first == 0:
        return None, Range()
    if len(segments) < 2:
        raise _broken(f"the segments before entry {first} are missing.")
    head, torn = _last_head(segments[-2], key, None)
    if head is None or head.size != first or torn.length:
        raise _broken(f"no head covers exactly the {first} entries before {segments[-1].lines.name}.")
    try:
        tree = parse_range(b"".join(read_pieces(segments[-1].range)))
        if (tree.size, tree.root()) == (first, head.root):
            return head, tree
    except FormatError:
        pass  # derived from the lines: what is wrong or missing is computed again
    tree = Range()
    for segment in segments[:-1]:
        if segment.first != tree.size:
            raise _broken(f"{segment.lines.name} does not begin where the segment before it ends.")
        for line, whole in read_lines(segment.lines):
            if whole:
                tree.append(leaf_hash(line))
    if (tree.size, tree.root()) != (first, head.root):
        raise _broken(f"the head at {first} entries does not have the root of the lines before it.")
    return head, tree


def _last_head(segment: Segment, key: VerifierKey, before: Head | None) -> tuple[Head | None, Remainder]:
    """Return the last head of a segment (`before` if it has none) and the torn one after it."""
    head, offset = before, 0
    for note, whole in read_notes(segment.heads):
        if not whole:
            break
        try:
            following = Head.parse(note)
        except FormatError as error:
            raise _broken(f"{segment.heads.name} at byte {offset}: {error.message}") from error
        if head is not None and following.size <= head.size:
            raise _broken(f"{segment.heads.name} at byte {offset}: the head's size does not grow.")
        head = following
        offset += len(note)
    if head is not None and not head.verifies(key):
        raise _broken(f"the head at {head.size} entries is not signed by this log's key.")
    return head, _remainder(segment.heads, offset)


def _remainder(path: Path, offset: int) -> Remainder:
    """Measure and hash what a file holds from `offset` on."""
    length = file_size(path) - offset
    if length <= 0:
        return Remainder(offset)
    digest = sha256()
    for piece in read_pieces(path, offset=offset):
        digest.update(piece)
    return Remainder(offset, length, digest.hexdigest())


def _last_line(segment: Segment) -> EntryHeader:
    """Return the header of a full segment's last line."""
    last = b""
    for line, whole in read_lines(segment.lines):
        if not whole:
            raise _broken(f"{segment.lines.name} ends in the middle of a line.")
        last = line
    return _header(last)


def _header(line: bytes) -> EntryHeader:
    try:
        return decode_header(line)
    except FormatError as error:
        raise _broken(f"a line under a head is no entry. {error.message}") from error


def _walk(segment: Segment, tree: Range, head: Head | None, heads: Remainder) -> Tail:
    """Check the lines that the last head covers, and keep those after it that parse and go on."""
    signed = head.size if head else 0
    last: EntryHeader | None = None
    offset = adopted = 0
    covered = b""
    for line, whole in read_lines(segment.lines):
        if not whole:
            break
        if tree.size < signed:
            covered = line
        else:
            try:
                header = decode_header(line)
            except FormatError:
                break
            if header.seq != tree.size or len(line) > LONGEST_LINE:
                break
            last = header
            adopted += 1
        tree.append(leaf_hash(line))
        offset += len(line) + 1
        if tree.size == signed:
            last = _header(covered)
            _check_root(tree, head)
    if tree.size < signed:
        raise _broken(f"the last head covers {signed} entries, but only {tree.size} are there.")
    return Tail(segment, tree, head, last, _remainder(segment.lines, offset), heads, adopted)


def _check_root(tree: Range, head: Head | None) -> None:
    if head is None or tree.root() != head.root:
        raise _broken(f"the lines do not have the root of the head at {tree.size} entries.")
