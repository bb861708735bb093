"""The root tree of the machines: a clean Debian in which the README's own setup has run, as a disk image in the cache.

Building it needs root (debootstrap and a chroot) and the network; booting from it needs neither. It is built anew when
something changes that decides what is in it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from vagrant.vm import confined
from vagrant.vm.archive import KEYRING, MIRROR_VARIABLE, SECURITY_VARIABLE, Mirrors, mirrors
from vagrant.vm.errors import NetworkError, PackageError, RoomError, RootError, UsageError
from vagrant.vm.images import ext4
from vagrant.vm.place import require, require_architecture, require_room

SYSTEMS = {"debian12": "bookworm", "debian13": "trixie"}
"""System -> suite of Debian's archive. Ubuntu's archive is another one, which debootstrap here does not ask."""

KERNELS = {"debian12": "6.1", "debian13": "6.12"}
"""System -> the line of kernels that it comes with."""

ROOM_MEGABYTES = 6000
TOOLS = ("debootstrap", "mke2fs", "setpriv", "unshare")
FORMAT = 1
"""Raised when the steps below change what they make."""

EXTRA_PACKAGES = ("systemd-sysv", "udev", "kmod")
"""What a machine has that a container has not: the scenarios with a reboot come up through the real init."""

_HANDED_ON = (MIRROR_VARIABLE, SECURITY_VARIABLE, "http_proxy", "https_proxy", "no_proxy")
_DECIDING = ("requirements-dev.txt", "pyproject.toml", "scripts/setup", "scripts/setup.d")
_NETWORK = re.compile(r"resolve|Unable to connect|Couldn't download|Failed getting release|cannot be reached|timed out")
_FULL = re.compile(r"No space left on device|no room|Disk quota")

IN_CHROOT = r"""
set -e
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
mount -t tmpfs tmpfs "$1/run"
# No service starts in a chroot.
printf '#!/bin/sh\nexit 101\n' >"$1/usr/sbin/policy-rc.d"
chmod 755 "$1/usr/sbin/policy-rc.d"
exec chroot "$1" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
    LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive http_proxy="$http_proxy" https_proxy="$https_proxy" \
    no_proxy="$no_proxy" sh -ec "$2"
"""
"""$1 is the tree and $2 what to run in it."""

IN_TREE = """
cd /sallyport
scripts/setup --no-opa
apt-get -q -y -o Dpkg::Use-Pty=0 install --no-install-recommends {extra}
{more}
apt-get clean
rm -rf /var/lib/apt/lists/* /usr/sbin/policy-rc.d
# All machines would get one address, and one identity in their logs.
rm -f /etc/machine-id /var/lib/dbus/machine-id
"""


def suite_of(system: str) -> str:
    """Raises UsageError for a system whose packages cannot be had here."""
    if system not in SYSTEMS:
        raise UsageError(
            f'There is no root tree for "{system}" here: only Debian\'s archive is asked.',
            hint=f"Give one of {', '.join(SYSTEMS)}. On Ubuntu itself, run the README's commands in a box of Vagrant.",
        )
    return SYSTEMS[system]


def key(system: str, checkout: Path, more: str = "") -> str:
    """Tells one tree from another: what decides its content, in short."""
    whole = hashlib.sha256(f"{FORMAT} {suite_of(system)} {EXTRA_PACKAGES} {IN_TREE} {more}".encode())
    for name in _DECIDING:
        path = checkout / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            whole.update(file.relative_to(checkout).as_posix().encode() + b"\0" + file.read_bytes())
    return whole.hexdigest()[:16]


def obtain(system: str, checkout: Path, cache: Path, say: Callable[[str], None]) -> Path:
    """Return the image, built when it is not there. Without root the building is done through scripts/as-root."""
    image = cache / "trees" / f"{system}-{key(system, checkout)}.img"
    if not image.exists():
        image.parent.mkdir(exist_ok=True)
        require_room(image.parent, ROOM_MEGABYTES, f"building the root tree of {system}")
        require(TOOLS)
        say(f"building the root tree of {system} (once; some minutes): {image}")
        if os.geteuid() == 0:
            build(system, checkout, image, say)
        else:
            _build_as_root(system, checkout, image)
    return image


def forget(system: str, cache: Path) -> None:
    """Have the next run build the tree anew."""
    for old in (cache / "trees").glob(f"{system}-*.img"):
        old.unlink()


def _build_as_root(system: str, checkout: Path, image: Path) -> None:
    # sudo drops the environment, so what speaks of the network is handed on by name.
    handed = [f"{name}={os.environ[name]}" for name in _HANDED_ON if os.environ.get(name)]
    words = [str(checkout / "scripts/as-root"), "env", *handed]
    words += ["python3", "-m", "vagrant.vm", "tree", system, str(image)]
    code = subprocess.run(words, check=False, cwd=checkout).returncode
    if code == RootError.exit_code:
        raise RootError("Building a root tree needs root.", hint="Run the command once as root, or let sudo be used.")
    if code:
        raise PackageError("The root tree could not be built; the reason stands above.", hint="Mend that, run again.")


def build(system: str, checkout: Path, image: Path, say: Callable[[str], None]) -> None:
    """Build the tree and put it into the image, which appears at once and whole. Needs root."""
    with tempfile.TemporaryDirectory(prefix=f"{image.name}.", dir=image.parent) as work:
        tree = grow(system, checkout, Path(work), say)
        say("  disk image")
        made = Path(work) / "image"
        ext4(tree, made)
        made.chmod(0o644)
        for old in image.parent.glob(f"{system}-*.img"):
            old.unlink()
        made.rename(image)


def grow(
    system: str, checkout: Path, work: Path, say: Callable[[str], None], *, packages: Sequence[str] = (), more: str = ""
) -> Path:
    """Make the tree as a folder in `work`, with these packages besides and `more` run in it by the shell."""
    require_architecture()
    if os.geteuid() != 0:
        raise RootError("Building a root tree needs root.", hint="Run the command as root.")
    require(TOOLS)
    at = mirrors()
    tree, log = work / "tree", work / "log"
    say(f"  debootstrap {suite_of(system)}")
    _run(
        ["debootstrap", "--variant=minbase", f"--keyring={KEYRING}", suite_of(system), str(tree), at.main],
        log, f"The base system of {system} could not be built",
    )  # fmt: skip
    _prepare(tree, suite_of(system), at)
    _copy(checkout, tree / "sallyport")
    say("  the README's setup in it, and what a machine has besides")
    inside = IN_TREE.format(extra=" ".join((*EXTRA_PACKAGES, *packages)), more=more)
    _run(
        ["sh", "-c", IN_CHROOT, "sh", str(tree), inside],
        log,
        f"The project's setup failed in the root tree of {system}",
    )
    _finish(tree, checkout)
    return tree


def _run(words: list[str], log: Path, failure: str) -> None:
    with log.open("wb") as file:
        code = confined.run(words, file, {"http_proxy": "", "https_proxy": "", "no_proxy": "", **os.environ})
    if code:
        said = log.read_text(errors="replace").strip()
        last = " / ".join(said.splitlines()[-3:])
        if _FULL.search(said):
            raise RoomError(f"{failure}: the disk is full.", hint="Make room, then run again.")
        if _NETWORK.search(said):
            raise NetworkError(f"{failure}: the network failed.", hint=f"Check it, then run again. It was said: {last}")
        raise PackageError(f"{failure}.", hint=f"It was said: {last}")


def _prepare(tree: Path, suite: str, at: Mirrors) -> None:
    """What this machine was told of the network holds in the tree too: mirrors, resolver, trusted certificates, pip."""
    (tree / "etc/apt/sources.list").write_text(
        f"deb {at.main} {suite} main\ndeb {at.main} {suite}-updates main\ndeb {at.security} {suite}-security main\n"
    )
    for name in ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf"):
        if Path(name).is_file():
            (tree / name[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(name, tree / name[1:])
    local = Path("/usr/local/share/ca-certificates")
    if local.is_dir():
        shutil.copytree(local, tree / "usr/local/share/ca-certificates", dirs_exist_ok=True)


def _copy(checkout: Path, into: Path) -> None:
    """What setup reads of the checkout; the rest comes with each run."""
    into.mkdir()
    for name in ("README.md", "LICENSE", *_DECIDING, "scripts/as-root", "engine", "audit", "bpf", "policies"):
        source, target = checkout / name, into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)


def _finish(tree: Path, checkout: Path) -> None:
    """Leave the environment and nothing else of the checkout; bring opa along where the checkout has one."""
    for entry in (tree / "sallyport").iterdir():
        if entry.name != ".venv":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    opa = checkout / ".venv/bin/opa"
    if opa.exists():
        shutil.copy(opa, tree / "sallyport/.venv/bin/opa")
    (tree / "etc/resolv.conf").write_text("")
    (tree / "etc/hostname").write_text("enforcer\n")
