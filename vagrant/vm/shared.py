"""This machine's own root file system as a machine's root: read-only, over virtio-fs, so nothing has to be built.

virtiofsd would let the guest write, so what it is given is a read-only bind mount in a mount namespace of its own. What
is mounted below the root here (/proc, /sys, /dev, /run) is not in it. What the guest writes goes to its own memory.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from vagrant.vm.errors import RootError, ToolError
from vagrant.vm.place import CHECKOUT, PACKAGES, require, require_architecture, search_path

SYSTEM = "here"
"""The name of this root tree, where the others are called debian12 and so on."""

PLACES = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/lib/virtiofsd")
"""Where distributions put it, which is in nobody's PATH: QEMU before 8.0 brought one in C, later it is a package."""

WAIT_SECONDS = 30

# $1: a folder to mount at, $2: the checkout, $3: is that on another file system than the root?
_READ_ONLY = """
mount --bind / "$1" && mount -o remount,bind,ro "$1" || exit
[ -z "$3" ] || { mount --bind "$2" "$1$2" && mount -o remount,bind,ro "$1$2"; } || exit
shift 3
exec "$@"
"""


def check(checkout: Path) -> None:
    """Raise an error of the family when this machine's root cannot serve, better now than after a boot."""
    require_architecture()
    require(["qemu-system-x86_64", "setpriv", "unshare", "git"])
    _program()
    if os.geteuid() != 0:
        raise RootError("Sharing this machine's root file system needs root.", hint="Run the command as root.")
    if not (checkout / ".venv/bin/sallyport").exists():
        raise ToolError("The checkout is not set up.", hint="Run make setup first: the machine runs what is there.")


@contextlib.contextmanager
def serving(work: Path, checkout: Path = CHECKOUT) -> Iterator[Path]:
    """Serve the root file system; yields the socket for QEMU. `work`: a folder of this run's own."""
    path, below, log = work / "shared.socket", work / "shared", work / "virtiofsd"
    below.mkdir()
    apart = "yes" if checkout.stat().st_dev != Path("/").stat().st_dev else ""
    with log.open("wb") as said:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "nice", "-n", "10", "unshare", "--mount", "--propagation", "private",
             "sh", "-c", _READ_ONLY, "sh", str(below), str(checkout), apart,
             str(_program()), f"--socket-path={path}", "-o", f"source={below}", "-o", "cache=always"],
            stdin=subprocess.DEVNULL, stdout=said, stderr=said, env={**os.environ, "PATH": search_path()},
        )  # fmt: skip
    try:
        until = time.monotonic() + WAIT_SECONDS
        while not path.exists():
            if process.poll() is not None or time.monotonic() > until:
                last = (log.read_text(errors="replace").strip().splitlines() or ["nothing"])[-1]
                raise ToolError("This machine's root file system cannot be shared.", hint=f"It was said: {last}")
            time.sleep(0.05)
        yield path
    finally:
        process.kill()
        process.wait()


def _program() -> Path:
    for place in PLACES:
        if os.access(place, os.X_OK):
            return Path(place)
    found = shutil.which("virtiofsd", path=search_path())
    if found is None:
        raise ToolError(
            "Not installed: virtiofsd.", hint=f"Install it (apt-get install {PACKAGES['virtiofsd']}), then run again."
        )
    return Path(found)
