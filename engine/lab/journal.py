"""What a run is about to make, written down before it is made.

One file a run, under /run, locked for as long as its run lives: a file that can be locked belongs to a run that ended
without clearing up, whatever ended it, and the next run does that for it. Everything a run makes can be derived from
its record, so the record is written once, whole, and nothing has to be added to it on the way.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from engine.lab.errors import LabError

JOURNALS = Path("/run/sallyport-lab")


@dataclass(frozen=True)
class Plan:
    """The names of everything that one run makes.

    `cgroup_mount` is where cgroup2 is mounted; `mounts_bpffs` says that bpffs was not mounted when the run began, so
    that the run mounts it.
    """

    run: str
    state_dir: str
    cgroup_mount: str
    mounts_bpffs: bool = False

    @property
    def work(self) -> Path:
        """The folder for everything that is a file; the log too, unless it is to stay."""
        return JOURNALS / self.run

    @property
    def cgroup(self) -> Path:
        """A slice, so that the folders below it can pass for systemd units (see engine.runtime.cgroups)."""
        return Path(self.cgroup_mount) / f"sallyport-lab-{self.run}.slice"

    @property
    def state(self) -> Path:
        return Path(self.state_dir)

    @classmethod
    def fresh(cls, state_dir: Path | None, cgroup_mount: Path, *, mounts_bpffs: bool) -> Plan:
        run = secrets.token_hex(4)
        return cls(run, str(state_dir or JOURNALS / run / "state"), str(cgroup_mount), mounts_bpffs)


class Journal:
    """One run's record, and the lock that says that its run lives."""

    def __init__(self, path: Path, descriptor: int, plan: Plan | None) -> None:
        self.path = path
        self._descriptor = descriptor
        self.plan = plan
        """None: the run ended while the record was being written, so nothing was made yet."""

    @classmethod
    def begin(cls, plan: Plan) -> Journal:
        """Lock and write the record of a new run."""
        try:
            JOURNALS.mkdir(mode=0o700, exist_ok=True)
            path = JOURNALS / f"{plan.run}.json"
            # Not inherited by any child (PEP 446): the lock ends with this process and nothing else.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.write(descriptor, json.dumps(asdict(plan)).encode() + b"\n")
        except OSError as error:
            raise LabError(
                f"The lab's journal cannot be written under {JOURNALS}: {error.strerror}",
                hint="The lab needs root and a writable /run.",
            ) from error
        return cls(path, descriptor, plan)

    @classmethod
    def abandoned(cls) -> Iterator[Journal]:
        """Every record whose run is dead, locked: nobody else will clear it up at the same time."""
        for path in sorted(JOURNALS.glob("*.json")):
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                plan = Plan(**json.loads(path.read_bytes()))
            except (BlockingIOError, FileNotFoundError):
                os.close(descriptor)
                continue
            except (ValueError, TypeError):
                plan = None
            yield cls(path, descriptor, plan)

    def close(self) -> None:
        """Forget the run: nothing of it is left."""
        self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        if not any(JOURNALS.iterdir()):
            JOURNALS.rmdir()
