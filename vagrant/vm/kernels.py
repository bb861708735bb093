"""Which kernels there are, and how one gets from Debian's archive into the cache: downloaded, unpacked, not installed.

The archive drops old builds, so a kernel is asked for by its line ("6.1", "newest") and the newest build of the line is
taken. The cloud flavour is used throughout: the drivers of an emulated machine and little else.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vagrant.vm import initramfs
from vagrant.vm.archive import Archive, Package
from vagrant.vm.errors import NetworkError, PackageError, UsageError
from vagrant.vm.images import ext4
from vagrant.vm.place import require, require_room, search_path

MATRIX = ("5.10", "6.1", "6.12", "newest")
"""The lines that the project is tried on: Debian 11, 12 and 13, and the newest that Debian has."""

NEWEST = "newest"
LISTS_MEGABYTES = 100
ROOM_MEGABYTES = 700
"""With a kernel's packages and what is made of them, for a while all at once."""
_NAME = re.compile(r"linux-(?:image|binary)-(?P<release>[0-9].*-cloud-amd64)")
"""Packages with a kernel in them. Since 7.1 the image proper is in linux-binary, and linux-image only names it."""


@dataclass(frozen=True)
class Kernel:
    """A kernel in the cache, ready to boot.

    `release`: what `uname -r` will say. `version`: the number of Linux itself, as in "6.1.192".
    """

    release: str
    version: str
    folder: Path

    @property
    def image(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def modules(self) -> Path:
        """An ext4 image of what belongs into /usr/lib/modules."""
        return self.folder / "modules.img"

    @property
    def initrd(self) -> Path:
        """The part of the initramfs that depends on the kernel alone."""
        return self.folder / "initrd"

    @property
    def number(self) -> tuple[int, ...]:
        return version_number(self.version)


def version_number(version: str) -> tuple[int, ...]:
    """`6.12.111-1~deb12u1` -> (6, 12, 111)."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def in_line(wanted: str, version: str) -> bool:
    """Is this version of the line that was asked for? "6.1" has 6.1.192 and not 6.12.5; "newest" has them all."""
    number = version_number(version)
    asked = version_number(wanted)
    return wanted == NEWEST or (bool(asked) and number[: len(asked)] == asked)


def check_wanted(wanted: str) -> None:
    """Raise UsageError unless the word can be a kernel's line."""
    if wanted != NEWEST and not re.fullmatch(r"\d+\.\d+(\.\d+)?", wanted):
        raise UsageError(
            f'"{wanted}" names no kernel.',
            hint=f"Give a version such as 6.1 or 6.12.95, or {NEWEST}; the matrix is {', '.join(MATRIX)}.",
        )


def choose(wanted: str, packages: Iterable[Package]) -> tuple[str, list[Package]]:
    """Pick the newest build of a line; return its release and the packages that make it up.

    `packages`: all whose names begin with linux-image, -binary, -modules or -base. Raises UsageError when none fits.
    """
    listed = list(packages)
    builds = [
        (version_number(package.version), found["release"], package)
        for package in listed
        if (found := _NAME.fullmatch(package.name)) and in_line(wanted, package.version)
    ]
    if not builds:
        have = sorted({version_number(package.version)[:2] for package in listed if _NAME.fullmatch(package.name)})
        raise UsageError(
            f"Debian's archive has no kernel {wanted}.",
            hint=f"It has {', '.join('.'.join(map(str, line)) for line in have)}: name one of these.",
        )
    _, release, chosen = max(builds, key=lambda build: build[:2])
    names = {f"linux-{part}-{release}" for part in ("image", "binary", "modules", "base")}
    return release, [one for one in listed if one.name in names and one.version == chosen.version]


def cached(cache: Path) -> list[Kernel]:
    """The kernels that are ready in the cache, oldest first."""
    marks = (cache / "kernels").glob("*/version")
    found = (Kernel(mark.parent.name, mark.read_text().strip(), mark.parent) for mark in marks)
    return sorted(found, key=lambda kernel: kernel.number)


def obtain(wanted: str, cache: Path, archive: Archive) -> tuple[Kernel, str]:
    """Return the kernel, downloaded when it has to be, and a sentence when an older one from the cache had to serve."""
    check_wanted(wanted)
    have = [kernel for kernel in cached(cache) if in_line(wanted, kernel.version)]
    try:
        require_room(cache, LISTS_MEGABYTES if have else ROOM_MEGABYTES, f"the kernel {wanted}")
        archive.refresh()
    except NetworkError as error:
        if not have:
            raise
        return have[-1], f"{error} The kernel {have[-1].release} of an earlier run serves."
    release, packages = choose(wanted, archive.packages(r"linux-(?:image|binary|modules|base)-[0-9].*-cloud-amd64"))
    folder = cache / "kernels" / release
    if not (folder / "version").exists():
        require_room(cache, ROOM_MEGABYTES, f"the kernel {release}")
        _unpack(release, packages, folder, archive)
    return Kernel(release, (folder / "version").read_text().strip(), folder), ""


def _unpack(release: str, packages: list[Package], folder: Path, archive: Archive) -> None:
    """Download a kernel and make of it what a boot needs; all of it appears at once, under its own name."""
    require(["depmod", "mke2fs"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    busybox = archive.packages("busybox-static")
    if not busybox:
        raise PackageError("The archive has no busybox-static.", hint="Remove the cache folder and run again.")
    work = folder.with_name(f"{release}.new")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        raw = work / "raw"
        raw.mkdir()
        archive.fetch(packages, raw)
        archive.fetch([max(busybox, key=lambda one: version_number(one.version))], raw)
        # Before 7.1 in /lib/modules and /boot; since then all in /usr/lib/modules.
        source = next(one for top in ("usr/lib", "lib") if (one := raw / top / "modules" / release).is_dir())
        image = next(one for one in (raw / "boot" / f"vmlinuz-{release}", source / "vmlinuz") if one.is_file())
        shutil.move(image, work / "vmlinuz")
        base = work / "base"
        (base / "lib/modules").mkdir(parents=True)
        shutil.move(source, base / "lib/modules" / release)
        subprocess.run(
            ["depmod", "-b", str(base), release], check=True, capture_output=True, env={"PATH": search_path()}
        )
        modules = base / "lib/modules" / release
        order = initramfs.load_order(
            initramfs.WANTED_MODULES,
            initramfs.parse_dependencies((modules / "modules.dep").read_text()),
            initramfs.parse_builtin((modules / "modules.builtin").read_text()),
        )
        program = next(one for one in (raw / "bin/busybox", raw / "usr/bin/busybox") if one.is_file())
        (work / "initrd").write_bytes(
            initramfs.kernel_part(program.read_bytes(), [(path, (modules / path).read_bytes()) for path in order])
        )
        ext4(base / "lib/modules", work / "modules.img")
        shutil.rmtree(raw)
        shutil.rmtree(base)
        version = ".".join(map(str, version_number(packages[0].version)))
        (work / "version").write_text(f"{version}\n")
        work.rename(folder)
    except (StopIteration, FileNotFoundError, subprocess.CalledProcessError) as error:
        raise PackageError(
            f"The packages of the kernel {release} are not laid out as expected: {error}.",
            hint="Try another kernel; the layout is read in vagrant/vm/kernels.py.",
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
