"""Take away what a run made: at its end, and for a run that could not do it itself.

Everything here works from the plan alone and does not mind what is not there. The order matters: the engine and its
clients die first, so that nothing is attached anew; the gate is detached while the namespaces that it is attached in
can still be entered; the processes that keep those namespaces die after that.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from engine.errors import SallyportError
from engine.kernel.detach import detach
from engine.kernel.pins import BPFFS, Pins, Record
from engine.lab.groups import Groups
from engine.lab.journal import Journal, Plan
from engine.lab.waiting import until


def undo(plan: Plan) -> list[str]:
    """Return what could not be taken away, one sentence each."""
    groups = Groups(plan.cgroup)
    problems = []
    for folder in (groups.engine, groups.guarded):
        _end(folder)
    pins = Pins.of(plan.state)
    if _is_ours(pins, groups):
        problems += detach(pins).problems
    if not _remove_group(plan.cgroup):
        problems.append(f"The control group {plan.cgroup} is still in use")
    if plan.mounts_bpffs:
        problems += _unmount_bpffs()
    if plan.work.exists():
        shutil.rmtree(plan.work, ignore_errors=True)
        if plan.work.exists():
            problems.append(f"The folder {plan.work} cannot be removed")
    return problems


def _is_ours(pins: Pins, groups: Groups) -> bool:
    """Is there a gate, and is it the run's? A state directory that was given may be somebody else's by now."""
    with suppress(FileNotFoundError, SallyportError):
        return Record.read(pins.record).cgroup == str(groups.guarded)
    return pins.root.exists() or pins.record.exists()


def undo_abandoned() -> None:
    """Clear up after every run that ended without doing so."""
    for journal in Journal.abandoned():
        journal.close(undo(journal.plan) if journal.plan is not None else ())


def _members(folder: Path) -> Iterator[int]:
    for procs in (folder / "cgroup.procs", *folder.rglob("cgroup.procs")):
        with suppress(OSError):
            yield from (int(word) for word in procs.read_text().split())


def _kill(pids: Iterable[int]) -> bool:
    """Return whether there was nobody left to kill."""
    none = True
    for pid in pids:
        none = False
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return none


def _end(folder: Path) -> None:
    """Kill whoever is in a control group or below it. The group is the lab's own: nobody else is in there."""
    until(lambda: _kill(_members(folder)))


def _remove_group(folder: Path) -> bool:
    """Remove a control group with all below it; the kernel says EBUSY until the last process is gone."""

    def gone() -> bool:
        # A program that was just being started joins at any moment until the group is gone, and cannot afterwards.
        _kill(_members(folder))
        for below in sorted(folder.rglob("*/"), reverse=True):
            with suppress(OSError):
                below.rmdir()
        with suppress(OSError):
            folder.rmdir()
        return not folder.exists()

    return until(gone)


def _unmount_bpffs() -> list[str]:
    # Unmounting would end whatever else is pinned by now, and that is not the lab's.
    if any(path.is_dir() for path in BPFFS.iterdir()) or not os.path.ismount(BPFFS):
        return []
    ended = subprocess.run(["umount", str(BPFFS)], check=False, capture_output=True, text=True)
    return [] if ended.returncode == 0 else [f"{BPFFS} cannot be unmounted: {ended.stderr.strip()}"]
