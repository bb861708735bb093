"""TCP reassembly of one direction (RFC 9293 section 3.4), for the few kilobytes that a hello takes.

Bytes that arrive twice must be the same bytes. Two versions of one position are how a name is shown to the
gate and another one to the server (Ptacek and Newsham, 1998), so they end the stream in a stated conflict,
whichever version the server's stack would have kept.
"""

from __future__ import annotations

from bisect import bisect_left
from enum import Enum

DEFAULT_LIMIT = 16 * 1024
DEFAULT_SEGMENTS = 64


class Outcome(str, Enum):
    """What became of one segment.

    data: it brought bytes that are next in order. duplicate: nothing new in it (a retransmission, an empty
    segment). waiting: kept until what precedes it arrives. conflict: it contradicts bytes that came before.
    full: it exceeds the bound in bytes or segments. The last two are final.
    """

    DATA = "data"
    DUPLICATE = "duplicate"
    WAITING = "waiting"
    CONFLICT = "conflict"
    FULL = "full"


def distance(seq: int, start: int) -> int:
    """Return how far a sequence number lies behind another one; below zero: before it (RFC 9293 section 3.4)."""
    return ((seq - start + 0x80000000) & 0xFFFFFFFF) - 0x80000000


class OrderedBytes:
    """Bytes placed by position: what is contiguous from the start, and pieces that wait for what precedes
    them.

    `limit` bounds the bytes kept, `max_pieces` the pieces that wait. With `window`, contiguous bytes beyond
    `limit` are forgotten instead of being too many; what comes again from there can no longer be compared and
    counts as a duplicate. Serves TCP and QUIC's CRYPTO frames alike.
    """

    def __init__(self, limit: int = DEFAULT_LIMIT, max_pieces: int = DEFAULT_SEGMENTS, *, window: bool = False) -> None:
        self.next = 0
        """Position after the last contiguous byte."""
        self.reason = ""
        self._limit = limit
        self._max_pieces = max_pieces
        self._window = window
        self._history = bytearray()
        self._starts: list[int] = []
        self._waiting: dict[int, bytes] = {}
        self._waiting_bytes = 0

    @property
    def content(self) -> bytes:
        """The contiguous bytes that are still kept; all of them without `window`."""
        return bytes(self._history)

    def insert(self, position: int, data: bytes) -> tuple[Outcome, list[tuple[int, bytes]]]:
        """Place `data`. Returns the outcome and the pieces, in order, that became contiguous by it."""
        end = position + len(data)
        if not self._starts and position == self.next and data and (self._window or not self._too_many(len(data))):
            self._advance(data)  # in order and nothing waiting: nearly every segment
            return Outcome.DATA, [(position, data)]
        if position < self.next:
            floor = self.next - len(self._history)
            lowest = max(position, floor)
            shared = min(end, self.next)
            if lowest < shared and (
                self._history[lowest - floor : shared - floor] != data[lowest - position : shared - position]
            ):
                self.reason = f"two versions of the bytes from {lowest} to {shared}"
                return Outcome.CONFLICT, []
            if end <= self.next:
                return Outcome.DUPLICATE, []
            data = data[self.next - position :]
            position = self.next
        if not data:
            return Outcome.DUPLICATE, []
        fresh = self._fresh(position, data)
        if fresh is None:
            return Outcome.CONFLICT, []
        if not fresh:
            return Outcome.DUPLICATE, []
        ahead = end - self.next
        if ahead > self._limit or self._too_many(sum(len(part) for _, part in fresh)):
            self.reason = f"more than {self._limit} bytes"
            return Outcome.FULL, []
        if len(self._starts) + len(fresh) > self._max_pieces:
            self.reason = f"more than {self._max_pieces} pieces out of order"
            return Outcome.FULL, []
        for start, part in fresh:
            self._starts.insert(bisect_left(self._starts, start), start)
            self._waiting[start] = part
            self._waiting_bytes += len(part)
        drained = self._drain()
        return (Outcome.DATA, drained) if drained else (Outcome.WAITING, [])

    def skip_gap(self) -> list[tuple[int, bytes]]:
        """Give up what is missing and go on at the first piece that waits (a capture that lost packets)."""
        if not self._starts:
            return []
        self.next = self._starts[0]
        self._history.clear()
        return self._drain()

    def skip_to(self, position: int) -> None:
        """Go on at a position ahead, with nothing waiting."""
        self.next = position
        self._history.clear()

    def _too_many(self, count: int) -> bool:
        if self._window:
            return self._waiting_bytes + count > self._limit
        return len(self._history) + self._waiting_bytes + count > self._limit

    def _fresh(self, position: int, data: bytes) -> list[tuple[int, bytes]] | None:
        """Cut away what waits already. None: the overlap differs."""
        end = position + len(data)
        fresh: list[tuple[int, bytes]] = []
        at = position
        for start in self._starts:
            part = self._waiting[start]
            stop = start + len(part)
            if stop <= at:
                continue
            if start >= end:
                break
            if start > at:
                fresh.append((at, data[at - position : start - position]))
                at = start
            shared = min(stop, end)
            if part[at - start : shared - start] != data[at - position : shared - position]:
                self.reason = f"two versions of the bytes from {at} to {shared}"
                return None
            at = shared
        if at < end:
            fresh.append((at, data[at - position :]))
        return fresh

    def _drain(self) -> list[tuple[int, bytes]]:
        drained = []
        while self._starts and self._starts[0] == self.next:
            start = self._starts.pop(0)
            part = self._waiting.pop(start)
            self._waiting_bytes -= len(part)
            self._advance(part)
            drained.append((start, part))
        return drained

    def _advance(self, data: bytes) -> None:
        self._history += data
        self.next += len(data)
        if self._window and len(self._history) > self._limit:
            del self._history[: len(self._history) - self._limit]


class Push:
    """The answer to one segment: `pieces` are (stream position, bytes), in order, newly contiguous."""

    __slots__ = ("outcome", "pieces")

    def __init__(self, outcome: Outcome, pieces: list[tuple[int, bytes]]) -> None:
        self.outcome = outcome
        self.pieces = pieces

    @property
    def data(self) -> bytes:
        return b"".join(part for _, part in self.pieces)


class StreamAssembler:
    """Turns segments of one direction into a byte stream, positions counted from its first byte.

    Without `window` every byte is kept up to `limit`, and conflict and full are final: so the gate uses it.
    With `window` it follows a stream of any length in a capture: only the last `limit` bytes are kept to
    compare with, and a segment that is in conflict or too far ahead is left out, for the caller to go on with
    `skip_gap` or `resume`.

    The first byte is the one after the SYN; without a SYN it is the first byte of the first segment seen, or
    `start` (a sequence number) when the caller knows it. Sequence numbers may wrap. Data in the SYN (Fast
    Open, RFC 7413) is data.
    """

    def __init__(
        self,
        limit: int = DEFAULT_LIMIT,
        max_segments: int = DEFAULT_SEGMENTS,
        *,
        start: int | None = None,
        window: bool = False,
    ) -> None:
        self._bytes = OrderedBytes(limit, max_segments, window=window)
        self._window = window
        self._next_seq = start
        self._initial = start
        self._final: Outcome | None = None
        self._reason = ""

    @property
    def reason(self) -> str:
        """Why the stream ended in conflict or full; empty before."""
        return self._reason

    @property
    def content(self) -> bytes:
        return self._bytes.content

    @property
    def began(self) -> int | None:
        """The sequence number of the first byte."""
        return self._initial

    @property
    def expected_seq(self) -> int | None:
        """The sequence number that comes next in order."""
        return self._next_seq

    def push(self, seq: int, payload: bytes, *, syn: bool = False) -> Push:
        """Take one segment; `seq` as in its header."""
        if self._final is not None:
            return Push(self._final, [])
        first = (seq + 1) & 0xFFFFFFFF if syn else seq
        if self._next_seq is None:
            self._next_seq = self._initial = first
        elif syn and first != self._initial:
            return self._end(Outcome.CONFLICT, "a second SYN with another sequence number")
        position = self._bytes.next + distance(first, self._next_seq)
        if position < 0:
            # Before the stream's first byte: the rest of a segment may still reach into it.
            payload = payload[-position:]
            position = 0
        before = self._bytes.next
        outcome, pieces = self._bytes.insert(position, payload)
        if outcome in (Outcome.CONFLICT, Outcome.FULL):
            return self._end(outcome, self._bytes.reason)
        self._moved(before)
        return Push(outcome, pieces)

    def skip_gap(self) -> Push:
        """Give up missing bytes (captures only: a gate that guesses here lets a name through)."""
        before = self._bytes.next
        pieces = self._bytes.skip_gap()
        self._moved(before)
        return Push(Outcome.DATA if pieces else Outcome.DUPLICATE, pieces)

    def resume(self, seq: int) -> None:
        """Go on at `seq`, far ahead (captures only). Nothing may be waiting: `skip_gap` first."""
        if self._next_seq is not None:
            self._bytes.skip_to(self._bytes.next + ((seq - self._next_seq) & 0xFFFFFFFF))
        self._next_seq = seq

    def _moved(self, before: int) -> None:
        if self._next_seq is not None:
            self._next_seq = (self._next_seq + self._bytes.next - before) & 0xFFFFFFFF

    def _end(self, outcome: Outcome, reason: str) -> Push:
        self._reason = reason
        if not self._window:
            self._final = outcome
        return Push(outcome, [])
