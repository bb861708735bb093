"""The watcher on real file systems: one change for what a person did, none for what an editor does beside it.

Each test waits for a change. That something is no change is proved by the next real one, which must be told
alone.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from engine.runtime import snapshot
from engine.runtime.watch import Change, PolicyWatcher, _Handler

NEVER = 3600.0
GIT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example",
    "PATH": os.environ["PATH"],
}


def git(folder: Path, *words: str) -> str:
    run = subprocess.run(["git", *words], cwd=folder, env=GIT, capture_output=True, text=True, check=True)
    return run.stdout.strip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "policy"
    (place / "rules" / "a").mkdir(parents=True)
    (place / "rules" / "a" / "a.rego").write_text("package a\n")
    (place / "data.json").write_text("{}\n")
    return place


@pytest.fixture
def work_tree(folder: Path) -> Path:
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def make(folder: Path, name: str, text: str) -> None:
    folder.mkdir()
    (folder / name).write_text(text)


def watch(folder: Path, story: Callable[[PolicyWatcher], Awaitable[None]], **more: object) -> None:
    """Run the story with a watcher that relies on notices: its sweep never comes."""

    async def main() -> None:
        watcher = PolicyWatcher(folder, **{"sweep": NEVER, **more})  # type: ignore[arg-type]
        await watcher.start()
        try:
            await story(watcher)
        finally:
            await watcher.stop()

    asyncio.run(asyncio.wait_for(main(), 60))


async def change(watcher: PolicyWatcher) -> Change:
    return await watcher.__anext__()


def test_a_saved_file_a_new_one_and_a_removed_one_are_each_told(folder: Path) -> None:
    async def story(watcher: PolicyWatcher) -> None:
        (folder / "data.json").write_text('{"a": 1}\n')
        assert await change(watcher) == Change(folder, ("data.json",), "", False)
        (folder / "rules" / "b" / "deep").mkdir(parents=True)
        (folder / "rules" / "b" / "deep" / "b.rego").write_text("package b\n")
        assert (await change(watcher)).files == ("rules/b/deep/b.rego",)
        (folder / "rules" / "b" / "deep" / "b.rego").write_text("package b2\n")
        assert (await change(watcher)).files == ("rules/b/deep/b.rego",)
        shutil.rmtree(folder / "rules" / "b")
        assert (await change(watcher)).files == ("rules/b/deep/b.rego",)

    watch(folder, story)


def test_a_burst_is_one_change(folder: Path) -> None:
    async def story(watcher: PolicyWatcher) -> None:
        for number in range(300):
            (folder / f"{number:03}.rego").write_text("package x\n")
        files: set[str] = set()
        changes = 0
        while len(files) < 300:
            files |= set((await change(watcher)).files)
            changes += 1
        assert files == {f"{number:03}.rego" for number in range(300)}
        assert changes == 1

    watch(folder, story, quiet=0.5, patience=30)


def test_atomic_saves_are_told_and_what_editors_put_beside_the_file_is_not(folder: Path) -> None:
    target = folder / "rules" / "a" / "a.rego"

    async def story(watcher: PolicyWatcher) -> None:
        for name in ("4913", ".a.rego.swp", "a.rego~", "#a.rego#", ".#a.rego", "sedXyZ123", "a.rego___jb_tmp___"):
            (target.parent / name).write_text("x")
        (target.parent / "4913").unlink()
        (target.parent / "a.rego.tmp").write_text("package a2\n")
        (target.parent / "a.rego.tmp").rename(target)
        assert (await change(watcher)).files == ("rules/a/a.rego",)
        await asyncio.to_thread(subprocess.run, ["sed", "-i", "s/a2/a3/", str(target)], check=True)
        assert (await change(watcher)).files == ("rules/a/a.rego",)
        target.rename(target.with_suffix(".rego~"))
        target.write_text("package a4\n")
        assert (await change(watcher)).files == ("rules/a/a.rego",)

    watch(folder, story)


def test_reading_the_policy_is_no_change(folder: Path) -> None:
    async def story(watcher: PolicyWatcher) -> None:
        for _ in range(20):
            (folder / "data.json").read_text()
            snapshot.take(folder, None)
        (folder / "data.json").write_text("[]\n")
        assert (await change(watcher)).files == ("data.json",)

    watch(folder, story)


def test_a_folder_that_is_removed_and_made_again_is_watched_again(folder: Path) -> None:
    async def story(watcher: PolicyWatcher) -> None:
        shutil.rmtree(folder)
        gone = await change(watcher)
        while gone.folder is not None:  # part of it may be told before all of it is gone
            gone = await change(watcher)
        make(folder, "new.rego", "package n\n")
        back = await change(watcher)
        while "new.rego" not in back.files:
            back = await change(watcher)
        assert back.folder == folder
        (folder / "new.rego").write_text("package n2\n")
        assert (await change(watcher)).files == ("new.rego",)

    watch(folder, story)


def test_a_folder_put_in_the_place_of_another_is_watched_instead(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"

    def replace() -> None:
        make(other, "o.rego", "package o\n")
        folder.rename(tmp_path / "old")
        other.rename(folder)

    async def story(watcher: PolicyWatcher) -> None:
        replace()
        told: set[str] = set()
        while "o.rego" not in told:
            told |= set((await change(watcher)).files)
        (folder / "o.rego").write_text("package o2\n")
        assert (await change(watcher)).files == ("o.rego",)

    watch(folder, story)


def test_a_link_to_the_policy_that_is_swapped_is_followed(tmp_path: Path) -> None:
    for release in ("1", "2"):
        (tmp_path / "releases" / release).mkdir(parents=True)
        (tmp_path / "releases" / release / "p.rego").write_text(f"package r{release}\n")
    current = tmp_path / "etc" / "current"
    current.parent.mkdir()
    current.symlink_to("../releases/1")

    async def story(watcher: PolicyWatcher) -> None:
        (current.parent / "next").symlink_to("../releases/2")
        (current.parent / "next").rename(current)
        swapped = await change(watcher)
        assert (swapped.folder, swapped.files) == (tmp_path / "releases" / "2", ("p.rego",))
        (tmp_path / "releases" / "1" / "p.rego").write_text("package old\n")
        (tmp_path / "releases" / "2" / "q.rego").write_text("package q\n")
        assert (await change(watcher)).files == ("q.rego",)

    watch(current, story)


def test_a_kubernetes_volume_that_swaps_its_data_link_is_one_change(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    (volume / "..2026_1").mkdir(parents=True)
    (volume / "..2026_1" / "p.rego").write_text("package one\n")
    (volume / "..data").symlink_to("..2026_1")
    (volume / "p.rego").symlink_to("..data/p.rego")

    async def story(watcher: PolicyWatcher) -> None:
        (volume / "..2026_2").mkdir()
        (volume / "..2026_2" / "p.rego").write_text("package two\n")
        (volume / "..data_tmp").symlink_to("..2026_2")
        (volume / "..data_tmp").rename(volume / "..data")
        shutil.rmtree(volume / "..2026_1")
        assert (await change(watcher)).files == ("p.rego",)

    watch(volume, story)


def test_a_commit_moves_the_head_though_no_file_changes(work_tree: Path) -> None:
    async def story(watcher: PolicyWatcher) -> None:
        first = git(work_tree, "rev-parse", "HEAD")
        (work_tree / "data.json").write_text("[1]\n")
        saved = await change(watcher)
        assert (saved.files, saved.head, saved.head_moved) == (("data.json",), first, False)
        git(work_tree, "commit", "-q", "-a", "-m", "second")
        committed = await change(watcher)
        second = git(work_tree, "rev-parse", "HEAD")
        assert (committed.files, committed.head, committed.head_moved) == ((), second, True)

    watch(work_tree, story)


def test_asking_git_for_its_status_is_no_change(work_tree: Path) -> None:
    async def story(watcher: PolicyWatcher) -> None:
        os.utime(work_tree / "data.json")
        assert (await change(watcher)).files == ("data.json",)
        git(work_tree, "status")
        git(work_tree, "gc", "-q")
        (work_tree / "new.rego").write_text("package n\n")
        assert await change(watcher) == Change(work_tree, ("new.rego",), git(work_tree, "rev-parse", "HEAD"), False)

    watch(work_tree, story)


def test_a_checkout_of_another_branch_changes_files_and_head(work_tree: Path) -> None:
    git(work_tree, "checkout", "-q", "-b", "other")
    (work_tree / "data.json").write_text("[2]\n")
    git(work_tree, "commit", "-q", "-a", "-m", "other")

    async def story(watcher: PolicyWatcher) -> None:
        git(work_tree, "checkout", "-q", "main")
        told = await change(watcher)
        files, head = set(told.files), told.head
        while head != git(work_tree, "rev-parse", "main") or files != {"data.json"}:
            told = await change(watcher)
            files, head = files | set(told.files), told.head

    watch(work_tree, story)


def test_a_folder_deep_in_a_linked_work_tree_finds_its_git_folder(work_tree: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    git(work_tree, "worktree", "add", "-q", "-b", "linked", str(linked))
    policy = linked / "rules"

    async def story(watcher: PolicyWatcher) -> None:
        git(linked, "commit", "-q", "--allow-empty", "-m", "empty")
        told = await change(watcher)
        assert (told.files, told.head) == ((), git(linked, "rev-parse", "HEAD"))
        first = git(work_tree, "rev-parse", "main")
        git(work_tree, "update-ref", "refs/heads/linked", first)
        assert (await change(watcher)).head == first

    watch(policy, story)


def _messages(loop: asyncio.AbstractEventLoop, word: str) -> tuple[logging.Handler, asyncio.Event]:
    said = asyncio.Event()

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if word in record.getMessage():
                loop.call_soon_threadsafe(said.set)

    return Listening(), said


@pytest.mark.parametrize("marker", ["rebase-merge", "rebase-apply", "index.lock"])
def test_while_git_is_at_work_nothing_is_told_and_afterwards_everything(work_tree: Path, marker: str) -> None:
    async def story(watcher: PolicyWatcher) -> None:
        logger = logging.getLogger("engine.runtime.watch")
        logger.setLevel(logging.INFO)
        handler, waiting = _messages(asyncio.get_running_loop(), "git is at work")
        logger.addHandler(handler)
        place = work_tree / ".git" / marker
        try:
            if marker == "index.lock":
                place.touch()
            else:
                place.mkdir()
            (work_tree / "half.rego").write_text("<<<<<<<\n")
            await waiting.wait()
        finally:
            logger.removeHandler(handler)
        (work_tree / "half.rego").unlink()
        (work_tree / "whole.rego").write_text("package w\n")
        if marker == "index.lock":
            place.unlink()
        else:
            place.rmdir()
        assert (await change(watcher)).files == ("whole.rego",)

    watch(work_tree, story)


def test_a_real_rebase_ends_in_the_state_after_it(work_tree: Path) -> None:
    git(work_tree, "checkout", "-q", "-b", "topic")
    for number in range(3):
        (work_tree / f"t{number}.rego").write_text("package t\n")
        git(work_tree, "add", "-A")
        git(work_tree, "commit", "-q", "-m", f"topic {number}")
    git(work_tree, "checkout", "-q", "main")
    (work_tree / "m.rego").write_text("package m\n")
    git(work_tree, "add", "-A")
    git(work_tree, "commit", "-q", "-m", "main")
    git(work_tree, "checkout", "-q", "topic")

    async def story(watcher: PolicyWatcher) -> None:
        await asyncio.to_thread(git, work_tree, "rebase", "-q", "main")
        after = git(work_tree, "rev-parse", "HEAD")
        told = await change(watcher)
        files = set(told.files)
        while told.head != after:
            told = await change(watcher)
            files |= set(told.files)
        assert "m.rego" in files

    watch(work_tree, story)


class _Full:
    """An observer on a host where no more watches are to be had."""

    def __new__(cls) -> object:
        observer = Observer()

        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        observer.schedule = refuse  # type: ignore[method-assign]
        return observer


def _no_instance() -> object:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.mark.parametrize("observer", [_Full, _no_instance])
def test_without_notices_to_be_had_the_folder_is_polled_and_that_is_said(
    folder: Path, observer: object, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(watcher: PolicyWatcher) -> None:
        assert watcher.polling
        (folder / "data.json").write_text("[3]\n")
        assert (await change(watcher)).files == ("data.json",)

    watch(folder, story, observer=observer, poll=0.05)
    assert sum("max_user_watches" in record.getMessage() for record in caplog.records) == 1


def test_changes_that_come_without_a_notice_are_found_by_the_sweep_which_then_turns_to_polling(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Deaf:
        def __new__(cls) -> object:
            observer = Observer()
            schedule = observer.schedule
            observer.schedule = lambda _handler, *words, **more: schedule(  # type: ignore[method-assign]
                FileSystemEventHandler(), *words, **more
            )
            return observer

    async def story(watcher: PolicyWatcher) -> None:
        handler, polling = _messages(asyncio.get_running_loop(), "without a notice")
        logging.getLogger("engine.runtime.watch").addHandler(handler)
        try:
            (folder / "data.json").write_text("[4]\n")
            assert (await change(watcher)).files == ("data.json",)
            await polling.wait()
        finally:
            logging.getLogger("engine.runtime.watch").removeHandler(handler)
        (folder / "data.json").write_text("[55]\n")
        assert (await change(watcher)).files == ("data.json",)

    watch(folder, story, observer=Deaf, sweep=0.05, poll=0.05)


def test_an_iteration_ends_when_the_watcher_stops(folder: Path) -> None:
    async def main() -> list[Change]:
        watcher = PolicyWatcher(folder, sweep=NEVER)
        await watcher.start()
        (folder / "data.json").write_text("[6]\n")
        found = []
        async for told in watcher:
            found.append(told)
            asyncio.get_running_loop().call_soon(lambda: stopping.append(asyncio.ensure_future(watcher.stop())))
        await asyncio.gather(*stopping)
        return found

    stopping: list[asyncio.Future[None]] = []
    assert [told.files for told in asyncio.run(asyncio.wait_for(main(), 60))] == [("data.json",)]


def test_reading_the_folder_is_no_notice_and_writing_is_one_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    told = asyncio.Event()
    real = _Handler.on_any_event

    def on_any_event(handler: _Handler, event: FileSystemEvent) -> None:
        heard.append(Path(os.fsdecode(event.src_path)).name)
        real(handler, event)

    monkeypatch.setattr(_Handler, "on_any_event", on_any_event)

    async def story(watcher: PolicyWatcher) -> None:
        for _ in range(20):
            (folder / "rules" / "a" / "a.rego").read_text()
        (folder / "data.json").write_text("[7]\n")
        await told.wait()
        assert (await change(watcher)).files == ("data.json",)
        assert "data.json" in heard
        assert "a.rego" not in heard

    watch(folder, story, noticed=told.set)


def test_a_link_that_leads_round_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert snapshot.route(tmp_path / "a").real is None


def test_a_folder_that_links_to_itself_is_walked_once(folder: Path) -> None:
    (folder / "rules" / "up").symlink_to("..")
    assert set(snapshot.take(folder, None).files) == {"data.json", "rules/a/a.rego"}


def test_heads_are_read_loose_packed_detached_and_unborn(work_tree: Path, tmp_path: Path) -> None:
    found = snapshot.find_git(work_tree)
    assert found is not None
    commit = git(work_tree, "rev-parse", "HEAD")
    assert found.head() == commit
    git(work_tree, "pack-refs", "--all")
    assert not (work_tree / ".git" / "refs" / "heads" / "main").exists()
    assert found.head() == commit
    git(work_tree, "checkout", "-q", "--detach")
    assert found.head() == commit
    empty = tmp_path / "empty"
    empty.mkdir()
    git(empty, "init", "-q", "-b", "main")
    unborn = snapshot.find_git(empty)
    assert unborn is not None
    assert unborn.head() == "ref: refs/heads/main"
    assert snapshot.find_git(tmp_path) is None
