"""The initramfs of a machine: a static busybox, the kernel modules that reach the disks, and the guest's first process.

The archive format is the kernel's "newc" cpio (Documentation/driver-api/early-userspace/buffer-format.rst). Archives
can be joined end to end: the part that depends on the kernel alone is cached, and each run adds its own small part.
"""

from __future__ import annotations

import lzma
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

WANTED_MODULES = ("virtio_pci", "virtio_blk", "virtio_rng", "ext4", "overlay")
"""What must be there before the root file system is: bus, disks, entropy, file systems."""

_DIRECTORY, _FILE, _LINK = 0o040755, 0o100644, 0o120777
_EXECUTABLE = 0o100755
_TRAILER = "TRAILER!!!"


@dataclass(frozen=True)
class Member:
    """One name in the archive; `mode` carries the kind of file as in stat(2)."""

    path: str
    mode: int
    data: bytes = b""


def directory(path: str) -> Member:
    return Member(path, _DIRECTORY)


def file(path: str, data: bytes, *, executable: bool = False) -> Member:
    return Member(path, _EXECUTABLE if executable else _FILE, data)


def link(path: str, target: str) -> Member:
    return Member(path, _LINK, target.encode())


def newc(members: Iterable[Member]) -> bytes:
    """The archive's bytes, padded to 512 so that another can follow."""
    out = bytearray()
    for number, member in enumerate((*members, Member(_TRAILER, 0)), start=1):
        name = member.path.encode() + b"\0"
        fields = (number, member.mode, 0, 0, 1, 0, len(member.data), 0, 0, 0, 0, len(name), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        out += b"\0" * (-len(out) % 4) + member.data
        out += b"\0" * (-len(out) % 4)
    out += b"\0" * (-len(out) % 512)
    return bytes(out)


def load_order(
    wanted: Iterable[str], dependencies: Mapping[str, tuple[str, ...]], builtin: frozenset[str]
) -> list[str]:
    """Paths of the modules to load, each after what it needs. `dependencies` is modules.dep: path -> paths.

    A module that is neither there nor built in is left out: which of them a kernel has differs, and the guest's first
    process says what it could not mount.
    """
    by_name = {module_name(path): path for path in dependencies}
    order: list[str] = []

    def add(path: str) -> None:
        for needed in reversed(dependencies.get(path, ())):
            add(needed)
        if path not in order:
            order.append(path)

    for name in wanted:
        if name not in builtin and name in by_name:
            add(by_name[name])
    return order


def module_name(path: str) -> str:
    """`kernel/fs/ext4/ext4.ko.xz` -> `ext4`; a hyphen and an underscore are one letter here."""
    return PurePosixPath(path).name.partition(".ko")[0].replace("-", "_")


def parse_dependencies(text: str) -> dict[str, tuple[str, ...]]:
    """modules.dep as depmod writes it."""
    lines = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {path: tuple(needed.split()) for path, _, needed in lines}


def parse_builtin(text: str) -> frozenset[str]:
    """modules.builtin: the names of what is in the kernel itself."""
    return frozenset(module_name(line) for line in text.split())


def plain_module(path: str, data: bytes) -> bytes:
    """The module's bytes as insmod takes them: Debian compresses with xz since 6.12."""
    return lzma.decompress(data) if path.endswith(".xz") else data


def kernel_part(busybox: bytes, modules: Iterable[tuple[str, bytes]]) -> bytes:
    """What depends on the kernel alone. `modules` are (path, file's bytes) in load order."""
    members = [directory(path) for path in ("bin", "dev", "proc", "sys", "modules", "lower", "upper", "new")]
    members += [file("bin/busybox", busybox, executable=True), link("bin/sh", "busybox")]
    members += [
        file(f"modules/{number:02d}-{module_name(path)}.ko", plain_module(path, data))
        for number, (path, data) in enumerate(modules)
    ]
    return newc(members)
