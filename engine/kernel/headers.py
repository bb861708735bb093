"""A kernel header tree for BCC to compile against, on machines that have none for the running kernel.

The programs include only uapi headers and read no kernel structure, so any recent tree will do: BCC merely insists on
having one. Debian and Ubuntu split a tree in two packages; BCC wants it in one piece, so a tree of symbolic links
merges them.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.errors import KernelError

CACHE = Path("/var/cache/sallyport/headers")
_ARCH = {"x86_64": "x86", "aarch64": "arm64"}


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", name)[:4])


SOURCES = (Path("/usr/src"), Path(sys.prefix) / "src")
"""Where header packages put their trees, and where `make setup` unpacks one that would bring a kernel along."""


def find(sources: Sequence[Path] = SOURCES, modules: Path = Path("/lib/modules"), cache: Path = CACHE) -> Path | None:
    """Return the folder for BCC_KERNEL_SOURCE, None when BCC finds the running kernel's own headers by itself."""
    if (modules / platform.release() / "build" / "include" / "linux").is_dir():
        return None
    arch = _ARCH.get(platform.machine(), platform.machine())
    trees = [
        tree
        for source in sources
        for tree in source.glob("linux-headers-*")
        if not tree.name.endswith("-common") and (tree / "include" / "generated").is_dir()
    ]
    for tree in sorted(trees, key=lambda tree: _version(tree.name), reverse=True):
        common = _common(tree)
        if common is None:
            continue
        merged = cache / tree.name
        # A link to a tree that was removed since is no tree: look through one of them.
        if not (merged / "complete").exists() or not (merged / "include" / "uapi" / "linux" / "bpf.h").exists():
            _merge(common, tree, arch, merged)
        return merged
    raise KernelError(
        "No kernel headers are installed, and BCC needs a tree of some version to compile against",
        hint="Install one: apt install linux-headers-amd64 (Debian) or linux-headers-generic (Ubuntu).",
    )


def _common(tree: Path) -> Path | None:
    """The architecture-independent half: Debian's -common, Ubuntu's name without the flavour, or the tree itself."""
    candidates = [
        tree.with_name(re.sub(r"-(cloud-)?(amd64|arm64|rt-amd64|rt-arm64)$", "-common", tree.name)),
        tree.with_name(tree.name.rpartition("-")[0]),
        tree,
    ]
    return next((path for path in candidates if (path / "include" / "uapi" / "linux" / "bpf.h").is_file()), None)


def _merge(common: Path, tree: Path, arch: str, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    for half in (common, tree):
        for part in ("include", f"arch/{arch}/include"):
            for folder, _, files in os.walk(half / part):
                here = target / part / Path(folder).relative_to(half / part)
                here.mkdir(parents=True, exist_ok=True)
                for name in files:
                    link = here / name
                    if not link.is_symlink():
                        link.symlink_to(Path(folder) / name)
    (target / "complete").touch()
