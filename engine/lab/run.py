"""What every run of its own network has in common: its needs, its journal, its ground, and that nothing is left."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from engine.errors import PrivilegeError
from engine.kernel.pins import BPFFS, Pins
from engine.lab.errors import LabError
from engine.lab.groups import Groups
from engine.lab.interruption import undisturbed
from engine.lab.journal import Journal, Plan
from engine.lab.place import Place, environment
from engine.lab.undo import undo, undo_abandoned
from engine.runtime.cgroups import find_mount

BASE = ("ip", "nsenter", "unshare", "mount", "umount")
"""Programs that no run can do without."""
T = TypeVar("T")


@contextmanager
def opened(
    build: Callable[[Plan, ExitStack], T],
    programs: Sequence[str],
    state_dir: Path | None,
    begun: Callable[[str], None],
) -> Iterator[T]:
    """Build what a run works with; take everything away at the end, whatever the end is. LabError when it cannot be
    built.

    `build` puts what must be closed first into its stack. `programs` it calls. `begun` hears the run's name before
    anything is made: it is part of the name of everything that will be.
    """
    _require(state_dir, programs)
    undo_abandoned()
    mount = find_mount(Path("/proc/self/mountinfo").read_text())
    plan = Plan.fresh(state_dir, mount, mounts_bpffs=not os.path.ismount(BPFFS))
    journal = Journal.begin(plan)
    parts = ExitStack()
    try:
        begun(plan.run)
        yield build(plan, parts)
    finally:
        with undisturbed():
            parts.close()
            problems = undo(plan)
            journal.close(problems)
    if problems:
        raise LabError("Not everything could be taken away: " + "; ".join(problems))


def ground(plan: Plan) -> tuple[Groups, Place]:
    """Make what all else stands on: control groups, bpffs, the folder for files. Return the groups and the place of
    the run's own tools."""
    groups = Groups(plan.cgroup)
    groups.make()
    tools = Place(groups.tools)
    if plan.mounts_bpffs:
        done = tools.run(["mount", "-t", "bpf", "bpf", str(BPFFS)])
        if done.code != 0:
            raise LabError(f"The BPF file system cannot be mounted at {BPFFS}: {done.last_words}")
    plan.work.mkdir(mode=0o700)
    return groups, tools


def _require(state_dir: Path | None, programs: Sequence[str]) -> None:
    if os.geteuid() != 0:
        raise PrivilegeError("Making network namespaces needs root", hint="Run it with sudo.")
    path = environment()["PATH"]
    missing = [program for program in programs if shutil.which(program, path=path) is None]
    if missing:
        raise LabError(f"This needs {', '.join(missing)}", hint="`make setup` installs what is missing.")
    if state_dir is None:
        return
    pins = Pins.of(state_dir)
    # At its end the lab takes the gate of its state directory down: that must not be somebody else's.
    if pins.root.exists() or pins.record.exists():
        raise LabError(
            f"An engine is at work with the state directory {state_dir}",
            hint="Give the lab a directory of its own.",
        )
