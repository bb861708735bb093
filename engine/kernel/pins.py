"""Where an engine's kernel objects are pinned, and the record that finds them again without the engine.

One engine, one state directory, one instance: the digest of the directory's path names its pins, its hold device and
its record under /run. The ABI number stands in the pin directory's name, so an engine never opens maps of another
layout.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from engine.abi.numbers import ABI
from engine.errors import KernelError

BPFFS = Path("/sys/fs/bpf")
RECORDS = Path("/run/sallyport")


@dataclass(frozen=True)
class Pins:
    """The folders of one instance below bpffs."""

    instance: str

    @classmethod
    def of(cls, state_dir: Path) -> Pins:
        return cls(hashlib.sha256(os.fsencode(state_dir.resolve())).hexdigest()[:8])

    @property
    def root(self) -> Path:
        return BPFFS / "sallyport" / f"{self.instance}-abi{ABI}"

    @property
    def maps(self) -> Path:
        return self.root / "maps"

    @property
    def programs(self) -> Path:
        return self.root / "programs"

    @property
    def links(self) -> Path:
        return self.root / "links"

    @property
    def hold_device(self) -> str:
        """The end that the gate redirects to. 13 characters of the 15 that a name may have."""
        return f"hold-{self.instance}"

    @property
    def held_device(self) -> str:
        """The end that the engine reads."""
        return f"held-{self.instance}"

    @property
    def record(self) -> Path:
        return RECORDS / f"{self.instance}.json"

    def make(self) -> None:
        for folder in (self.maps, self.programs, self.links):
            folder.mkdir(parents=True, exist_ok=True)

    def remove(self) -> None:
        """Unpin everything: links end with it, maps and programs with their last user."""
        for folder in (self.links, self.programs, self.maps):
            for pin in sorted(folder.glob("*")) if folder.is_dir() else ():
                pin.unlink(missing_ok=True)
            if folder.is_dir():
                folder.rmdir()
        if self.root.is_dir():
            self.root.rmdir()
        if self.root.parent.is_dir() and not any(self.root.parent.iterdir()):
            self.root.parent.rmdir()


@dataclass(frozen=True)
class Record:
    """What was attached where: enough to detach it with no engine and no configuration."""

    instance: str
    state_dir: str
    netns: int
    """Inode number of the network namespace."""
    interfaces: list[str] = field(default_factory=list)
    cgroup: str = ""
    mode: str = ""
    pid: int = 0

    def write(self, path: Path) -> None:
        path.parent.mkdir(mode=0o755, exist_ok=True)
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(self)) + "\n")
        fresh.replace(path)

    @classmethod
    def read(cls, path: Path) -> Record:
        try:
            return cls(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise KernelError(f"The record {path} is damaged: {error}", hint="Remove it and start again.") from error


def instances() -> Iterator[Pins]:
    """Every instance with pins or a record on this machine."""
    found = {path.name.split("-")[0] for path in (BPFFS / "sallyport").glob("*-abi*")}
    found |= {path.stem for path in RECORDS.glob("*.json")}
    for instance in sorted(found):
        yield Pins(instance)


def require_bpffs() -> None:
    """KernelError when bpffs is not mounted where the pins belong."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == str(BPFFS) and fields[fields.index("-") + 1] == "bpf":
            return
    raise KernelError(
        f"The BPF file system is not mounted at {BPFFS}",
        hint=f"Mount it: mount -t bpf bpf {BPFFS}  (inside a network namespace use `nsenter --net=FILE`: "
        "`ip netns exec` hides it)",
    )


def netns_inode(path: str = "/proc/self/ns/net") -> int:
    return Path(path).stat().st_ino
