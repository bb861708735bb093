"""The audit log as the engine sees it: append now, durable and signed a moment later, nothing lost silently.

`append` never touches the disk. A writer thread (or the caller, with `commit`) takes what is queued, at the
latest after 20 ms, and acknowledges it when lines and head are on the disk. What does not fit the bounded
queue is counted, and a `gap` entry takes its place in the order.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from audit.checkpoint import Head
from audit.disk import Disk
from audit.entry import FORMAT_VERSION, Entry, Generation, encode, note
from audit.errors import DiskError
from audit.layout import LONGEST_LINE
from audit.ocsf import stamp
from audit.store import HEAD_EVERY, SEGMENT_BYTES, Store

_logger = logging.getLogger(__name__)
CLOCK_TOLERANCE_NS = 1_000_000_000
_LARGEST_BATCH = 16 * HEAD_EVERY
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


class Clock(Protocol):
    """Where time comes from. `boot`: what `mono_ns` counts from, another value after each start of the
    machine."""

    boot: str

    def read(self) -> tuple[int, int]:
        """Return (wall, monotonic) nanoseconds."""


class SystemClock:
    """CLOCK_BOOTTIME counts suspend: a laptop's sleep is no clock step."""

    def __init__(self) -> None:
        self.boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    def read(self) -> tuple[int, int]:
        return time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Limits:
    """Bounds of the queue (entries, bytes) and of the wait (seconds)."""

    queue_entries: int = 65_536
    queue_bytes: int = 64 << 20
    batch_seconds: float = 0.02
    heartbeat_seconds: float = 60.0
    segment_bytes: int = SEGMENT_BYTES


@dataclass(frozen=True)
class LogState:
    """How the log is. `durable`: entries on disk under `head`. `lost`: since opening; `unreported` of them
    have no gap entry yet. `error`: one sentence while `status` is failing, else empty."""

    status: Literal["open", "failing", "closed"]
    error: str
    queued: int
    durable: int
    lost: int
    unreported: int
    head: Head | None


class AuditLog:
    """The one writer of a log directory. Every method may be called from any thread."""

    def __init__(self, store: Store, *, limits: Limits | None = None, clock: Clock | None = None) -> None:
        self._store = store
        self._limits = limits or Limits()
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._done = threading.Condition(self._lock)
        self._committing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._closed = False
        self._queue: list[bytes] = []
        self._queue_bytes = 0
        self._next = store.size
        self._durable = store.head.size if store.head else 0
        self._head = store.head
        self._error = ""
        self._losses: dict[str, int] = {}
        self._lost = 0
        last = store.last
        self._last = (last.time_ns, last.mono_ns) if last and last.boot == self._clock.boot else None
        self._subscribers: list[Callable[[Head], None]] = []
        self._waiting: list[tuple[int, asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self.generation: Generation | None = None
        """Given to every entry that brings none of its own."""

    @classmethod
    def open(
        cls,
        state_dir: Path,
        *,
        origin: str = "",
        limits: Limits | None = None,
        clock: Clock | None = None,
        disk: Disk | None = None,
        thread: bool = True,
        **detail: Any,
    ) -> AuditLog:
        """Open the log below a state directory, recover its tail and write the `start` entry with `detail`.

        Without `thread` the caller drives `commit`. Raise LockedError, KeyFileError, BrokenLogError or
        DiskError; a disk that is merely full does not raise: the state says so and the writer goes on trying.
        """
        limits = limits or Limits()
        store = Store(state_dir, origin=origin, segment_bytes=limits.segment_bytes, disk=disk)
        log = cls(store, limits=limits, clock=clock)
        if store.recovery:
            log.append(note("recovery", **store.recovery))
        ended = store.last is None or store.last.type == "stop"
        key = store.key.verifier
        ours = {"format": FORMAT_VERSION, "origin": key.name, "key": str(key), "previous_stop": ended}
        log.append(note("start", **(detail | ours)))
        log.commit()
        if thread:
            log._thread = threading.Thread(target=log._run, name="audit-writer", daemon=True)
            log._thread.start()
        return log

    @property
    def state(self) -> LogState:
        with self._lock:
            status: Literal["open", "failing", "closed"] = (
                "closed" if self._closed else ("failing" if self._error else "open")
            )
            unreported = sum(self._losses.values())
            return LogState(status, self._error, len(self._queue), self._durable, self._lost, unreported, self._head)

    @property
    def verifier_key(self) -> str:
        """The public key as `NAME+ID+BASE64`, to be published where the host cannot change it."""
        return str(self._store.key.verifier)

    def on_durable(self, callback: Callable[[Head], None]) -> None:
        """Have `callback` called with each new head, on the writer's thread: it must be quick."""
        with self._lock:
            self._subscribers.append(callback)

    def append(self, entry: Entry) -> int | None:
        """Queue an entry and return its sequence number; None when it was lost, which is counted.

        Never waits for the disk. Raise TypeError when `detail` holds what JSON cannot.
        """
        with self._lock:
            if self._closing or self._full():
                self._lose("the log is closed" if self._closing else self._error or "the queue is full")
                return None
            if self._losses:
                self._report_losses()
            return self._push(entry)

    def _full(self) -> bool:
        return len(self._queue) >= self._limits.queue_entries or self._queue_bytes >= self._limits.queue_bytes

    def _lose(self, reason: str) -> None:
        self._losses[reason] = self._losses.get(reason, 0) + 1
        self._lost += 1

    def _report_losses(self) -> None:
        losses, self._losses = self._losses, {}
        for reason, count in losses.items():
            self._push(note("gap", count=count, reason=reason))

    def _push(self, entry: Entry) -> int | None:
        time_ns, mono_ns = self._clock.read()
        if self._last is not None:
            wall, mono = time_ns - self._last[0], mono_ns - self._last[1]
            if mono < 0 or abs(wall - mono) > CLOCK_TOLERANCE_NS:
                self._write(note("clock", wall_ns=wall, mono_ns=mono), time_ns, mono_ns)
        return self._write(entry, time_ns, mono_ns)

    def _write(self, entry: Entry, time_ns: int, mono_ns: int) -> int | None:
        entry.seq, entry.time_ns, entry.mono_ns, entry.boot = self._next, time_ns, mono_ns, self._clock.boot
        if entry.generation is None:
            entry.generation = self.generation
        if entry.ocsf is not None:
            stamp(entry)
        line = encode(entry)
        if len(line) > LONGEST_LINE:
            self._lose("an entry was longer than a line may be")
            return None
        self._last = (time_ns, mono_ns)
        self._queue.append(line)
        self._queue_bytes += len(line)
        self._next += 1
        if len(self._queue) in (1, HEAD_EVERY):
            self._work.notify()
        return entry.seq

    def commit(self) -> bool:
        """Bring everything queued to the disk, on the caller's thread. False when the disk refused
        (`state`)."""
        with self._committing:
            while True:
                with self._lock:
                    if not self._full():
                        self._report_losses()
                    batch = self._queue[:_LARGEST_BATCH]
                if not batch:
                    return not self._error
                try:
                    head = self._store.commit(batch)
                except DiskError as error:
                    with self._lock:
                        self._error = error.message
                    return False
                self._acknowledge(batch, head)

    def _acknowledge(self, batch: list[bytes], head: Head) -> None:
        with self._lock:
            del self._queue[: len(batch)]
            self._queue_bytes -= sum(map(len, batch))
            self._durable, self._head, self._error = head.size, head, ""
            ready = [waiter for waiter in self._waiting if waiter[0] < head.size]
            self._waiting = [waiter for waiter in self._waiting if waiter[0] >= head.size]
            subscribers = list(self._subscribers)
            self._done.notify_all()
        for _, loop, future in ready:
            _settle(loop, future, None)
        for callback in subscribers:
            _tell(callback, head)

    def wait(self, seq: int, timeout: float | None = None) -> bool:
        """Block until the entry is durable; False after `timeout` seconds or when the log closed without
        it."""
        with self._done:
            self._done.wait_for(lambda: self._durable > seq or self._closed, timeout)
            return self._durable > seq

    async def until(self, seq: int) -> None:
        """Return when the entry is durable. Raise DiskError when the log closes without it."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._lock:
            if self._durable > seq:
                return
            if self._closed:
                raise _undurable()
            self._waiting.append((seq, loop, future))
        await future

    def _run(self) -> None:
        pause = 0.0
        while True:
            with self._work:
                if pause:
                    self._work.wait_for(lambda: self._closing, pause)
                elif not self._work.wait_for(lambda: self._closing or self._queue, self._limits.heartbeat_seconds):
                    self._push(note("heartbeat", lost=self._lost))
                if len(self._queue) < HEAD_EVERY and not self._closing:
                    self._work.wait_for(
                        lambda: self._closing or len(self._queue) >= HEAD_EVERY, self._limits.batch_seconds
                    )
                closing = self._closing
            written = self.commit()
            pause = 0.0 if written else min(_LONGEST_PAUSE, max(_FIRST_PAUSE, 2 * pause))
            if closing:
                return

    def close(self, **detail: Any) -> None:
        """Write the `stop` entry with `detail`, bring everything to the disk and give the directory free.

        Raise DiskError when entries could not be written; the directory is free even then.
        """
        with self._lock:
            if self._closing:
                return
            self._report_losses()
            self._push(note("stop", **({"lost": self._lost} | detail)))
            self._closing = True
            self._work.notify_all()
        if self._thread is not None:
            self._thread.join()
        written = self.commit()
        self._store.close()
        with self._lock:
            self._closed = True
            left, error = len(self._queue), self._error
            waiting, self._waiting = self._waiting, []
            self._done.notify_all()
        for _, loop, future in waiting:
            _settle(loop, future, _undurable())
        if not written:
            raise DiskError(
                f"{left} entries of the audit log could not be written. {error}",
                hint="They are lost; the next start will show that no stop entry was written.",
            )


def _tell(callback: Callable[[Head], None], head: Head) -> None:
    try:
        callback(head)
    except Exception:
        # Somebody else's fault must not end the only thread that writes evidence.
        _logger.exception("a subscriber of the audit log failed")


def _undurable() -> DiskError:
    return DiskError("The audit log was closed before the entry was on the disk.", hint="See the log's state.")


def _settle(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None], error: DiskError | None) -> None:
    def finish() -> None:
        if future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    try:
        loop.call_soon_threadsafe(finish)
    except RuntimeError:
        _logger.debug("the event loop that waited for the audit log is gone")
