"""What a policy folder looks like at one moment, cheaply: enough to say that something changed, and what.

Also where its git folder is. Read as gitrepository-layout(5) describes it and not by calling git: a
repository that belongs to someone else makes git refuse for root (safe.directory), and its configuration
can name programs to run.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = (".rego", ".json", ".yaml", ".yml")
"""Of all files in the folder only these count. That leaves out what editors and tools put beside a file for
a moment: 4913 and x.rego~ of vim, #x.rego# of Emacs, sedAbCdEf, x.rego___jb_tmp___; those that begin with a
dot do not count either."""
MOST_FILES = 20_000
MOST_LINKS = 40
_READ = 1 << 20

Mark = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class GitFolder:
    """`git`: of this work tree (HEAD, index); `common`: of all work trees of the repository (refs)."""

    git: Path
    common: Path

    def under_way(self) -> str:
        """Return what git is in the middle of, or an empty text."""
        for name in ("rebase-merge", "rebase-apply"):
            if (self.git / name).is_dir():
                return "rebase"
        return "index.lock" if (self.git / "index.lock").exists() else ""

    def head(self) -> str:
        """Return a text that changes when HEAD or the commit that it stands for does; the commit id,
        usually."""
        head = _line(self.git / "HEAD")
        if not head.startswith("ref: "):
            return head
        name = head[5:]
        if (self.common / "reftable").is_dir():
            return _text(self.git / "reftable" / "tables.list") + _text(self.common / "reftable" / "tables.list")
        loose = _line(self.common / name)
        if loose:
            return loose
        for line in _text(self.common / "packed-refs").splitlines():
            commit, _, packed = line.partition(" ")
            if packed == name:
                return commit
        return head


def find_git(folder: Path) -> GitFolder | None:
    """Return the git folder of the work tree that the folder is in, None when it is in none."""
    for place in (folder, *folder.parents):
        dot = place / ".git"
        # A file .git stands in linked work trees and submodules.
        pointer = _line(dot)
        git = place / pointer[8:] if pointer.startswith("gitdir: ") else dot
        if (git / "HEAD").is_file():
            shared = _line(git / "commondir")
            return GitFolder(git, Path(os.path.normpath(git / shared)) if shared else git)
    return None


@dataclass(frozen=True)
class Route:
    """How a path leads to its folder. `steps`: folder and name of each link on the way and of the end, which
    is where it can be replaced; `real`: where it ends, None when it leads to no folder now."""

    steps: tuple[tuple[Path, str], ...]
    real: Path | None


def route(folder: Path) -> Route:
    """Follow the path link by link."""
    steps: list[tuple[Path, str]] = []
    at = Path("/")
    left = list(reversed(folder.parts[1:]))
    links = 0
    while left:
        name = left.pop()
        step = at.parent if name == ".." else at / name
        try:
            target = step.readlink()
        except FileNotFoundError:
            return Route((*steps, (at, name)), None)
        except OSError:  # EINVAL: no link
            at = step
            continue
        steps.append((at, name))
        links += 1
        if links > MOST_LINKS:
            return Route(tuple(steps), None)
        if target.is_absolute():
            at = Path("/")
        left += reversed(target.parts[1:] if target.is_absolute() else target.parts)
    return Route((*steps, (at.parent, at.name)), at if at.is_dir() else None)


@dataclass(frozen=True)
class Snapshot:
    """`real`: the folder behind the links, None when there is none. `files`: marks by relative path."""

    real: Path | None
    files: dict[str, Mark]
    head: str

    def differences(self, other: Snapshot) -> tuple[str, ...]:
        """Return the relative paths that were added, removed or changed, sorted."""
        either = self.files.keys() | other.files.keys()
        return tuple(sorted(path for path in either if self.files.get(path) != other.files.get(path)))


def take(real: Path | None, git: GitFolder | None) -> Snapshot:
    return Snapshot(real, _marks(real) if real is not None else {}, git.head() if git is not None else "")


def _marks(root: Path) -> dict[str, Mark]:
    found: dict[str, Mark] = {}
    folders = [(str(root), "")]
    seen: set[tuple[int, int]] = set()
    while folders and len(found) < MOST_FILES:
        folder, relative = folders.pop()
        try:
            place = os.stat(folder)  # noqa: PTH116 - hot path
            if (place.st_dev, place.st_ino) in seen:  # a link that leads back up
                continue
            seen.add((place.st_dev, place.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    path = f"{relative}{entry.name}"
                    if entry.is_dir():
                        folders.append((entry.path, f"{path}/"))
                    elif entry.name.endswith(SUFFIXES):
                        # Links are followed: Kubernetes swaps what ..data points to, and the files change
                        # with it.
                        status = entry.stat()
                        found[path] = (
                            status.st_ino,
                            status.st_size,
                            status.st_mtime_ns,
                            status.st_ctime_ns,
                            status.st_mode,
                        )
        except OSError:  # removed meanwhile, or not to be read: either way the next look sees a difference
            continue
    return found


def _text(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return stream.read(_READ).decode("utf-8", "replace")
    except OSError:
        return ""


def _line(file: Path) -> str:
    return _text(file).strip().split("\n", 1)[0]
