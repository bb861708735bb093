"""Watches the policy folder and says when it has changed and come to rest.

Notices of the file system (inotify, through watchdog) only say when to look; what changed is decided by
comparing two snapshots. So nothing depends on the exact events of an editor, and an event too many costs
nothing but a look. A slow sweep looks even without a notice: network file systems send none, queues
overflow, and the number of watches a user may have is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from watchdog import events
from watchdog.events import FileClosedNoWriteEvent, FileOpenedEvent, FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver, ObservedWatch

from engine.runtime import snapshot
from engine.runtime.snapshot import GitFolder, Snapshot

log = logging.getLogger(__name__)

LOCK_PATIENCE = 10.0
"""Seconds after which an index.lock is one that a git which crashed left behind."""
NOTICE_DELAY = 1.0
"""Seconds within which a notice arrives, if it ever does."""
_READING = (FileSystemEvent, FileOpenedEvent, FileClosedNoWriteEvent)
_WRITING = [
    kind
    for kind in vars(events).values()
    if isinstance(kind, type) and issubclass(kind, FileSystemEvent) and kind not in _READING
]
"""What a watch is for. The engine's own reading of the policy must not look like a change, and the kernel is not even
asked for it: 3,000 files would be 9,000 notices, and watchdog would take 0.1 s of a reload for them."""
_NOISE = ("/.git/objects/", "/.git/logs/")
_Key = tuple[int, int, "_Wanted"]


@dataclass(frozen=True)
class Change:
    """What differs from the change before. `folder`: where the path leads now, None when it leads nowhere.
    `files`: relative paths added, removed or changed. `head`: the commit now, empty outside of git."""

    folder: Path | None
    files: tuple[str, ...]
    head: str
    head_moved: bool


@dataclass(frozen=True)
class _Wanted:
    """How to watch a folder: with everything below it or not, and for which names in it (None: all)."""

    deep: bool
    names: frozenset[str] | None


class _Handler(FileSystemEventHandler):
    def __init__(self, notice: Callable[[], None], names: frozenset[str] | None) -> None:
        self._notice = notice
        self._names = names

    def on_any_event(self, event: FileSystemEvent) -> None:
        paths = [Path(os.fsdecode(path)) for path in (event.src_path, event.dest_path) if path]
        if self._names is not None and not any(path.name in self._names for path in paths):
            return
        if not any(part in str(paths[0]) for part in _NOISE):
            self._notice()


class PolicyWatcher:
    """`async for change in watcher`, between `start()` and `stop()`. Changes that nobody has taken yet
    become one.

    Start it before the policy is read for the first time, so that nothing falls between. Seconds: `quiet`
    without a notice before a look, at most `patience` after the first; `sweep` between looks without any
    notice, `poll` instead of it while notices do not work. While git is in the middle of a rebase, or holds
    its index.lock, there is no look: the work tree is not what anybody wants.

    A change of nothing but the index (git add, git rm --cached) is none. `noticed` is called at the first notice of a
    burst, long before the change that it may turn out to be.
    """

    def __init__(
        self,
        folder: Path,
        *,
        quiet: float = 0.1,
        patience: float = 2.0,
        sweep: float = 5.0,
        poll: float = 1.0,
        observer: Callable[[], BaseObserver] = Observer,
        noticed: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder = Path(os.path.abspath(folder))  # noqa: PTH100 - resolve() would follow the links
        self._quiet = quiet
        self._patience = patience
        self._sweep = sweep
        self._poll = poll
        self._make_observer = observer
        self._on_notice = noticed
        self._observer: BaseObserver | None = None
        self._watches: dict[Path, tuple[ObservedWatch, _Key]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._noticed = asyncio.Event()
        self._signalled = False
        self._last_notice = 0.0
        self._seen = Snapshot(None, {}, "")
        self._told = self._seen
        self._changed = asyncio.Event()
        self._waiting_for = ""
        self._waiting_since = 0.0
        self._stopped = False
        self.polling = False

    async def start(self) -> None:
        """Set the watches and remember the folder as it is now."""
        self._loop = asyncio.get_running_loop()
        try:
            self._observer = self._make_observer()
            self._observer.start()
        except OSError as error:
            self._observer = None
            self._poll_instead(error.strerror or str(error))
        git = await asyncio.to_thread(self._rewatch)
        self._seen = self._told = await asyncio.to_thread(self._take, git)
        self._task = self._loop.create_task(self._run(), name="policy-watch")

    async def stop(self) -> None:
        """End the watching; an iteration under way ends too."""
        self._stopped = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        observer, self._observer = self._observer, None
        if observer is not None:
            # Both wait for watchdog's own threads.
            await asyncio.to_thread(observer.stop)
            await asyncio.to_thread(observer.join)
        self._changed.set()

    def __aiter__(self) -> PolicyWatcher:
        return self

    async def __anext__(self) -> Change:
        while not self._stopped:
            await self._changed.wait()
            self._changed.clear()
            before, after = self._told, self._seen
            files = before.differences(after)
            if files or before.head != after.head or before.real != after.real:
                self._told = after
                return Change(after.real, files, after.head, before.head != after.head)
        raise StopAsyncIteration

    def _notice(self) -> None:
        """Called in watchdog's thread, for every event: one call into the loop for a burst of them."""
        self._last_notice = time.monotonic()
        if not self._signalled and self._loop is not None:
            self._signalled = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._noticed.set)

    async def _run(self) -> None:
        while True:
            announced = True
            try:
                await asyncio.wait_for(self._noticed.wait(), self._poll if self.polling else self._sweep)
            except (TimeoutError, asyncio.TimeoutError):
                announced = False
            else:
                self._on_notice()
            await self._rest()
            try:
                await self._look(announced=announced)
            except Exception:  # whatever it was, the folder must go on being watched
                log.exception("looking at the policy folder %s failed", self._folder)

    async def _rest(self) -> None:
        first = time.monotonic()
        while True:
            wait = min(self._last_notice + self._quiet, first + self._patience) - time.monotonic()
            if wait <= 0:
                break
            await asyncio.sleep(wait)
        # Cleared before the look: what happens from here on is announced anew.
        self._signalled = False
        self._noticed.clear()

    async def _look(self, *, announced: bool) -> None:
        # Watches first: what comes after them is announced, what came before them is in the snapshot.
        git = await asyncio.to_thread(self._rewatch)
        if self._must_wait(git):
            return
        after = await asyncio.to_thread(self._take, git)
        if after == self._seen:
            return
        self._seen = after
        self._changed.set()
        if not announced and not self.polling:
            # A sweep may be quicker than a notice: watchdog keeps the first half of a rename back for 0.5 s.
            try:
                await asyncio.wait_for(self._noticed.wait(), NOTICE_DELAY)
            except (TimeoutError, asyncio.TimeoutError):
                self._poll_instead("a change came without a notice")

    def _must_wait(self, git: GitFolder | None) -> bool:
        busy = git.under_way() if git is not None else ""
        if busy != self._waiting_for:
            self._waiting_for, self._waiting_since = busy, time.monotonic()
            if busy:
                log.info("git is at work (%s) in the policy's work tree: waiting for it", busy)
        if busy == "index.lock" and time.monotonic() - self._waiting_since > LOCK_PATIENCE:
            log.warning("%s is left over from a git that ended early: remove it", git.git / busy if git else busy)
            return False
        return bool(busy)

    def _take(self, git: GitFolder | None) -> Snapshot:
        return snapshot.take(snapshot.route(self._folder).real, git)

    def _poll_instead(self, why: str) -> None:
        self.polling = True
        log.warning(
            "the policy folder is looked at every %g s, because %s (fs.inotify.max_user_watches and "
            "max_user_instances bound the notices that a user may have; network file systems give none)",
            self._poll,
            why,
        )

    def _rewatch(self) -> GitFolder | None:
        """Set the watches that the folder needs now, and return its git folder. In a thread: walks
        folders."""
        way = snapshot.route(self._folder)
        git = snapshot.find_git(way.real) if way.real is not None else None
        names: dict[Path, set[str]] = {}
        for parent, name in way.steps:
            names.setdefault(parent, set()).add(name)
        wanted = {parent: _Wanted(deep=False, names=frozenset(some)) for parent, some in names.items()}
        if git is not None and way.real is not None and way.real not in git.git.parents:
            wanted |= dict.fromkeys((git.git, git.common), _Wanted(deep=False, names=None))
            wanted[git.common / "refs"] = _Wanted(deep=True, names=None)
        if way.real is not None:
            wanted[way.real] = _Wanted(deep=True, names=None)
        observer = self._observer
        if observer is None:
            return git
        keys = {path: key for path, how in wanted.items() if (key := _key(path, how)) is not None}
        alive = {emitter.watch for emitter in observer.emitters if emitter.is_alive()}
        for path, (watch, key) in list(self._watches.items()):
            # Another inode at the same path is another folder, and watches stay with the old one.
            if keys.get(path) != key or watch not in alive:
                del self._watches[path]
                with contextlib.suppress(KeyError):
                    observer.unschedule(watch)
        for path, key in keys.items():
            if path not in self._watches:
                self._watch(observer, path, key)
        return git

    def _watch(self, observer: BaseObserver, path: Path, key: _Key) -> None:
        how = key[2]
        try:
            watch = observer.schedule(
                _Handler(self._notice, how.names), str(path), recursive=how.deep, event_filter=_WRITING
            )
            self._watches[path] = (watch, key)
        except (FileNotFoundError, NotADirectoryError):
            self._notice()  # gone since a moment ago: look once more
        except OSError as error:
            if not self.polling:
                self._poll_instead(error.strerror or str(error))


def _key(path: Path, how: _Wanted) -> _Key | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino, how)
