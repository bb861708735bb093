"""Cgroup ids of the kernel as paths, units and containers.

The id that bpf_get_current_cgroup_id() gives is the inode number of the cgroup's folder in cgroup2 (64-bit
hosts). Ids are never used again within one boot, and cgroup v2 knows no renaming, so an answer once found
stays true.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from engine.errors import KernelError
from engine.model.facts import Cgroup
from engine.runtime.procfs import text

MOST_FOLDERS = 100_000
UNKNOWN = Cgroup()

_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]+\.(?:service|scope|socket|mount|swap)", re.ASCII)
# docker-ID.scope, cri-containerd-ID.scope, crio-ID.scope, libpod-ID.scope (systemd driver), a bare ID as in
# /docker/ID and /kubepods/.../ID (cgroupfs driver), and containerd's ...slice:cri-containerd:ID. Not
# libpod-conmon-ID.scope: that is the monitor, outside of the container.
_CONTAINER = re.compile(
    r"(?:(?:docker|cri-containerd|nerdctl|crio|libpod)-)?([0-9a-f]{64})(?:\.scope)?"
    r"|[^:]*:(?:docker|cri-containerd|crio|libpod):([0-9a-f]{64})"
)
_USER_MANAGER = re.compile(r"user@[0-9]+\.service")


def find_mount(mountinfo: str) -> Path:
    """Return where cgroup2 is mounted, from the text of /proc/self/mountinfo; the whole hierarchy before a
    part."""
    part: Path | None = None
    for line in mountinfo.splitlines():
        fields, separator, tail = line.partition(" - ")
        columns = fields.split(" ")
        if not separator or len(columns) < 5 or tail.split(" ")[0] != "cgroup2":
            continue
        place = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), columns[4]))
        if columns[3] == "/":
            return place
        part = part or place
    if part is None:
        raise KernelError(
            "No cgroup2 file system is mounted.",
            hint="Mount it: mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified",
        )
    return part


def describe(path: str) -> Cgroup:
    """Return the facts of a cgroup path such as /system.slice/nginx.service.

    The unit is the first component below the slices, as systemd itself reads it (sd_pid_get_unit): below
    its unit a cgroup may be delegated to a user, who can name folders there as he likes, nginx.service too.
    A unit of a user's own manager therefore shows as user@UID.service, and a container id below that is not
    believed.
    """
    components = [component for component in path.split("/") if component]
    unit = next((component for component in components if not component.endswith(".slice")), "")
    container = ""
    for component in components:
        match = _CONTAINER.fullmatch(component)
        if match is not None:
            container = match[1] or match[2]
        if container or _USER_MANAGER.fullmatch(component):
            break
    return Cgroup(path, unit if _UNIT.fullmatch(unit) else "", container)


class CgroupTable:
    """Looks ids up: what is known, else the cgroup that the process says it is in, else a walk over the
    mount.

    `interval`: seconds between two walks at least; and a walk never takes more than a twentieth of the
    time. The table keeps at most `capacity` cgroups, the ones removed from the system too: their sockets
    may live on.
    """

    def __init__(
        self,
        mount: Path,
        *,
        proc: str = "/proc",
        interval: float = 0.25,
        capacity: int = 16384,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._mount = os.fsencode(mount)
        self._proc = proc
        self._interval = interval
        self._capacity = capacity
        self._clock = clock
        self._known: dict[int, Cgroup] = {}
        self._next_walk = float("-inf")

    def lookup(self, cgroup_id: int, pid: int = 0) -> Cgroup:
        """Return the cgroup of an id; `pid`, if given, is a process that is believed to be in it, and is
        checked. An empty path: unknown."""
        found = self._known.get(cgroup_id) or self._of_process(cgroup_id, pid)
        if found is None and self._clock() >= self._next_walk:
            self._walk()
            found = self._known.get(cgroup_id)
        return found or UNKNOWN

    def _of_process(self, cgroup_id: int, pid: int) -> Cgroup | None:
        if pid <= 0:
            return None
        try:
            with open(f"{self._proc}/{pid}/cgroup", "rb") as stream:  # noqa: PTH123 - hot path
                lines = stream.read(65536).splitlines()
            path = next((line[3:] for line in lines if line.startswith(b"0::/")), b"")
            # "/..": outside of the engine's own cgroup namespace, so not below its mount either.
            if not path or path.startswith(b"/.."):
                return None
            if os.stat(self._mount + path).st_ino != cgroup_id:  # noqa: PTH116 - bytes
                return None
        except OSError:
            return None
        return self._keep(cgroup_id, path)

    def _keep(self, cgroup_id: int, path: bytes) -> Cgroup:
        cgroup = describe(text(path))
        self._known[cgroup_id] = cgroup
        if len(self._known) > self._capacity:
            del self._known[next(iter(self._known))]
        return cgroup

    def _walk(self) -> None:
        began = self._clock()
        left = MOST_FOLDERS
        folders = [b"/"]
        try:
            self._keep(os.stat(self._mount).st_ino, b"/")  # noqa: PTH116 - bytes
        except OSError:
            folders = []
        while folders and left > 0:
            folder = folders.pop()
            try:
                with os.scandir(self._mount + folder) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            path = folder.rstrip(b"/") + b"/" + entry.name
                            if entry.inode() not in self._known:
                                self._keep(entry.inode(), path)
                            folders.append(path)
                            left -= 1
            except OSError:  # removed meanwhile
                continue
        ended = self._clock()
        self._next_walk = ended + max(self._interval, 19 * (ended - began))
