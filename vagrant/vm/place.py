"""Where the lab keeps what it downloads and builds, and whether there is room and the right programs for it."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterable
from pathlib import Path

from vagrant.vm.errors import RoomError, ToolError, UnsupportedError

CHECKOUT = Path(__file__).resolve().parents[2]
"""The checkout that is tried in the machines."""

PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "debootstrap": "debootstrap",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "mke2fs": "e2fsprogs",
    "depmod": "kmod",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "git": "git",
    "ip": "iproute2",
    "libvirtd": "libvirt-daemon-system",
    "virsh": "libvirt-clients",
    "rsync": "rsync",
    "nsenter": "util-linux",
    "qemu-img": "qemu-utils",
    "virtiofsd": "virtiofsd, or qemu-system-common before Debian 13",
    "vagrant": "vagrant vagrant-libvirt",
}
"""Program -> the Debian or Ubuntu package that has it."""


def search_path() -> str:
    """PATH with sbin, which is not in every user's: mke2fs and debootstrap are there."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"


def require_architecture() -> None:
    """Raise UnsupportedError unless this machine is what Debian calls amd64: all kernels, and so all trees, are."""
    found = platform.machine()
    if found != "x86_64":
        raise UnsupportedError(
            f"The lab's machines run kernels for x86_64, and this machine is {found}.",
            hint="Use an x86_64 machine. On this one make demo and scripts/test kernel try its own kernel.",
        )


def require(programs: Iterable[str]) -> None:
    """Raise ToolError with the packages to install when one of the programs is not there."""
    missing = [name for name in programs if shutil.which(name, path=search_path()) is None]
    if missing:
        packages = " ".join(sorted({PACKAGES[name] for name in missing}))
        raise ToolError(
            f"Not installed: {', '.join(missing)}.",
            hint=f"Install it (apt-get install {packages}), then run the command again.",
        )


def cache() -> Path:
    """The lab's own folder in the user's cache, made when it is not there."""
    home = os.environ.get("XDG_CACHE_HOME")
    base = Path(home) if home and home.startswith("/") else Path.home() / ".cache"
    folder = base / "sallyport" / "vm"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RoomError(
            f"The cache folder {folder} cannot be made: {error.strerror}.",
            hint="Set XDG_CACHE_HOME to a folder that can be written.",
        ) from error
    return folder


def require_room(folder: Path, megabytes: int, purpose: str) -> None:
    """Raise RoomError unless that much is free where `folder` is."""
    free = shutil.disk_usage(folder).free >> 20
    if free < megabytes:
        raise RoomError(
            f"There are {free} MB free in {folder}; {purpose} needs {megabytes} MB.",
            hint="Make room, or set XDG_CACHE_HOME to a folder on a larger disk.",
        )
