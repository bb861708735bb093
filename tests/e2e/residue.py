"""What is left of a run of the lab, looked at from outside.

Everything that a run makes bears the run's name, so other runs on the same machine do not matter here.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from engine.kernel import libbpf
from engine.kernel.pins import Pins
from engine.lab.journal import JOURNALS
from engine.runtime.cgroups import find_mount


def residue(run: str, state_dir: Path | None = None) -> list[str]:
    """Everything of a run that there is at this moment, one `KIND NAME` each."""
    pins = pins_of(run, state_dir)
    mounts = Path("/proc/self/mountinfo").read_text()
    found = [f"group {path}" for path in find_mount(mounts).glob(f"*{run}*")]
    found += [f"file {path}" for path in JOURNALS.glob(f"*{run}*")]
    found += [f"pin {path}" for path in (pins.root, pins.record) if path.exists()]
    found += [f"mount {line}" for line in mounts.splitlines() if run in line]
    found += [f"link {name}" for name in _links() if pins.instance in name]
    for folder in _processes(run):
        with suppress(FileNotFoundError, ProcessLookupError):
            found.append(f"process {(folder / 'comm').read_text().strip()}")
            # Nobody else keeps the lab's network namespaces: no name, no mount. Without processes they are gone.
            found.append(f"namespace {(folder / 'ns' / 'net').readlink()}")
    return sorted(set(found))


def pins_of(run: str, state_dir: Path | None = None) -> Pins:
    return Pins.of(state_dir or JOURNALS / run / "state")


def pinned_programs(pins: Pins) -> list[int]:
    """The ids of an instance's kernel programs."""
    ids = []
    for pin in sorted(pins.programs.iterdir()):
        descriptor = libbpf.obj_get(pin)
        ids.append(int(libbpf.program_info(descriptor).id))
        os.close(descriptor)
    return ids


def loaded(program: int) -> bool:
    """Is there a kernel program of this id? (Asking makes a descriptor, which would keep it.)"""
    try:
        os.close(libbpf._call("bpf_prog_get_fd_by_id", program))
    except FileNotFoundError:
        return False
    return True


def _processes(run: str) -> Iterator[Path]:
    """The folders in /proc of the processes in the run's control groups, and of others that bear its name.

    Not of those that have ended and wait for their parent: an orphan's parent is init, which takes its time.
    """
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            ended = (folder / "stat").read_text().rpartition(")")[2].split()[0] in {"Z", "X"}
            if not ended and (
                run in (folder / "cgroup").read_text() or run.encode() in (folder / "cmdline").read_bytes()
            ):
                yield folder


def _links() -> list[str]:
    shown = subprocess.run(["ip", "-json", "link", "show"], capture_output=True, check=True).stdout
    return [str(link["ifname"]) for link in json.loads(shown)]
