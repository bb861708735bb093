"""Disk images without a mount and without root: mke2fs fills them from a folder."""

from __future__ import annotations

import subprocess
from pathlib import Path

from vagrant.vm.errors import PackageError, RoomError
from vagrant.vm.place import search_path

_SLACK_MEGABYTES = 64


def size_of(folder: Path) -> int:
    """Megabytes that the files in the folder take on a disk with blocks of 4 KiB, directories included."""
    blocks = 0
    for path in folder.rglob("*"):
        status = path.lstat()
        blocks += 1 if not path.is_file() or path.is_symlink() else -(-status.st_size // 4096)
    return (blocks * 4096 >> 20) + 1


def ext4(folder: Path | None, image: Path, megabytes: int | None = None) -> None:
    """Make a sparse ext4 image with the folder's content (or empty) in it. Raises RoomError, PackageError.

    Without a size, it is the content and a tenth more. Images with content are mounted read-only: no journal.
    """
    if megabytes is None:
        megabytes = (size_of(folder) * 11 // 10 if folder else 0) + _SLACK_MEGABYTES
    words = ["mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=1"]
    if folder is not None:
        words += ["-O", "^has_journal", "-m", "0", "-d", str(folder)]
    image.unlink(missing_ok=True)
    done = subprocess.run(
        [*words, str(image), f"{megabytes}M"], check=False, capture_output=True, text=True, env={"PATH": search_path()}
    )
    if done.returncode:
        image.unlink(missing_ok=True)
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        if "No space left" in done.stderr:
            raise RoomError(f"The disk is full: {image} cannot be written.", hint="Make room, then run again.")
        raise PackageError(f"The disk image {image.name} cannot be made.", hint=f"mke2fs said: {last}")
