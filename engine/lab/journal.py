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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
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


@contextmanager
def _alone() -> Iterator[None]:
    """Make the folder and be the only run that looks at it or changes it: a record whose run has not locked it yet
    must not pass for one whose run is dead."""
    while (descriptor := _lock_folder()) is None:
        pass
    try:
        yield
    finally:
        os.close(descriptor)


def _lock_folder() -> int | None:
    """Return a descriptor with the folder's lock; None when the folder went away or was made anew meanwhile."""
    with suppress(FileExistsError):
        JOURNALS.mkdir(mode=0o700)
    try:
        descriptor = os.open(JOURNALS, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(descriptor), JOURNALS.stat()):
            return descriptor
    os.close(descriptor)
    return None


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
        path = JOURNALS / f"{plan.run}.json"
        try:
            with _alone():
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
    def abandoned(cls) -> list[Journal]:
        """Every record whose run is dead, locked: nobody else will clear it up at the same time."""
        if not JOURNALS.is_dir():
            return []
        with _alone():
            return [journal for path in sorted(JOURNALS.glob("*.json")) if (journal := cls._seize(path)) is not None]

    @classmethod
    def _seize(cls, path: Path) -> Journal | None:
        """Lock a record; None when its run lives, or another run is clearing it up."""
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        try:
            return cls(path, descriptor, Plan(**json.loads(path.read_bytes())))
        except (ValueError, TypeError):
            return cls(path, descriptor, None)

    def close(self, problems: Sequence[str] = ()) -> None:
        """Forget the run, of which nothing is left; with problems, keep its record for the next run to try again."""
        with _alone():
            if not problems:
                self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            if not any(JOURNALS.iterdir()):
                JOURNALS.rmdir()
