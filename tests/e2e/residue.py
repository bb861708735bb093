"""What a run of the lab could leave on the machine, looked at from outside."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.kernel.pins import BPFFS, RECORDS
from engine.lab.journal import JOURNALS
from engine.runtime.cgroups import find_mount

MARK = "sallyport-lab-"
"""In the path of every control group of the lab, and so in /proc/PID/cgroup of all its processes."""


@dataclass(frozen=True)
class Residue:
    """Everything that a run makes; two of these are compared before and after."""

    groups: frozenset[str]
    processes: frozenset[str]
    namespaces: frozenset[str]
    files: frozenset[str]
    pins: frozenset[str]
    mounts: frozenset[str]
    links: frozenset[str]
    qdiscs: frozenset[str]

    @classmethod
    def now(cls) -> Residue:
        mount = find_mount(Path("/proc/self/mountinfo").read_text())
        processes = dict(_processes())
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        return cls(
            groups=frozenset(str(path) for path in mount.glob(f"{MARK}*")),
            processes=frozenset(processes.values()),
            namespaces=frozenset(_namespaces(processes)),
            files=frozenset(str(path) for path in JOURNALS.rglob("*")),
            pins=frozenset(str(path) for base in (BPFFS, RECORDS) for path in base.rglob("*")),
            mounts=frozenset(line.split(" ", 2)[2] for line in mounts),
            links=frozenset(link["ifname"] for link in _json("ip", "-json", "link", "show")),
            qdiscs=frozenset(f"{each['dev']} {each['kind']}" for each in _json("tc", "-json", "qdisc", "show")),
        )


def _processes() -> Iterator[tuple[Path, str]]:
    """(folder in /proc, command) of every process in a control group of the lab."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if MARK in (folder / "cgroup").read_text():
                yield folder, (folder / "comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            continue


def _namespaces(processes: dict[Path, str]) -> Iterator[str]:
    """The network namespaces that those processes keep; without a process, a mount or a name one is gone."""
    for folder in processes:
        try:
            yield str((folder / "ns" / "net").readlink())
        except (FileNotFoundError, ProcessLookupError):
            continue


def _json(*words: str) -> list[dict[str, str]]:
    answer: list[dict[str, str]] = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    return answer
