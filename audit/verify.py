"""Verify a log, in the numbered steps of FORMAT.md section 8.

One pass, constant memory. All findings are collected: what is wrong is a value in the report, and an
exception means that there was nothing to verify. Left to the caller: a verifier key and a head from
elsewhere. Without them some questions have no answer, and the report says which.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from audit import keys
from audit.checkpoint import Head, VerifierKey, encode_base64
from audit.entry import EntryHeader, decode, decode_header
from audit.errors import FormatError, KeyFileError
from audit.layout import LONGEST_LINE, Layout, Segment, file_size, read_lines, read_notes
from audit.report import Report, Vouched, when
from audit.store import writer_active
from audit.tree import Range, leaf_hash

CLOCK_TOLERANCE_NS = 1_000_000_000


def verify(state_dir: Path, *, key: VerifierKey | None = None, external: Sequence[bytes] = ()) -> Report:
    """Verify the log below a state directory.

    `key`: the verifier key from where it was published; without it the one in the log's own folder is used.
    `external`: heads (signed notes) that were kept elsewhere. Raise DiskError when there is no log or it
    cannot be read.
    """
    layout = Layout(state_dir)
    layout.require()
    # In this order, because a writer may be at work: it writes lines before the heads that cover them, so
    # lengths taken of heads first and lines second never show a head without its lines.
    writing = writer_active(layout)
    segments = layout.segments()
    head_bytes = [file_size(segment.heads) for segment in segments]
    line_bytes = [file_size(segment.lines) for segment in segments]
    work = _Verification(layout, segments, head_bytes, line_bytes, writing)
    work.take_key(key)
    work.take_external(external)
    work.walk()
    work.conclude()
    return work.report


class _Verification:
    """The state of one pass."""

    def __init__(
        self,
        layout: Layout,
        segments: list[Segment],
        head_bytes: list[int],
        line_bytes: list[int],
        writing: bool,
    ) -> None:
        self._layout = layout
        self._segments = segments
        self._head_bytes = head_bytes
        self._line_bytes = line_bytes
        self.report = Report("", "", segments=len(segments), writing=writing)
        self._key: VerifierKey | None = None
        self._external: list[Head] = []
        self._tree = Range()
        self._heads = self._read_heads()
        self._head: Head | None = None
        self._head_size = 0  # of the last head that could be read: sizes must grow
        self._last: EntryHeader | None = None
        self._shift = 0  # by how much sequence numbers are off since the last finding about them
        self._broken_at = 0  # size of the first head whose root is wrong
        self._wrong_roots = 0
        self._sound = True  # no head failed so far
        self._anchored: Vouched | None = None  # what the last external head agreed with

    # Step 1
    def take_key(self, key: VerifierKey | None) -> None:
        report = self.report
        if key is not None:
            self._key, report.key, report.key_from = key, str(key), "the caller"
            return
        path = self._layout.root / keys.PUBLIC_NAME
        report.key_from = str(path)
        try:
            self._key = keys.load_public(path)
            report.key = str(self._key)
        except KeyFileError as error:
            report.find(1, "key", error.message, place=path.name)
        report.unknown.append(
            "whether this is the right key: it came from the log's own folder, where whoever can rewrite the log can "
            "replace it too; give the published one with --key"
        )

    # Step 10, first half
    def take_external(self, notes: Sequence[bytes]) -> None:
        for note in notes:
            try:
                head = Head.parse(note)
            except FormatError as error:
                self.report.find(10, "external-form", f"An external head cannot be read. {error.message}")
                continue
            if self._key is None or not head.verifies(self._key):
                self.report.find(
                    10, "external-signature", f"The external head at {head.size} entries is not signed by this key."
                )
            else:
                self._external.append(head)
        self._external.sort(key=lambda head: head.size)
        self.report.external = [head.size for head in self._external]

    def walk(self) -> None:
        report = self.report
        if not self._segments:
            report.find(2, "empty", "The log has no entries at all, not even the one that a start writes.")
        self._head = next(self._heads, None)
        external = list(self._external)
        tree, index = self._tree, 0
        for segment, size in zip(self._segments, self._line_bytes, strict=True):
            # Step 2
            if segment.first != index:
                report.find(
                    2,
                    "segment-hole",
                    f"The segment should begin at entry {index}: entries are missing or were added before it.",
                    place=segment.lines.name,
                    seq=segment.first,
                )
            for line, whole in read_lines(segment.lines, size):
                if not whole:
                    self._torn(segment, index, len(line))
                    break
                self._check_line(line, index, segment)
                tree.append(leaf_hash(line))
                index += 1
                while self._head is not None and self._head.size <= index:
                    self._check_head(self._head, index)
                    self._head = next(self._heads, None)
                while external and external[0].size == index:
                    self._check_external(external.pop(0))
        report.entries = index
        self._external = external

    def _check_line(self, line: bytes, index: int, segment: Segment) -> None:
        report = self.report
        # Step 3
        try:
            header = decode_header(line)
        except FormatError as error:
            report.find(3, "line", error.message, place=segment.lines.name, seq=index)
            self._last = None
            return
        if len(line) > LONGEST_LINE:
            report.find(3, "line-length", "The line is too long.", place=segment.lines.name, seq=index)
        # Step 4
        if header.seq - index != self._shift:
            expected = index + self._shift
            report.find(
                4,
                "sequence",
                f"Entry {expected} should stand here, but {header.seq} does.",
                place=segment.lines.name,
                seq=header.seq,
            )
            self._shift = header.seq - index
        # Step 5
        last = self._last
        if last is not None and last.boot == header.boot and header.type != "clock":
            mono, wall = header.mono_ns - last.mono_ns, header.time_ns - last.time_ns
            if mono < 0 or abs(wall - mono) > CLOCK_TOLERANCE_NS:
                report.find(
                    5,
                    "time",
                    f"Between this entry and the one before, the clocks ran {wall / 1e9:.3f} s and {mono / 1e9:.3f} s "
                    "apart without a clock entry.",
                    place=segment.lines.name,
                    seq=header.seq,
                )
        self._last = header
        if header.type in ("gap", "recovery", "clock"):
            self._note(line, header)

    def _note(self, line: bytes, header: EntryHeader) -> None:
        try:
            detail = decode(line).detail or {}
        except FormatError as error:
            self.report.find(3, "line", error.message, seq=header.seq)
            return
        if header.type == "gap":
            count = detail.get("count")
            self.report.lost += count if isinstance(count, int) else 0
        elif header.type == "clock":
            self.report.remark(f"entry {header.seq}: the wall clock was set, at {when(header.time_ns)}")
        else:
            said = ", ".join(f"{name} {value}" for name, value in detail.items())
            self.report.remark(f"entry {header.seq}: recovered after an unclean end: {said}")

    # Step 6
    def _read_heads(self) -> Iterator[Head]:
        for segment, size in zip(self._segments, self._head_bytes, strict=True):
            number = 0
            for note, whole in read_notes(segment.heads, size):
                number += 1
                if not whole:
                    if not (self.report.writing and segment is self._segments[-1]):
                        self._bad_head("head-torn", "The last head is incomplete.", segment)
                    continue
                try:
                    head = Head.parse(note)
                except FormatError as error:
                    self._bad_head("head-form", f"Head {number} cannot be read. {error.message}", segment)
                    continue
                if head.size <= self._head_size:
                    self._bad_head(
                        "head-order",
                        f"Head {number} covers {head.size} entries, but the one before it {self._head_size}.",
                        segment,
                    )
                    continue
                self._head_size = head.size
                self.report.heads += 1
                yield head

    def _bad_head(self, code: str, message: str, segment: Segment) -> None:
        self._sound = False
        self.report.find(6, code, message, place=segment.heads.name)

    def _check_head(self, head: Head, size: int) -> None:
        report = self.report
        good = True
        # Step 7
        if self._key is None or not head.verifies(self._key):
            good = False
            report.find(
                7, "signature", f"The head at {head.size} entries is not signed by this key.", seq=head.size - 1
            )
        # Step 8
        if head.size != size or self._tree.root() != head.root:
            if self._broken_at:
                self._wrong_roots += 1
            elif good:
                self._broken_at = head.size
            else:
                report.find(8, "root", f"The head at {head.size} entries has another root than the lines.")
            good = False
        if not good:
            self._sound = False
        if self._sound:
            time_ns = self._last.time_ns if self._last else 0
            report.vouched = Vouched(head.size, time_ns, encode_base64(head.root))

    # Step 9
    def _torn(self, segment: Segment, index: int, length: int) -> None:
        if self.report.writing and segment is self._segments[-1]:
            return
        self.report.find(
            9, "torn", f"The segment ends in {length} bytes of an incomplete line.", place=segment.lines.name, seq=index
        )

    # Step 10, second half
    def _check_external(self, head: Head) -> None:
        if self._tree.root() == head.root:
            self._anchored = self.report.vouched if self._sound else self._anchored
        else:
            self._sound = False
            self.report.vouched = self._anchored
            self.report.find(
                10,
                "external-root",
                f"The log's first {head.size} entries are not those of the external head: the past was changed.",
                seq=head.size - 1,
            )

    def conclude(self) -> None:
        report = self.report
        if self._broken_at:
            since = report.vouched.size if report.vouched else 0
            more = f" So are {self._wrong_roots} later ones." if self._wrong_roots else ""
            report.find(
                8,
                "root",
                f"The head at {self._broken_at} entries is properly signed, but the lines have another root: something "
                f"in the entries {since} to {self._broken_at - 1} was changed, added or removed.{more}",
                seq=since,
            )
        if self._head is not None:
            missing = 1 + sum(1 for _ in self._heads)
            report.find(
                9,
                "cut",
                f"{missing} heads cover entries up to {self._head_size}, but only {report.entries} are there.",
                seq=report.entries,
            )
        report.tail = max(0, report.entries - self._head_size)
        if report.tail and not report.writing:
            report.find(
                9,
                "unsigned",
                f"{report.tail} entries after the last head are not signed: the writer was killed, or they were added.",
                seq=self._head_size,
            )
        for head in self._external:
            report.find(
                10,
                "external-cut",
                f"The external head covers {head.size} entries, but only {report.entries} are there: the tail was cut.",
                seq=report.entries,
            )
        beyond = f" beyond the external head at {report.external[-1]} entries" if report.external else ""
        report.unknown.append(
            f"whether the log once had more entries{beyond}: a tail cut off at a head leaves no trace in the log"
        )
        report.unknown.append(
            f"whether somebody who had the private key rewrote it{beyond}: only a head kept elsewhere can tell (--head)"
        )
