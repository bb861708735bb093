"""The checkout as the guest sees it: a bare tar on a read-only disk."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

from vagrant.vm.errors import UsageError
from vagrant.vm.place import require


def listed(checkout: Path) -> list[str]:
    """What git knows and what is new and not ignored: the tree as it stands, without what tools made in it."""
    require(["git"])
    done = subprocess.run(
        # Root may try out a checkout that belongs to a user, which git by itself refuses to look at.
        ["git", "-c", f"safe.directory={checkout}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=False, capture_output=True, cwd=checkout,
    )  # fmt: skip
    if done.returncode:
        raise UsageError(
            f"{checkout} is no git checkout, so it cannot be said which files belong to it.",
            hint="Run the command in a clone of the repository.",
        )
    names = sorted(set(done.stdout.decode(errors="surrogateescape").split("\0")) - {""})
    return [name for name in names if (checkout / name).is_symlink() or (checkout / name).is_file()]


def pack(checkout: Path, target: Path) -> None:
    """Write the tar. Root owns everything in it, as in a tree that setup made."""

    def owned(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        return member

    with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as tar:
        for name in listed(checkout):
            tar.add(checkout / name, name, recursive=False, filter=owned)
